/**
 * Jobs that complete together: all of them take effect, or none.
 *
 * Invariants:
 * - No job of a group commits before every job of the group prepared.
 * - The first failure cancels all others, and every job of the group is finalized exactly once.
 * - Jobs are prepared and finalized the newest first; one that another's failure ended shows it
 *   when its turn comes.
 */
import { asBlockError, type BlockError, ioError } from '../util/errors.ts'
import type { Job } from './job.ts'

/** A group of jobs; a job without a given group has one of its own. */
export class Transaction {
  readonly #jobs = new Set<Job>()
  readonly #ended = new Map<Job, BlockError | undefined>()
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
    this.#ended.set(job, error)
    if (this.#failure === undefined) {
      if (error === undefined) job.enterWaiting()
      else {
        job.enterAborting(error)
        this.#fail(error)
      }
    }
    if (this.#ended.size < this.#jobs.size || this.#finalizing) return
    if (this.#failure !== undefined) {
      await this.#finalizeAll()
      return
    }
    for (const each of this.#newestFirst()) each.enterPending()
    if ([...this.#jobs].every((each) => each.autoFinalize)) await this.finalize()
  }

  /** Prepares all, then commits all; a job that cannot prepare aborts the group. */
  async finalize(): Promise<void> {
    if (this.#finalizing) return
    this.#finalizing = true
    for (const job of this.#newestFirst()) {
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
  cancelEnded(): void {
    if (this.#finalizing) return
    this.#fail(ioError('ECANCELED'))
    // The last of the others may have ended, and with it the group, while it was told.
    if (this.#finalizing || this.#ended.size < this.#jobs.size) return
    void this.#finalizeAll()
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
    for (const job of this.#newestFirst()) {
      if (this.#failure !== undefined && job.error === undefined) this.#abort(job)
      await job.finalizeSingle()
    }
  }

  #abort(job: Job): void {
    const own = this.#ended.get(job)
    if (own === undefined) job.forceCancelled = true
    job.enterAborting(own ?? ioError('ECANCELED'))
  }

  #newestFirst(): Job[] {
    return [...this.#jobs].reverse()
  }
}
