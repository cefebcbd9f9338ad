/**
 * The lock behind acquire and release of a context: recursive, first come first served, for threads.
 *
 * Invariants:
 * - Tickets are served in the order they were taken. The slot of a ticket names its thread from the
 *   step that takes it until it is over or the thread is declared dead; only then the tail moves.
 * - A ticket is over when its slot is free for the ticket 64 later; only then the head moves. So a
 *   slot tells by itself how far its ticket came, and any thread can finish what another began.
 * - Only the owner writes its own number into the owner word, so reading it there needs no lock.
 * - A thread may end anywhere, even between two operations. `releaseDead` is called after that, and
 *   gives the wake-up that the dead thread may have owed.
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
const SLOT_BITS = 6
const SLOT_COUNT = 1 << SLOT_BITS
/**
 * Low half of a slot: 0 free, or a thread. The high half is the round (ticket / 64) it serves; a
 * round comes again after four million tickets, far longer than a thread stands between two steps.
 */
const WHO = 0xffff
const ROUND = 0x1_0000
/** In a slot: its thread died. */
const DEAD = WHO
/** In a slot beside a thread: this thread is passing over a dead one. */
const PASSING = 0x8000

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

  /**
   * A view for the thread with number `me`, above 0 and unlike that of every other living thread. A
   * host numbers its threads upwards for ever; numbers 32766 apart count as one.
   */
  constructor(words: Int32Array, index: number, me: number, name = 'context') {
    assert(index >= 0 && index + ContextLock.WORDS <= words.length, 'a lock lies inside its array')
    assert(me > 0, 'a thread number is above 0')
    this.words = words
    this.#index = index
    this.#me = folded(me)
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
    // The slot of the ticket that is served is free only while nobody has taken that ticket.
    if (!this.#claim(shared.load(this.words, this.#index + HEAD))) return false
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
    this.#finish(shared.load(this.words, this.#index + HEAD))
    this.#passDead()
  }

  /** Takes away what a thread that ended holds or waits for. Waiters get an error if it held it. */
  releaseDead(thread: number): void {
    const dead = folded(thread)
    // A ticket that is not over lies between head and tail, or is the tail itself, just taken.
    let ticket = shared.load(this.words, this.#index + HEAD)
    const last = shared.load(this.words, this.#index + TAIL)
    for (let more = true; more; ticket = (ticket + 1) | 0) {
      const slot = shared.load(this.words, this.#slot(ticket))
      const who = slot & WHO
      if (who === dead || who === (dead | PASSING)) {
        shared.compareExchange(this.words, this.#slot(ticket), slot, slot | DEAD)
      }
      more = ticket !== last
    }
    this.#passDead()
    shared.notify(this.words, this.#index + HEAD)
    this.#wait.poke()
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
    for (;;) {
      const ticket = shared.load(this.words, this.#index + TAIL)
      if (this.#claim(ticket)) return ticket
    }
  }

  /** Takes the ticket if nobody did; whoever has it, the tail has passed it afterwards. */
  #claim(ticket: number): boolean {
    const free = roundOf(ticket)
    const before = shared.compareExchange(this.words, this.#slot(ticket), free, free | this.#me)
    if ((before & ~WHO) === free) this.#passTail(ticket)
    else assert(this.#tailPassed(ticket), 'no more threads than slots')
    return before === free
  }

  #slot(ticket: number): number {
    return this.#index + SLOTS + (ticket & (SLOT_COUNT - 1))
  }

  #passTail(ticket: number): void {
    shared.compareExchange(this.words, this.#index + TAIL, ticket, (ticket + 1) | 0)
  }

  #tailPassed(ticket: number): boolean {
    return shared.load(this.words, this.#index + TAIL) !== ticket
  }

  #enter(): void {
    shared.store(this.words, this.#index + DEPTH, 1)
    shared.store(this.words, this.#index + OWNER, this.#me)
  }

  /** The ticket at the head is over: by its owner, or by who passes over a dead one. */
  #finish(head: number): void {
    shared.store(this.words, this.#index + OWNER, 0)
    shared.store(this.words, this.#slot(head), roundOf(head + SLOT_COUNT))
    this.#advance(head)
  }

  #advance(head: number): void {
    const next = (head + 1) | 0
    // Another thread may have found the slot free and moved the head already.
    shared.compareExchange(this.words, this.#index + HEAD, head, next)
    // Whoever takes a ticket after this look sees the new head by itself.
    if (shared.load(this.words, this.#index + TAIL) === next) return
    shared.notify(this.words, this.#index + HEAD)
    this.#wait.poke()
  }

  /** Moves the head past tickets whose threads died, and past those that died while they left. */
  #passDead(): void {
    for (;;) {
      const head = shared.load(this.words, this.#index + HEAD)
      const slot = this.#slot(head)
      const word = shared.load(this.words, slot)
      if (word === roundOf(head + SLOT_COUNT)) {
        this.#advance(head)
        continue
      }
      if (word !== (roundOf(head) | DEAD)) return
      const mine = roundOf(head) | PASSING | this.#me
      // Several threads may be here; one of them does it, and is passed over itself if it dies.
      if (shared.compareExchange(this.words, slot, word, mine) !== word) return
      this.#passTail(head)
      if (shared.load(this.words, this.#index + DEPTH) > 0) {
        shared.add(this.words, this.#index + DEATHS, 1)
        shared.store(this.words, this.#index + DEPTH, 0)
      }
      this.#finish(head)
    }
  }

  #refuseAfterDeath(deaths: number): void {
    if (shared.load(this.words, this.#index + DEATHS) === deaths) return
    this.release()
    throw new BlockError('EIO', `The thread that held '${this.#name}' died`, { op: 'acquire' })
  }
}

/** A thread's number as it stands in a slot: 1 to 32766. */
function folded(thread: number): number {
  return ((thread - 1) % (PASSING - 2)) + 1
}

/** The free word of a ticket's slot. */
function roundOf(ticket: number): number {
  return ((ticket >>> SLOT_BITS) * ROUND) | 0
}
