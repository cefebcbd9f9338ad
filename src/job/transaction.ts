/**
 * Jobs that complete together: all of them take effect, or none.
 *
 * Invariants:
 * - No job of a group commits before every job of the group prepared.
 * - The first failure cancels all others, and every job of the group is finalized exactly once.
 */
import { asBlockError, type BlockError, ioError } from '../util/errors.ts'
import type { Job } from './job.ts'

/** A group of jobs; a job without a given group has one of its own. */
export class Transaction {
  readonly #jobs = new Set<Job>()
  readonly #ended = new Set<Job>()
  #failure: BlockError | undefined
  #finalizing = false

  /** Takes a new job in; only before any job of the group ended. */
  add(job: Job): void {
    this.#jobs.add(job)
  }

  /** The group's jobs. */
  get jobs(): ReadonlySet<Job> {
    return this.#jobs
  }

  /** A job's work is over; `error` is why it failed. Settles when nothing more is to be done now. */
  async jobEnded(job: Job, error: BlockError | undefined): Promise<void> {
    this.#ended.add(job)
    if (error !== undefined) {
      job.enterAborting(error)
      this.#fail(error)
    } else if (this.#failure === undefined) {
      job.enterWaiting()
    } else {
      job.enterAborting(ioError('ECANCELED'))
    }
    if (this.#ended.size < this.#jobs.size || this.#finalizing) return
    if (this.#failure !== undefined) {
      await this.#finalizeAll()
      return
    }
    for (const each of this.#jobs) each.enterPending()
    if ([...this.#jobs].every((each) => each.autoFinalize)) await this.finalize()
  }

  /** Prepares all, then commits all; a job that cannot prepare aborts the group. */
  async finalize(): Promise<void> {
    if (this.#finalizing) return
    this.#finalizing = true
    for (const job of this.#jobs) {
      try {
        await job.driver.prepare?.(job)
      } catch (thrown) {
        this.#fail(asBlockError(thrown))
        job.enterAborting(asBlockError(thrown))
        break
      }
    }
    await this.#finalizeAll()
  }

  /** A job that already waits for the others, or for `finalize`, is cancelled. */
  cancelEnded(job: Job): void {
    if (this.#finalizing) return
    const error = ioError('ECANCELED')
    job.enterAborting(error)
    this.#fail(error)
    if (this.#ended.size === this.#jobs.size) void this.#finalizeAll()
  }

  #fail(error: BlockError): void {
    if (this.#failure !== undefined) return
    this.#failure = error
    for (const job of this.#jobs) {
      if (!this.#ended.has(job)) job.cancel(true)
    }
  }

  async #finalizeAll(): Promise<void> {
    this.#finalizing = true
    for (const job of this.#jobs) {
      if (this.#failure !== undefined && job.error === undefined) {
        job.forceCancelled = true
        job.enterAborting(ioError('ECANCELED'))
      }
    }
    for (const job of this.#jobs) await job.finalizeSingle()
  }
}
