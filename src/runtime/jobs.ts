/**
 * Jobs for programs: one call to start each kind, one handle to steer whatever was started.
 *
 * Invariants:
 * - Nodes go by their names; every job is one that a monitor of the same runtime shows and steers.
 * - A handle tells the end once: `done` settles after the job let go of every node.
 * - A signal that aborts cancels its job; it is not listened to any longer than the job lives.
 */
import type { BlockNode } from '../block/node.ts'
import { startBackup as backup } from '../job/backup.ts'
import { startCommit as commit } from '../job/commit.ts'
import type { Job } from '../job/job.ts'
import type { CopyMode } from '../job/job-types.ts'
import type { OnError } from '../job/policy.ts'
import { startMirror as mirror } from '../job/start-mirror.ts'
import { startStream as stream } from '../job/start-stream.ts'
import type { JobStatus } from '../job/status.ts'
import { nodeFilename } from '../qmp/node-filename.ts'
import { BlockError } from '../util/errors.ts'
import type { Runtime } from './runtime.ts'

/** What every job takes. */
export interface JobStartOptions {
  /** Its id, for monitors too; default: its kind and a number. */
  readonly id?: string
  /** Bytes a second; 0 = unlimited, the default. */
  readonly speed?: number
  /** Cancels the job when it aborts; a signal that is aborted already starts nothing. */
  readonly signal?: AbortSignal
  /** Name of the filter node that the job puts over its disk; default: an invented one. */
  readonly filterNodeName?: string
}

/** What `startBackup` takes. */
export interface BackupJobOptions extends JobStartOptions {
  /** Name of the disk whose content at this moment is wanted. */
  readonly source: string
  /** Name of the disk that receives it; as long as the source. */
  readonly target: string
  /**
   * `full` (default): everything. `top`: what the source's own image holds. `none`: only what is
   * about to be overwritten, until cancelled.
   */
  readonly sync?: 'full' | 'top' | 'none'
  /** Write compressed, which the target has to support; default false. */
  readonly compress?: boolean
  /** What a failed read does; default `report`, which ends the job. */
  readonly onSourceError?: OnError
  /** What a failed write does; default `report`, which ends the job. */
  readonly onTargetError?: OnError
}

/** What `startMirror` takes. */
export interface MirrorJobOptions extends JobStartOptions {
  /** Name of the disk that is copied. */
  readonly source: string
  /** Name of the disk that it is copied onto; as long as the source. */
  readonly target: string
  /** `full` (default): everything. `top`: the source's own image. `none`: what is written from now. */
  readonly sync?: 'full' | 'top' | 'none'
  /** `write-blocking`: once ready, a write ends when it is on the target too. */
  readonly copyMode?: CopyMode
  /** Size of a dirty region in bytes; a power of two from 512 to 64 MiB; default by the target. */
  readonly granularity?: number
  /** What a failed read does; default `report`, which ends the job. */
  readonly onSourceError?: OnError
  /** What a failed write does; default `report`, which ends the job. */
  readonly onTargetError?: OnError
}

/** What `startCommit` takes. */
export interface CommitJobOptions extends JobStartOptions {
  /** Name of the overlay whose content goes down. */
  readonly top: string
  /** Name of the image that receives it; default: the one below `top`. */
  readonly base?: string
  /** Move the users of `top` onto `base` as soon as both are equal; default false: `complete` does. */
  readonly autoComplete?: boolean
  /** What an I/O error does; default `report`, which ends the job. */
  readonly onError?: OnError
}

/** What `startStream` takes. */
export interface StreamJobOptions extends JobStartOptions {
  /** Name of the disk that is to need less below it. */
  readonly top: string
  /** Name of the lowest image that is copied from; default: the whole chain. */
  readonly bottom?: string
  /** What an I/O error does; default `report`, which ends the job. */
  readonly onError?: OnError
}

/** How far a job is. */
export interface JobProgress {
  /** Bytes done. */
  readonly current: number
  /** Bytes done and to do; may grow while a guest writes. */
  readonly total: number
}

/** A job that was started. Leaving its scope (`await using`) cancels it if it still runs. */
export class RunningJob implements AsyncDisposable {
  /** Its id; unique among the jobs that exist. */
  readonly id: string
  /** Settles when the job ended; rejects with what ended it, `ECANCELED` when it was cancelled. */
  readonly done: Promise<void>
  /** Settles when a mirror's or commit's copy is complete and kept so; rejects as `done` does. */
  readonly ready: Promise<void>
  readonly #job: Job

  /** Made by the functions that start jobs. */
  constructor(runtime: Runtime, job: Job, signal: AbortSignal | undefined) {
    this.id = job.id
    this.#job = job
    const abort = (): void => job.cancel(true)
    signal?.addEventListener('abort', abort, { once: true })
    if (signal?.aborted === true) abort()
    let stopHearing: () => void = () => undefined
    const ready = new Promise<void>((resolve) => {
      stopHearing = runtime.events.on('BLOCK_JOB_READY', (data) => {
        if (data.device === job.id) resolve()
      })
    })
    this.done = job.done.then(() => {
      signal?.removeEventListener('abort', abort)
      stopHearing()
      if (job.error !== undefined) throw job.error
    })
    this.ready = job.ready ? Promise.resolve() : Promise.race([ready, this.done])
    // Whoever asks gets the error; who never asks is not ended by it.
    this.done.catch(() => undefined)
    this.ready.catch(() => undefined)
  }

