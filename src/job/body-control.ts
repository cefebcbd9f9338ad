/**
 * How a job body rests, sleeps and lets its thread's loop turn.
 *
 * Invariants:
 * - `pause` answers when no work is in flight and none will start before `resume`.
 * - Messages wake a sleeper, so a cancel or a new speed never waits for the end of a delay.
 */
import type { JobWords } from '../sync/job-words.ts'
import type { Clock, TimerHandle } from '../util/clock.ts'

/** The waiting side of one body. */
export class BodyControl {
  readonly #words: JobWords
  readonly #clock: Clock
  #working = 0
  #resting = false
  #wakers: (() => void)[] = []
  #restListeners: (() => void)[] = []

  constructor(words: JobWords, clock: Clock) {
    this.#words = words
    this.#clock = clock
  }

  /** Runs work that a pause has to wait for. */
  async work<T>(fn: () => Promise<T>): Promise<T> {
    this.#working += 1
    try {
      return await fn()
    } finally {
      this.#working -= 1
      if (this.#working === 0) this.#announceRest()
    }
  }

  /** Settles as soon as the body rests; the pause word is set already. */
  async pause(): Promise<void> {
    this.wake()
    if (this.#resting || this.#working === 0 || !this.#words.paused) return
    await new Promise<void>((resolve) => this.#restListeners.push(resolve))
  }

  /** Wakes every sleeper and rester, so that it looks at the words again. */
  wake(): void {
    const wakers = this.#wakers
    this.#wakers = []
    for (const wake of wakers) wake()
  }

  /** Rests while the pause word is set and the cancel word is not. */
  async rest(): Promise<void> {
    this.#resting = true
    this.#announceRest()
    while (this.#words.paused && !this.#words.cancelled) {
      await new Promise<void>((resolve) => this.#wakers.push(resolve))
    }
    this.#resting = false
  }

  /** Sleeps; ends early when woken, and at once when a pause or a cancel was asked for before. */
  async sleep(ms: number): Promise<void> {
    // Their message woke nobody: the body was at work.
    if (this.#words.paused || this.#words.cancelled) return
    let timer: TimerHandle | undefined
    await new Promise<void>((resolve) => {
      this.#wakers.push(resolve)
      timer = this.#clock.setTimer(ms, resolve)
    })
    timer?.cancel()
  }

  /** Lets the thread's loop handle its messages. */
  turn(): Promise<void> {
    return new Promise((resolve) => this.#clock.setImmediate(resolve))
  }

  #announceRest(): void {
    const listeners = this.#restListeners
    this.#restListeners = []
    for (const listener of listeners) listener()
  }
}
