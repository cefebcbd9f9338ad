/**
 * A stock of equal units, and a pool that runs a bounded number of tasks.
 *
 * Invariants:
 * - Units are given out in the order they were asked for; a big request is not overtaken.
 * - Units given out plus units left make the total.
 */
import { assert } from '../util/errors.ts'
import { Waiters } from './co-queue.ts'
import type { Pending } from './coroutine.ts'

interface Request {
  readonly units: number
  readonly wake: () => void
}

/** A semaphore over `total` units. */
export class CoSemaphore {
  /** All units, given out or not. */
  readonly total: number
  #free: number
  readonly #requests = new Waiters<Request>()

  constructor(total: number) {
    this.total = total
    this.#free = total
  }

  /** Units left. */
  get free(): number {
    return this.#free
  }

  /** How many requests wait. */
  get waiting(): number {
    return this.#requests.length
  }

  /** Takes units, at most `total`; `undefined` = taken. */
  get(units: number = 1): Pending {
    assert(units <= this.total, 'a request is at most the whole stock')
    if (this.#requests.length === 0 && units <= this.#free) {
      this.#free -= units
      return undefined
    }
    return new Promise((resolve) => this.#requests.push({ units, wake: resolve }))
  }

  /** Gives units back. */
  put(units: number = 1): void {
    this.#free += units
    assert(this.#free <= this.total, 'no more is given back than was taken')
    for (let next = this.#requests.peek(); next !== undefined; next = this.#requests.peek()) {
      if (next.units > this.#free) return
      this.#requests.shift()
      this.#free -= next.units
      next.wake()
    }
  }
}
