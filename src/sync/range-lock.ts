/**
 * Keeps requests of any thread apart that overlap, when one of them is serialising.
 *
 * Invariants:
 * - Two requests conflict when their ranges overlap and at least one is serialising. Of two that
 *   conflict the one with the later ticket waits, so nobody waits in a circle.
 * - A request announces that it takes a ticket before it takes it; whoever holds a later ticket sees
 *   the announcement and waits for the range behind it.
 * - The state word of a slot carries the ticket, so a slot used again is never taken for the old one.
 * - A slot names its thread from the step that takes it: in the state while a ticket is chosen,
 *   then in the owner word. So what a thread that ended had is found, wherever it ended.
 *
 * Words: `tickets`, `used`, `freed`, `crowd`, and for each slot state, owner and range; written by
 * the request that has the slot, and marked by who waits; the state is waited on.
 */
import { assert } from '../util/errors.ts'
import { shared } from './atomics.ts'
import { ChangeWait } from './word-wait.ts'

const TICKETS = 0
const USED = 1
const FREED = 2
const CROWD = 3
const SLOTS = 4

const STATE = 0
const OWNER = 1
const START_LOW = 2
const START_HIGH = 3
const END_LOW = 4
const END_HIGH = 5
const SLOT_WORDS = 6
/** Requests that may hold or wait at once in all threads; more wait for a slot. */
const SLOT_COUNT = 64

const CHOOSING = 1
const ACTIVE = 2
const SERIALISING = 4
const WAITED = 8
/**
 * Tickets lie above the flags, 28 bits; compared by difference, so they may wrap. While a ticket is
 * chosen the thread's number lies there.
 */
const TICKET_SHIFT = 4

/** A view of a range lock for one thread. */
export class RangeLock {
  /** How many words a range lock takes. */
  static readonly WORDS: number = SLOTS + SLOT_COUNT * SLOT_WORDS
  /** The array that holds the words. */
  readonly words: Int32Array
  readonly #index: number
  readonly #me: number
  /** State of a slot that this thread has taken and has no ticket for yet. */
  readonly #choosing: number
  readonly #waits: (ChangeWait | undefined)[] = []
  readonly #freed: ChangeWait

  /** A view for the thread with number `me`, above 0. */
  constructor(words: Int32Array, index: number, me: number) {
    assert(index >= 0 && index + RangeLock.WORDS <= words.length, 'a lock lies inside its array')
    this.words = words
    this.#index = index
    this.#me = me
    this.#choosing = (me << TICKET_SHIFT) | CHOOSING
    this.#freed = new ChangeWait(words, index + FREED)
  }

  /** A range lock with words of its own. */
  static create(me: number): RangeLock {
    return new RangeLock(new Int32Array(new SharedArrayBuffer(RangeLock.WORDS * 4)), 0, me)
  }

