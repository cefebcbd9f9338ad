/**
 * The lock behind acquire and release of a context: recursive, first come first served, for threads.
 *
 * Invariants:
 * - Tickets are served in the order they were taken. The slot of a ticket names its owner from the
 *   moment it is taken until it is released or its owner is declared dead.
 * - Only the owner writes its own number into the owner word, so reading it there needs no lock.
 * - A thread is declared dead only after it ended. It ends while it waits, calls or loops, never
 *   between two neighbouring operations of this file.
 *
 * Words: `tail`, `head`, `owner`, `depth`, `deaths` and one slot a ticket; written by whoever takes
 * or releases; `head` is waited on.
 */
import { assert, BlockError } from '../util/errors.ts'
import { shared } from './atomics.ts'
import { WordWait } from './word-wait.ts'

const TAIL = 0
const HEAD = 1
const OWNER = 2
const DEPTH = 3
const DEATHS = 4
const SLOTS = 5
/** One ticket a thread; 64 threads are far more than cores. A power of two, for the mask. */
const SLOT_COUNT = 64
/** In a slot: its owner died. */
const DEAD = -1

/** A view of the lock for one thread. Lock order: context, then graph, then node, then job. */
export class ContextLock {
  /** How many words a lock takes. */
  static readonly WORDS: number = SLOTS + SLOT_COUNT
  /** The array that holds the words. */
  readonly words: Int32Array
  readonly #index: number
  readonly #me: number
  readonly #name: string
  readonly #wait: WordWait
  #ticket = 0
  #pending: Promise<void> | undefined

  /** A view for the thread with number `me`, above 0 and unlike that of every other thread. */
  constructor(words: Int32Array, index: number, me: number, name = 'context') {
    assert(index >= 0 && index + ContextLock.WORDS <= words.length, 'a lock lies inside its array')
    assert(me > 0, 'a thread number is above 0')
    this.words = words
    this.#index = index
    this.#me = me
    this.#name = name
    this.#wait = new WordWait(words, index + HEAD, { ready: (head) => head === this.#ticket })
  }

  /** A lock with words of its own. */
  static create(me: number, name?: string): ContextLock {
    const words = new Int32Array(new SharedArrayBuffer(ContextLock.WORDS * 4))
    return new ContextLock(words, 0, me, name)
  }

  /** Number of the thread that holds it; 0 when none does. */
  get owner(): number {
    return shared.load(this.words, this.#index + OWNER)
  }

  /** How often the owner holds it. */
  get depth(): number {
    return shared.load(this.words, this.#index + DEPTH)
  }

  /** Whether this thread holds it. */
  get held(): boolean {
    return this.owner === this.#me
  }

  /** Takes it if that needs no waiting; answers whether it did. */
  tryAcquire(): boolean {
    if (this.#again()) return true
    const ticket = shared.load(this.words, this.#index + HEAD)
    const next = (ticket + 1) | 0
    const tail = shared.compareExchange(this.words, this.#index + TAIL, ticket, next)
    if (tail !== ticket) return false
    this.#fillSlot(ticket)
    this.#enter()
    return true
  }

  /** Takes it, blocking the thread; for workers. Error: EIO when the owner died meanwhile. */
  acquireBlocking(): void {
    if (this.#again()) return
    const deaths = shared.load(this.words, this.#index + DEATHS)
    const ticket = this.#takeTicket()
    for (;;) {
      const head = shared.load(this.words, this.#index + HEAD)
      if (head === ticket) break
      shared.wait(this.words, this.#index + HEAD, head)
    }
    this.#enter()
    this.#refuseAfterDeath(deaths)
  }

  /** Takes it without blocking; `undefined` = taken. Error: EIO when the owner died meanwhile. */
  acquire(): Promise<void> | undefined {
    if (this.#again()) return undefined
    if (this.#pending !== undefined) return this.#pending.then(() => this.acquire())
    const deaths = shared.load(this.words, this.#index + DEATHS)
    this.#ticket = this.#takeTicket()
    const wait = this.#wait.wait()
    if (wait === undefined) {
      this.#enter()
      this.#refuseAfterDeath(deaths)
      return undefined
    }
    this.#pending = wait.then(() => {
      this.#pending = undefined
      this.#enter()
      this.#refuseAfterDeath(deaths)
    })
    return this.#pending
  }

  /** Ends one acquire; the last one hands the lock to the oldest waiter. */
  release(): void {
    const owner = shared.load(this.words, this.#index + OWNER)
    assert(owner === this.#me, 'only the owner releases a lock')
    const depth = shared.sub(this.words, this.#index + DEPTH, 1) - 1
    if (depth > 0) return
    const ticket = shared.load(this.words, this.#index + HEAD)
    shared.store(this.words, this.#slot(ticket), 0)
    this.#advance(ticket)
    this.#skipDead()
  }

  /** Takes away what a thread that ended holds or waits for. Waiters get an error if it held it. */
  releaseDead(thread: number): void {
    for (let i = 0; i < SLOT_COUNT; i += 1) {
      shared.compareExchange(this.words, this.#index + SLOTS + i, thread, DEAD)
    }
    this.#skipDead()
  }

  /** Lets the host's wait on the words go; for the end of the context's life. */
  dispose(): void {
    this.#wait.release()
  }

  #again(): boolean {
    if (shared.load(this.words, this.#index + OWNER) !== this.#me) return false
    shared.add(this.words, this.#index + DEPTH, 1)
    return true
  }

  #takeTicket(): number {
    const ticket = shared.add(this.words, this.#index + TAIL, 1)
    this.#fillSlot(ticket)
    return ticket
  }

  #fillSlot(ticket: number): void {
    const before = shared.exchange(this.words, this.#slot(ticket), this.#me)
    assert(before === 0, 'no more threads than slots')
  }

  #slot(ticket: number): number {
    return this.#index + SLOTS + (ticket & (SLOT_COUNT - 1))
  }

  #enter(): void {
    shared.store(this.words, this.#index + DEPTH, 1)
    shared.store(this.words, this.#index + OWNER, this.#me)
  }

  #advance(ticket: number): void {
    shared.store(this.words, this.#index + OWNER, 0)
    const next = (ticket + 1) | 0
    shared.store(this.words, this.#index + HEAD, next)
    // Whoever takes a ticket after this look sees the new head by itself.
    if (shared.load(this.words, this.#index + TAIL) === next) return
    shared.notify(this.words, this.#index + HEAD)
    this.#wait.poke()
  }

  #skipDead(): void {
    for (;;) {
      const head = shared.load(this.words, this.#index + HEAD)
      const slot = this.#slot(head)
      // Several threads may be here; whoever clears the slot moves on for all.
      if (shared.compareExchange(this.words, slot, DEAD, 0) !== DEAD) return
      const held = shared.exchange(this.words, this.#index + DEPTH, 0)
      if (held > 0) shared.add(this.words, this.#index + DEATHS, 1)
      this.#advance(head)
    }
  }

  #refuseAfterDeath(deaths: number): void {
    if (shared.load(this.words, this.#index + DEATHS) === deaths) return
    this.release()
    throw new BlockError('EIO', `The thread that held '${this.#name}' died`, { op: 'acquire' })
  }
}
