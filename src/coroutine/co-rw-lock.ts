/**
 * A lock for many readers or one writer, served by tickets in the order they were taken.
 *
 * Invariants:
 * - A grant wakes the readers at the head of the queue up to the first writer, or one writer.
 * - A waiting writer keeps later readers out, so it is never starved.
 * - Taking it without a conflict makes no promise.
 */
import { assert } from '../util/errors.ts'
import { Waiters } from './co-queue.ts'
import type { Pending } from './coroutine.ts'

interface Ticket {
  readonly reader: boolean
  readonly wake: () => void
}

/** The lock. */
export class CoRwLock {
  /** Readers inside, or -1 with a writer inside. */
  #users = 0
  readonly #tickets = new Waiters<Ticket>()

  /** How many readers are inside. */
  get readers(): number {
    return Math.max(this.#users, 0)
  }

  /** Whether a writer is inside. */
  get writing(): boolean {
    return this.#users < 0
  }

  /** How many wait. */
  get waiting(): number {
    return this.#tickets.length
  }

  /** Enters as a reader; `undefined` = inside. */
  readLock(): Pending {
    if (this.#users >= 0 && this.#tickets.length === 0) {
      this.#users += 1
      return undefined
    }
    return this.#queue(true)
  }

  /** Enters as the writer; `undefined` = inside. */
  writeLock(): Pending {
    if (this.#users === 0 && this.#tickets.length === 0) {
      this.#users = -1
      return undefined
    }
    return this.#queue(false)
  }

  /** Leaves, as whatever it entered. */
  unlock(): void {
    assert(this.#users !== 0, 'unlock follows a lock')
    this.#users = this.#users < 0 ? 0 : this.#users - 1
    this.#grant()
  }

  /**
   * A reader becomes the writer; `undefined` = done. It waits its turn like everyone, outside, so
   * what it read before may have changed unless this answered `undefined`.
   */
  upgrade(): Pending {
    assert(this.#users > 0, 'only a reader upgrades')
    if (this.#users === 1 && this.#tickets.length === 0) {
      this.#users = -1
      return undefined
    }
    // The ticket is taken before the reader leaves, so that leaving serves it in turn.
    const wait = this.#queue(false)
    this.unlock()
    return wait
  }

  /** The writer becomes a reader, without a moment outside; readers at the head come in too. */
  downgrade(): void {
    assert(this.#users < 0, 'only the writer downgrades')
    this.#users = 1
    this.#grant()
  }

  #queue(reader: boolean): Promise<void> {
    return new Promise((resolve) => this.#tickets.push({ reader, wake: resolve }))
  }

  #grant(): void {
    for (let head = this.#tickets.peek(); head !== undefined; head = this.#tickets.peek()) {
      if (head.reader ? this.#users < 0 : this.#users !== 0) return
      this.#tickets.shift()
      this.#users = head.reader ? this.#users + 1 : -1
      head.wake()
    }
  }
}
