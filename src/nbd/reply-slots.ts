/**
 * The requests of a connection that wait for their replies, by cookie.
 *
 * Invariants:
 * - A cookie is a slot and a round: a reply that comes twice, or was never asked for, finds nothing.
 * - Nothing is allocated for a request.
 */
import { assert } from '../util/errors.ts'
import type { AwaitedReply } from './reply-parser.ts'

/** Most requests that can wait at a time; a power of two. */
export const REPLY_SLOTS = 64

/** See the file's purpose. */
export class ReplySlots {
  readonly #requests: (AwaitedReply | undefined)[] = Array<undefined>(REPLY_SLOTS).fill(undefined)
  /** The cookie that each slot was last used with. */
  readonly #cookies: Uint32Array = new Uint32Array(REPLY_SLOTS)
  readonly #free: number[] = Array.from({ length: REPLY_SLOTS }, (_, slot) => slot)

  constructor() {
    for (const slot of this.#free) this.#cookies[slot] = slot
  }

  /** How many requests wait. */
  get size(): number {
    return REPLY_SLOTS - this.#free.length
  }

  /** A request that waits from now on; answers its cookie. There is a free slot. */
  take(request: AwaitedReply): number {
    const slot = this.#free.pop()
    assert(slot !== undefined, 'a request is sent when there is a slot for it')
    const cookie = ((this.#cookies[slot] ?? 0) + REPLY_SLOTS) >>> 0
    this.#cookies[slot] = cookie
    this.#requests[slot] = request
    return cookie
  }

  /** The request with that cookie, if one waits. */
  at(cookie: number): AwaitedReply | undefined {
    const slot = cookie % REPLY_SLOTS
    return this.#cookies[slot] === cookie ? this.#requests[slot] : undefined
  }

  /** The request with that cookie, which waits, has its last reply. */
  give(cookie: number): void {
    const slot = cookie % REPLY_SLOTS
    assert(this.at(cookie) !== undefined, 'a reply ends a request that waits')
    this.#requests[slot] = undefined
    this.#free.push(slot)
  }
}
