/**
 * A condition queue: coroutines wait in it, others wake them, first come, first served.
 *
 * Invariants:
 * - A waiter is in the queue before the lock it gives up is free, so no wake-up between the two is lost.
 * - A wake-up carries no reason; who waits looks at its condition again.
 * - The woken one runs after the waker's turn, never inside it.
 */
import type { Pending } from './coroutine.ts'

/** What a waiter gives up while it waits. */
export interface Unlockable {
  /** Takes it; `undefined` = taken. */
  lock(): Pending
  /** Gives it up. */
  unlock(): void
}

/** A first-in first-out list of waiters. */
export class Waiters<W> {
  #items: (W | undefined)[] = []
  #head = 0

  /** How many wait. */
  get length(): number {
    return this.#items.length - this.#head
  }

  /** Adds one at the end. */
  push(waiter: W): void {
    this.#items.push(waiter)
  }

  /** The oldest, left in place. */
  peek(): W | undefined {
    return this.#items[this.#head]
  }

  /** Takes the oldest out. */
  shift(): W | undefined {
    const waiter = this.#items[this.#head]
    if (this.length === 0) return undefined
    this.#items[this.#head] = undefined
    this.#head += 1
    // Moving the rest down once half is empty keeps both steps constant on average.
    if (this.#head * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#head)
      this.#head = 0
    }
    return waiter
  }
}

/** The condition queue. */
export class CoQueue {
  readonly #waiters = new Waiters<() => void>()

  /** How many wait. */
  get length(): number {
    return this.#waiters.length
  }

  /** Waits for a wake-up; gives up `lock` meanwhile and holds it again afterwards. */
  async wait(lock?: Unlockable): Promise<void> {
    const woken = new Promise<void>((resolve) => this.#waiters.push(resolve))
    lock?.unlock()
    await woken
    const again = lock?.lock()
    if (again !== undefined) await again
  }

  /** Wakes the oldest waiter; answers whether there was one. */
  next(): boolean {
    const wake = this.#waiters.shift()
    wake?.()
    return wake !== undefined
  }

  /** Wakes everyone who waits now; answers how many. */
  restartAll(): number {
    const count = this.#waiters.length
    for (let i = 0; i < count; i += 1) this.#waiters.shift()?.()
    return count
  }
}
