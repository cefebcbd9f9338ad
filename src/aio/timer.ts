/**
 * A timer of a context: one callback, armed again and again.
 *
 * Invariants:
 * - It is disarmed before its callback runs, so the callback may arm it again.
 * - `del` wins against a deadline that passed but whose callback did not run yet.
 */
import type { Clock, TimerHandle } from '../util/clock.ts'
import type { BottomHalf } from './bottom-half.ts'

/** Made by `AioContext.timer`; `armed` is the context's set of armed timers. */
export class AioTimer {
  readonly #clock: Clock
  readonly #bh: BottomHalf
  readonly #armed: Set<AioTimer>
  #handle: TimerHandle | undefined
  #deadlineMs: number | undefined

  constructor(clock: Clock, bh: BottomHalf, armed: Set<AioTimer>) {
    this.#clock = clock
    this.#bh = bh
    this.#armed = armed
  }

  /** The deadline on the context's clock, while armed. */
  get deadlineMs(): number | undefined {
    return this.#deadlineMs
  }

  /** Arms it for `deadlineMs` on the context's clock, whatever it was armed for before. */
  mod(deadlineMs: number): void {
    this.del()
    this.#deadlineMs = deadlineMs
    this.#armed.add(this)
    this.#handle = this.#clock.setTimer(deadlineMs - this.#clock.nowMs(), () => {
      this.#handle = undefined
      this.#deadlineMs = undefined
      this.#armed.delete(this)
      this.#bh.schedule()
    })
  }

  /** Disarms it; harmless when it is not armed. */
  del(): void {
    this.#handle?.cancel()
    this.#handle = undefined
    this.#deadlineMs = undefined
    this.#armed.delete(this)
    this.#bh.cancel()
  }
}
