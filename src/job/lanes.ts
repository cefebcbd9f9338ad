/**
 * Pieces of a job's work on their way at a time, for jobs whose main half hands out the work.
 *
 * Invariants:
 * - At a pause point, and after `end`, nothing is on its way.
 * - After a failure no new piece begins; the first failure is the one that counts.
 */
import type { AioContext } from '../aio/aio-context.ts'
import type { Job } from './job.ts'
import { RateLimit } from './rate-limit.ts'

/** Pieces that a worker has before it: enough to keep it busy while the main thread does others' work. */
const LANES = 8
/** The same while somebody waits for what the worker does behind them. */
const FEW_LANES = 2

/** The pieces on their way. */
export class Lanes {
  readonly #job: Job
  readonly #ctx: AioContext
  readonly #workers: number
  readonly #running = new Set<Promise<void>>()
  readonly #rate = new RateLimit()
  #troubles = 0
  /** A guest's request may have to wait behind the pieces: then there are few of them. */
  guestWaits = false
  #failure: { readonly thrown: unknown } | undefined

  /** `workers`: how many do the work; 0 = the main thread. */
  constructor(job: Job, ctx: AioContext, workers: number) {
    this.#job = job
    this.#ctx = ctx
    this.#workers = Math.max(1, workers)
  }

  /**
   * Begins a piece as soon as there is room for it, then waits as pauses and the speed ask.
   * Rejects with the failure of a piece.
   */
  async run(bytes: number, piece: () => Promise<void>): Promise<void> {
    const job = this.#job
    while (this.#running.size >= this.#width() || this.#troubles > 0) {
      await Promise.race(this.#running)
    }
    this.#check()
    const run = piece()
      .catch((thrown: unknown) => {
        this.#failure ??= { thrown }
      })
      .finally(() => this.#running.delete(run))
    this.#running.add(run)
    // A limited job does one piece at a time, so that it moves evenly.
    if (job.speed > 0) await this.#settle()
    this.#rate.setSpeed(job.speed)
    const delayMs = this.#rate.delay(bytes, this.#ctx.clock.nowMs())
    if (delayMs > 0) await this.#sleep(delayMs)
    await this.rest()
  }

  /** Rests while the job is paused, with nothing on its way, and lets others have their turn. */
  async rest(): Promise<void> {
    const job = this.#job
    if (job.pauseCount > 0) await this.#settle()
    const rest = job.pausePoint() ?? this.#ctx.breathe()
    if (rest !== undefined) await rest
    this.#check()
  }

  /** Part of a piece: decides what to do about an error, while no other piece begins. */
  async inTrouble(decide: () => Promise<void>): Promise<void> {
    this.#troubles += 1
    try {
      await decide()
    } finally {
      this.#troubles -= 1
    }
  }

  /** Waits until every piece has ended. Rejects with the failure of a piece. */
  async end(): Promise<void> {
    await this.#settle()
    this.#check()
  }

  #width(): number {
    return this.#workers * (this.guestWaits ? FEW_LANES : LANES)
  }

  async #settle(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running)
  }

  #check(): void {
    if (this.#failure !== undefined) throw this.#failure.thrown
  }

  /** Ends early when the job is kicked. */
  async #sleep(ms: number): Promise<void> {
    const sleep = this.#ctx.wakeableSleep(ms)
    await this.#job.waitKick(sleep.done)
    sleep.wake()
  }
}
