/**
 * Whether the program counts as running or paused, for managers that ask.
 *
 * Invariants:
 * - `STOP` and `RESUME` are sent on every change and only then.
 * - Pausing stops no disk: clients of exports are not guests of this process.
 */
import type { BlockEvents } from '../block/events.ts'

/** The run state of a program. */
export class RunState {
  readonly #events: BlockEvents
  #running = true

  constructor(events: BlockEvents) {
    this.#events = events
  }

  /** A primary is still to come. */
  waiting = false

  /** The word that managers read. */
  get status(): 'running' | 'paused' | 'inmigrate' {
    if (this.waiting) return 'inmigrate'
    return this.#running ? 'running' : 'paused'
  }

  /** Enters `paused`. */
  stop(): void {
    if (this.#running) this.#events.emit('STOP')
    this.#running = false
  }

  /** Enters `running`. */
  cont(): void {
    if (!this.#running) this.#events.emit('RESUME')
    this.#running = true
  }
}
