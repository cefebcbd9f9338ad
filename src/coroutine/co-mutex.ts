/**
 * A mutex for coroutines of one context: first come, first served, not recursive.
 *
 * Invariants:
 * - While anyone waits, unlocking hands the mutex to the oldest waiter; nobody gets in between.
 * - Taking a free mutex makes no promise.
 */
import { assert } from '../util/errors.ts'
import { Waiters } from './co-queue.ts'
import type { Pending } from './coroutine.ts'

/** The mutex. */
export class CoMutex {
  #locked = false
  readonly #waiters = new Waiters<() => void>()

  /** Whether somebody holds it. */
  get locked(): boolean {
    return this.#locked
  }

  /** How many wait for it. */
  get waiting(): number {
    return this.#waiters.length
  }

  /** Takes it; `undefined` = taken. */
  lock(): Pending {
    if (!this.#locked) {
      this.#locked = true
      return undefined
    }
    return new Promise((resolve) => this.#waiters.push(resolve))
  }

  /** Takes it if it is free; answers whether it did. */
  tryLock(): boolean {
    if (this.#locked) return false
    this.#locked = true
    return true
  }

  /** Gives it up. */
  unlock(): void {
    assert(this.#locked, 'unlock follows lock')
    // Nearly always nobody waits; that answer costs one read.
    const wake = this.#waiters.length === 0 ? undefined : this.#waiters.shift()
    if (wake === undefined) this.#locked = false
    else wake()
  }

  /** Holds it while `fn` runs. */
  async withLock<T>(fn: () => T | Promise<T>): Promise<T> {
    const wait = this.lock()
    if (wait !== undefined) await wait
    try {
      return await fn()
    } finally {
      this.unlock()
    }
  }
}
