/**
 * Sleeping: a wait on the context's clock that may end early.
 *
 * Invariants:
 * - It settles once, whatever comes first: the deadline, a wake-up, or the end of the context.
 */
import type { Clock, TimerHandle } from '../util/clock.ts'
import type { BlockError } from '../util/errors.ts'

/** A sleep that may end early. */
export interface WakeableSleep {
  /** Settles when the time is over or `wake` was called. */
  readonly done: Promise<void>
  /** Ends the sleep; once, later calls do nothing. */
  wake(): void
}

/** Made by `AioContext.wakeableSleep`; `all` is the context's set of sleeps under way. */
export class Sleep implements WakeableSleep {
  readonly done: Promise<void>
  readonly #all: Set<Sleep>
  readonly #timer: TimerHandle
  #resolve!: () => void
  #reject!: (reason: BlockError) => void

  constructor(clock: Clock, ms: number, all: Set<Sleep>) {
    this.#all = all
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    // Whoever waits still sees it fail; a sleep that nobody waits for any more is no failure.
    this.done.catch(() => undefined)
    all.add(this)
    this.#timer = clock.setTimer(ms, () => this.wake())
  }

  wake(): void {
    if (this.#end()) this.#resolve()
  }

  /** The context closes. */
  fail(error: BlockError): void {
    if (this.#end()) this.#reject(error)
  }

  #end(): boolean {
    this.#timer.cancel()
    return this.#all.delete(this)
  }
}