  /** How many requests hold or wait; 0 at rest. */
  get held(): number {
    let count = 0
    for (let slot = 0; slot < this.#used; slot += 1) if (this.#load(slot, STATE) !== 0) count += 1
    return count
  }

  /**
   * Takes a range; answers the slot to unlock, at once or after the requests before it. For a wait
   * inside a drained section the requests before it must be able to end.
   */
  lock(offset: number, bytes: number, serialising: boolean): number | Promise<number> {
    const slot = this.#takeSlot()
    if (slot < 0) return this.#lockCrowded(offset, bytes, serialising)
    this.#announce(slot, offset, bytes, serialising)
    const wait = this.#nextWait(slot)
    return wait === undefined ? slot : this.#lockAfter(slot, wait)
  }

  /** The blocking form, for workers. */
  lockBlocking(offset: number, bytes: number, serialising: boolean): number {
    let slot = this.#takeSlot()
    while (slot < 0) {
      shared.add(this.words, this.#index + CROWD, 1)
      const freed = shared.load(this.words, this.#index + FREED)
      slot = this.#takeSlot()
      if (slot < 0) shared.wait(this.words, this.#index + FREED, freed)
      shared.sub(this.words, this.#index + CROWD, 1)
      if (slot < 0) slot = this.#takeSlot()
    }
    this.#announce(slot, offset, bytes, serialising)
    for (;;) {
      const other = this.#markBlocker(slot)
      if (other === undefined) return slot
      shared.wait(this.words, this.#at(other.slot, STATE), other.state)
    }
  }

  /** Takes a range if nothing is in its way; answers the slot, or -1. */
  tryLock(offset: number, bytes: number, serialising: boolean): number {
    const slot = this.#takeSlot()
    if (slot < 0) return -1
    this.#announce(slot, offset, bytes, serialising)
    if (this.#findBlocker(slot) === undefined) return slot
    this.unlock(slot)
    return -1
  }

  /** Gives a range up. */
  unlock(slot: number): void {
    const before = shared.exchange(this.words, this.#at(slot, STATE), 0)
    assert((before & ACTIVE) !== 0, 'unlock follows lock')
    this.#wakeAfter(slot, before)
  }

  /** Gives up every range of a thread that ended; answers how many. */
  releaseDead(thread: number): number {
    let count = 0
    for (let slot = 0; slot < this.#used; slot += 1) {
      const state = this.#load(slot, STATE)
      const choosing = (state & CHOOSING) !== 0
      const owner = choosing ? state >>> TICKET_SHIFT : this.#load(slot, OWNER)
      if (state !== 0 && owner === thread) {
        shared.store(this.words, this.#at(slot, STATE), 0)
        count += 1
      }
      // A slot that is free may be one it gave up, and then it ended before it woke who waits.
      this.#wakeState(slot)
    }
    this.#wakeCrowd()
    return count
  }

  /** Lets the host's waits on the words go; for the end of the disk's life. */
  dispose(): void {
    this.#freed.release()
    for (const wait of this.#waits) wait?.release()
  }

  get #used(): number {
    return shared.load(this.words, this.#index + USED)
  }

  #at(slot: number, word: number): number {
    return this.#index + SLOTS + slot * SLOT_WORDS + word
  }

  #load(slot: number, word: number): number {
    return shared.load(this.words, this.#at(slot, word))
  }

  #store(slot: number, word: number, value: number): void {
    shared.store(this.words, this.#at(slot, word), value)
  }

  #takeSlot(): number {
    for (let slot = 0; slot < SLOT_COUNT; slot += 1) {
      // Raised before the slot is taken: who scans later than this request's ticket sees the slot.
      this.#raiseUsed(slot + 1)
      const at = this.#at(slot, STATE)
      if (shared.compareExchange(this.words, at, 0, this.#choosing) === 0) return slot
    }
    return -1
  }

  #raiseUsed(count: number): void {
    for (;;) {
      const used = this.#used
      if (used >= count) return
      shared.compareExchange(this.words, this.#index + USED, used, count)
    }
  }

  #announce(slot: number, offset: number, bytes: number, serialising: boolean): void {
    const end = offset + bytes
    this.#store(slot, OWNER, this.#me)
    this.#store(slot, START_LOW, offset | 0)
    this.#store(slot, START_HIGH, Math.floor(offset / 0x1_0000_0000))
    this.#store(slot, END_LOW, end | 0)
    this.#store(slot, END_HIGH, Math.floor(end / 0x1_0000_0000))
    const ticket = shared.add(this.words, this.#index + TICKETS, 1)
    const state = (ticket << TICKET_SHIFT) | ACTIVE | (serialising ? SERIALISING : 0)
    const before = shared.exchange(this.words, this.#at(slot, STATE), state)
    if ((before & WAITED) !== 0) this.#wakeState(slot)
  }

  /** The first request that this one must wait for, with its state as it was seen. */
  #findBlocker(slot: number): { slot: number; state: number } | undefined {
    const mine = this.#load(slot, STATE)
    const used = this.#used
    for (let other = 0; other < used; other += 1) {
      if (other === slot) continue
      const state = this.#load(other, STATE)
      if (state !== 0 && this.#blocks(other, state, slot, mine)) return { slot: other, state }
    }
    return undefined
  }

  #blocks(other: number, state: number, slot: number, mine: number): boolean {
    if ((state & CHOOSING) !== 0) return true
    if (((state | mine) & SERIALISING) === 0) return false
    // The difference of the tickets, with the sign of 28 bits.
    const later = ((state & ~0xf) - (mine & ~0xf)) | 0
    if (later > 0) return false
    // A range that changed under the look belongs to a later ticket.
    const apart =
      this.#number(other, START_LOW) >= this.#number(slot, END_LOW) ||
      this.#number(other, END_LOW) <= this.#number(slot, START_LOW)
    return !apart
  }

  #number(slot: number, low: number): number {
    return this.#load(slot, low + 1) * 0x1_0000_0000 + (this.#load(slot, low) >>> 0)
  }

  /** Finds a blocker and tells it that somebody waits; its state is then the one to wait on. */
  #markBlocker(slot: number): { slot: number; state: number } | undefined {
    for (;;) {
      const other = this.#findBlocker(slot)
      if (other === undefined) return undefined
      const { state } = other
      if ((state & WAITED) !== 0) return other
      const at = this.#at(other.slot, STATE)
      const marked = state | WAITED
      if (shared.compareExchange(this.words, at, state, marked) === state) {
        return { slot: other.slot, state: marked }
      }
    }
  }

  #nextWait(slot: number): Promise<void> | undefined {
    for (;;) {
      const other = this.#markBlocker(slot)
      if (other === undefined) return undefined
      const wait = this.#waitOf(other.slot).wait(other.state)
      if (wait !== undefined) return wait
    }
  }

  #waitOf(slot: number): ChangeWait {
    const known = this.#waits[slot]
    if (known !== undefined) return known
    const wait = new ChangeWait(this.words, this.#at(slot, STATE))
    this.#waits[slot] = wait
    return wait
  }

  #lockAfter(slot: number, first: Promise<void>): Promise<number> {
    return first.then(() => {
      const wait = this.#nextWait(slot)
      return wait === undefined ? slot : this.#lockAfter(slot, wait)
    })
  }

  #lockCrowded(offset: number, bytes: number, serialising: boolean): number | Promise<number> {
    shared.add(this.words, this.#index + CROWD, 1)
    const wait = this.#nextSlot()
    return typeof wait === 'number'
      ? this.#lockUncrowded(wait, offset, bytes, serialising)
      : wait.then((slot) => this.#lockUncrowded(slot, offset, bytes, serialising))
  }

  #lockUncrowded(
    slot: number,
    offset: number,
    bytes: number,
    serialising: boolean,
  ): number | Promise<number> {
    shared.sub(this.words, this.#index + CROWD, 1)
    this.#announce(slot, offset, bytes, serialising)
    const wait = this.#nextWait(slot)
    return wait === undefined ? slot : this.#lockAfter(slot, wait)
  }

  /** A free slot, at once or when one was freed. */
  #nextSlot(): number | Promise<number> {
    for (;;) {
      const freed = shared.load(this.words, this.#index + FREED)
      const slot = this.#takeSlot()
      if (slot >= 0) return slot
      const wait = this.#freed.wait(freed)
      if (wait !== undefined) return wait.then(() => this.#nextSlot())
    }
  }

  #wakeAfter(slot: number, before: number): void {
    if ((before & WAITED) !== 0) this.#wakeState(slot)
    if (shared.load(this.words, this.#index + CROWD) !== 0) this.#wakeCrowd()
  }

  #wakeCrowd(): void {
    shared.add(this.words, this.#index + FREED, 1)
    shared.notify(this.words, this.#index + FREED)
    this.#freed.poke()
  }

  #wakeState(slot: number): void {
    shared.notify(this.words, this.#at(slot, STATE))
    this.#waits[slot]?.poke()
  }
}