  /** Where the job is in its life. */
  get status(): JobStatus {
    return this.#job.status
  }

  /** How far it is. */
  get progress(): JobProgress {
    const job = this.#job
    job.progressSource?.()
    return { current: Math.min(job.current, job.total), total: job.total }
  }

  /** Rests within one piece of work. Errors: EBUSY when paused already, EPERM in a wrong state. */
  pause(): void {
    this.#job.userPause()
  }

  /** Goes on after `pause` or an error with the policy `stop`. Error: EPERM when not paused. */
  resume(): void {
    this.#job.userResume()
  }

  /** Changes the speed in bytes a second, 0 = unlimited. Errors: EINVAL, EPERM. */
  setSpeed(bytesPerSecond: number): void {
    this.#job.userSetSpeed(bytesPerSecond)
  }

  /** A ready mirror or commit: moves the users of the source and ends. Errors: EPERM, EBUSY. */
  complete(): Promise<void> {
    this.#job.userComplete()
    return this.done
  }

  /**
   * Ends the job and waits until it let go of everything. A ready mirror ends in order and leaves
   * an equal copy, unless `force`.
   */
  async cancel(options: { readonly force?: boolean } = {}): Promise<void> {
    await this.#job.cancelSync(options.force ?? false)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#job.cancelSync(true)
  }
}

/**
 * Copies a disk as it is now, while it is in use. Errors: EINVAL, EBUSY, EPERM, EEXIST, ENOTSUP,
 * ECANCELED.
 */
export async function startBackup(
  runtime: Runtime,
  options: BackupJobOptions,
): Promise<RunningJob> {
  const { source, target, sync = 'full', signal, id, ...rest } = options
  const { graph, jobs, pool } = runtime
  return begin(runtime, signal, async () => {
    const { job } = await backup(graph, jobs, pool, {
      ...rest,
      jobId: id ?? freeId(runtime, 'backup'),
      source: nodeOf(runtime, source),
      target: nodeOf(runtime, target),
      sync,
    })
    return job
  })
}

/** Copies a disk and keeps the copy equal until told otherwise. Errors: as `startBackup`. */
export async function startMirror(
  runtime: Runtime,
  options: MirrorJobOptions,
): Promise<RunningJob> {
  const { source, target, sync = 'full', signal, id, ...rest } = options
  const { graph, jobs, pool } = runtime
  return begin(runtime, signal, () =>
    mirror(graph, jobs, pool, {
      ...rest,
      jobId: id ?? freeId(runtime, 'mirror'),
      source: nodeOf(runtime, source),
      target: nodeOf(runtime, target),
      sync,
    }),
  )
}

/** Folds an overlay into an image below it. Errors: as `startBackup`. */
export async function startCommit(
  runtime: Runtime,
  options: CommitJobOptions,
): Promise<RunningJob> {
  const { top, base, signal, id, ...rest } = options
  const { graph, jobs, pool } = runtime
  return begin(runtime, signal, () => {
    const overlay = nodeOf(runtime, top)
    const below = base === undefined ? overlay.chainNext : nodeOf(runtime, base)
    if (below === undefined) {
      throw new BlockError('EINVAL', `Node '${top}' has no image below it`, { node: top })
    }
    return commit(graph, jobs, pool, {
      ...rest,
      jobId: id ?? freeId(runtime, 'commit'),
      top: overlay,
      base: below,
    })
  })
}

/** Makes a disk independent of the images below it, or of some. Errors: as `startBackup`. */
export async function startStream(
  runtime: Runtime,
  options: StreamJobOptions,
): Promise<RunningJob> {
  const { top, bottom, signal, id, ...rest } = options
  const { graph, jobs, pool } = runtime
  return begin(runtime, signal, () =>
    stream(graph, jobs, {
      ...rest,
      pool,
      jobId: id ?? freeId(runtime, 'stream'),
      top: nodeOf(runtime, top),
      bottom: bottom === undefined ? undefined : nodeOf(runtime, bottom),
      nameOf: nodeFilename,
    }),
  )
}

async function begin(
  runtime: Runtime,
  signal: AbortSignal | undefined,
  start: () => Promise<Job>,
): Promise<RunningJob> {
  if (signal?.aborted === true) {
    throw new BlockError('ECANCELED', 'The job was aborted before its start', {}, signal.reason)
  }
  return new RunningJob(runtime, await start(), signal)
}

function nodeOf(runtime: Runtime, name: string): BlockNode {
  return runtime.graph.lookup(undefined, name)
}

function freeId(runtime: Runtime, kind: string): string {
  for (let n = 0; ; n++) {
    if (runtime.jobs.find(`${kind}${n}`) === undefined) return `${kind}${n}`
  }
}
