/**
 * Pieces that are worked on side by side and count in the order of the disk.
 *
 * Invariants:
 * - A job's progress is what is done from the start without a gap, so one that stops at an error stands
 *   at it.
 * - A piece whose error is to be heard waits for those before it; after one that failed nothing counts.
 */
import type { Job } from './job.ts'

/** A piece in the order of the disk. */
export interface Turn {
  /** Its length. */
  readonly bytes: number
  /** What became of it. */
  state: 'begun' | 'done' | 'failed'
  /** Called when everything before it is done, or one of them failed. */
  wake: (() => void) | undefined
}

/** Counts pieces as done, and lets their errors be heard, in the order of the disk. */
export class Order {
  readonly #job: Job
  readonly #turns: Turn[] = []

  constructor(job: Job) {
    this.#job = job
  }

  /** Begins a piece. */
  begin(bytes: number): Turn {
    const turn: Turn = { bytes, state: 'begun', wake: undefined }
    this.#turns.push(turn)
    return turn
  }

  /** The piece has ended. After one that failed nothing counts any more. */
  end(turn: Turn, state: 'done' | 'failed'): void {
    turn.state = state
    for (let first = this.#turns[0]; first?.state === 'done'; first = this.#turns[0]) {
      this.#turns.shift()
      this.#job.current += first.bytes
    }
    const [first] = this.#turns
    if (first?.state === 'failed') for (const later of this.#turns) later.wake?.()
    else first?.wake?.()
  }

  /** Waits until everything before the piece has ended; answers whether all of that is done. */
  async reached(turn: Turn): Promise<boolean> {
    if (this.#turns[0]?.state === 'begun' && this.#turns[0] !== turn)
      await new Promise<void>((resolve) => (turn.wake = resolve))
    return this.#turns[0] === turn
  }
}
