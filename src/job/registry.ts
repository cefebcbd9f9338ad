/**
 * All jobs of a runtime: creating, finding, listing and ending them.
 *
 * Invariants:
 * - Ids are unique among the jobs that exist; internal jobs have none.
 * - Only visible jobs are listed and found; `cancelAll` reaches the internal ones too.
 */
import { BlockError } from '../util/errors.ts'
import { Job } from './job.ts'
import type { CopyMode, JobHost, JobOptions } from './job-types.ts'
import { checkSpeed } from './policy.ts'

const ID_PATTERN = /^[A-Za-z][A-Za-z0-9\-._]*$/

/** Options of a new job; an internal job has no id. */
export interface NewJob extends JobOptions {
  /** Invisible and silent; must come without an id. */
  readonly internal?: boolean | undefined
}

/** The jobs of a runtime. */
export class JobRegistry {
  readonly #host: JobHost
  readonly #jobs = new Set<Job>()

  constructor(host: JobHost) {
    this.#host = host
  }

  /**
   * Creates a job, not yet started. Errors (EINVAL, EEXIST): a bad, missing or used id, a negative
   * speed.
   */
  create(options: NewJob): Job {
    this.checkId(options.id, options.internal ?? false)
    checkSpeed(options.speed ?? 0)
    const job = new Job(this.#host, options, (gone) => this.#jobs.delete(gone))
    this.#jobs.add(job)
    return job
  }

  /** The checks of `create` alone, for those who must know before they change a graph. */
  checkId(id: string | undefined, internal: boolean): void {
    if (internal) {
      if (id !== undefined) {
        throw new BlockError('EINVAL', 'Cannot specify job ID for internal job')
      }
      return
    }
    if (id === undefined) throw new BlockError('EINVAL', 'An explicit job ID is required')
    if (!ID_PATTERN.test(id)) throw new BlockError('EINVAL', `Invalid job ID '${id}'`)
    if (this.find(id) !== undefined) {
      throw new BlockError('EEXIST', `Job ID '${id}' already in use`)
    }
  }

  /** The visible job of that id. */
  find(id: string): Job | undefined {
    return this.list().find((job) => job.id === id)
  }

  /** The visible job of that id. Error: `Job not found`. */
  get(id: string): Job {
    const job = this.find(id)
    if (job === undefined) throw new BlockError('ENOENT', 'Job not found')
    return job
  }

  /** The visible block job of that id. Error: DEVICE_NOT_ACTIVE. */
  getBlockJob(id: string): Job {
    const job = this.find(id)
    if (job === undefined || job.driver.type === 'create' || job.driver.type === 'amend') {
      throw new BlockError('DEVICE_NOT_ACTIVE', `Block job '${id}' not found`)
    }
    return job
  }

  /** Visible jobs, newest first. */
  list(): Job[] {
    return this.all().filter((job) => !job.internal)
  }

  /** Every job, also the internal ones, newest first. */
  all(): Job[] {
    return [...this.#jobs].reverse()
  }

  /** Cancels every job by force and waits until none is left running. */
  async cancelAll(): Promise<void> {
    for (const job of this.all()) {
      await job.cancelSync(true)
      // One that waits to be dismissed is dismissed by a second cancel.
      if (!job.autoDismiss) job.cancel(true)
    }
  }
}

/** The `block-job-cancel` verb: refuses a job that the user paused unless forced. */
export function blockJobCancel(job: Job, force: boolean): void {
  if (job.userPaused && !force) {
    throw new BlockError('EBUSY', `The block job for device '${job.id}' is currently paused`)
  }
  job.userCancel(force)
}

/** The `block-job-change` verb. Errors (EINVAL): a job of another kind, a mode it cannot go to. */
export function blockJobChange(job: Job, type: string, copyMode: CopyMode): void {
  if (job.driver.type !== type || job.driver.change === undefined) {
    const kind = job.driver.type
    throw new BlockError('EINVAL', `Job '${job.id}' is '${kind}' job, expected '${type}'`)
  }
  job.driver.change(job, copyMode)
}
