/**
 * Requests of a node that are waiting for something, and who has to wait for whom.
 *
 * Invariants:
 * - A request that finished inline was never here: nothing could run beside it.
 * - Two requests conflict when their ranges meet and at least one of them is serialising.
 * - Nobody waits for a request that is itself waiting, so there are no cycles.
 */

import type { CoroutineIdentity } from '../aio/coroutine-handle.ts'
import { type Linked, LinkedList } from '../util/linked-list.ts'

/** One request on its way. */
export interface TrackedRequest extends Linked<TrackedRequest> {
  /** The coroutine that made it, when it was made in a coroutine's turn. */
  readonly by: CoroutineIdentity | undefined
  readonly offset: number
  readonly end: number
  readonly serialising: boolean
  waiting: boolean
  /** Callbacks to run when the request ends; made by the first who waits. */
  waiters: (() => void)[] | undefined
}

/** Whoever knows whose turn it is. */
interface Turns {
  readonly current: CoroutineIdentity | undefined
}

/** The requests of one node. */
export class TrackedRequests {
  /** How many of them exclude others. */
  serialising = 0
  readonly #live = new LinkedList<TrackedRequest>()
  readonly #turns: Turns

  /** `turns`: the context that the node's requests are made in. */
  constructor(turns: Turns) {
    this.#turns = turns
  }

  /** How many requests are on their way. */
  get size(): number {
    return this.#live.size
  }

  /** Registers a request. */
  add(offset: number, bytes: number, serialising: boolean): TrackedRequest {
    const request: TrackedRequest = {
      by: this.#turns.current,
      offset,
      end: offset + bytes,
      serialising,
      waiting: false,
      waiters: undefined,
      previous: undefined,
      next: undefined,
    }
    if (serialising) this.serialising++
    this.#live.add(request)
    return request
  }

  /** What is on its way, the oldest first, for whoever wonders what a drain waits for. */
  report(): string[] {
    return [...this.#live].map(({ offset, end, serialising, waiting, by }) => {
      const range = `${offset}+${end - offset}`
      const traits = [serialising ? 'serialising' : '', waiting ? 'waiting for another' : '']
      return [range, ...traits, by === undefined ? '' : `by ${by.name}`].filter(Boolean).join(', ')
    })
  }

  /** Ends a request and wakes whoever waits for it. */
  remove(request: TrackedRequest): void {
    this.#live.remove(request)
    if (request.serialising) this.serialising--
    const waiters = request.waiters
    request.waiters = undefined
    if (waiters !== undefined) for (const wake of waiters) wake()
  }

  /** Waits until nothing that conflicts with `self` runs any more. */
  async waitFor(self: TrackedRequest): Promise<void> {
    for (;;) {
      const conflict = this.#conflict(self)
      if (conflict === undefined) return
      self.waiting = true
      await new Promise<void>((resolve) => {
        conflict.waiters ??= []
        conflict.waiters.push(resolve)
      })
      self.waiting = false
    }
  }

  #conflict(self: TrackedRequest): TrackedRequest | undefined {
    for (let other = this.#live.first; other !== undefined; other = other.next) {
      if (other === self || other.waiting) continue
      if (!other.serialising && !self.serialising) continue
      if (other.offset < self.end && self.offset < other.end) return other
    }
    return undefined
  }
}
