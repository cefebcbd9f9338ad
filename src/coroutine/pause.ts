/**
 * Pause points: the places where a coroutine may be held or learn that it should end.
 *
 * Invariants:
 * - Asking never stops anything by force; a coroutine stops where it says `pausePoint`.
 * - Pauses nest; work goes on when the last one is over.
 */
import { assert, BlockError } from '../util/errors.ts'
import { CoQueue } from './co-queue.ts'
import type { Coroutine, Pending } from './coroutine.ts'

/** Something that can be asked to end. */
export interface Cancellable {
  /** Whether somebody asked. */
  readonly cancelled: boolean
}

/** The switch that outsiders use and pause points obey. */
export class PauseControl implements Cancellable {
  #pauses = 0
  #cancelled = false
  #held = 0
  readonly #resumed = new CoQueue()
  readonly #stopped = new CoQueue()

  /** Whether a pause is asked for. */
  get paused(): boolean {
    return this.#pauses > 0
  }

  get cancelled(): boolean {
    return this.#cancelled
  }

  /** How many coroutines are held at a pause point. */
  get held(): number {
    return this.#held
  }

  /** Asks for a pause. */
  pause(): void {
    this.#pauses += 1
  }

  /** Ends one pause. */
  resume(): void {
    assert(this.#pauses > 0, 'resume follows pause')
    this.#pauses -= 1
    if (this.#pauses === 0) this.#resumed.restartAll()
  }

  /** Asks for the end; whoever is held goes on to it. */
  cancel(): void {
    this.#cancelled = true
    this.#resumed.restartAll()
  }

  /** Waits until `count` coroutines are held. */
  async whenHeld(count: number = 1): Promise<void> {
    while (this.#held < count) await this.#stopped.wait()
  }

  /** `undefined` = go on; else wait here. Cancelling ends the wait. */
  hold(): Pending {
    return this.paused && !this.#cancelled ? this.#wait() : undefined
  }

  async #wait(): Promise<void> {
    this.#held += 1
    this.#stopped.restartAll()
    try {
      while (this.paused && !this.#cancelled) await this.#resumed.wait()
    } finally {
      this.#held -= 1
    }
  }
}

/**
 * A pause point: lets others run, is held while paused. Error: ECANCELED once the end was asked for;
 * catch it, or let it end the coroutine.
 */
export async function* pausePoint(control: Cancellable | PauseControl): Coroutine<void> {
  yield
  if (control instanceof PauseControl) {
    const wait = control.hold()
    if (wait !== undefined) yield wait
  }
  throwIfCancelled(control)
}

/** Error: ECANCELED once the end was asked for. */
export function throwIfCancelled(control: Cancellable): void {
  if (control.cancelled) throw new BlockError('ECANCELED', 'The operation was cancelled')
}
