/**
 * Callbacks and sleeping coroutines of one context, which any thread schedules by number.
 *
 * Invariants:
 * - However often a call is scheduled before the home thread takes it, it is taken once; after a
 *   schedule it is taken at least once.
 * - Calls are taken in the order of their tickets: whoever schedules after another schedule ended
 *   is taken after it.
 * - The number of a call carries its slot's generation, so a call that is gone is never mistaken
 *   for the next one in its slot.
 * - A thread may end anywhere in here; whoever sees it end rings the bell once more.
 *
 * Words: `bell` (a `Doorbell`), `tail` (tickets), and for each slot `state` and `order`; written by
 * who schedules, the state by the home thread, too; `bell` is waited on.
 */
import { assert } from '../util/errors.ts'
import { shared } from './atomics.ts'
import { Doorbell } from './doorbell.ts'

const BELL = 0
const TAIL = 1
const SLOTS = 2
const SLOT_WORDS = 2
const STATE = 0
const ORDER = 1

const PENDING = 1
const SCHEDULED = 2
const DELETED = 4
const IDLE = 8
/** The generation stands above the bits, in 24 bits. */
const GENERATION_SHIFT = 8
/** Slots a number can name, in its low 8 bits. */
const MOST_SLOTS = 256

/** A call that the home thread took. */
export interface TakenCall {
  /** Its slot. */
  readonly slot: number
  /** `run` = its callback is wanted; `idle` = with other work; `delete` = it is gone. */
  readonly kind: 'run' | 'idle' | 'delete' | 'nothing'
}

/** A view of the list. */
export class CallList {
  /** The words. */
  readonly words: Int32Array
  /** How many calls there may be at a time. */
  readonly capacity: number
  /** Rung after every change. */
  readonly bell: Doorbell

  /** A view over words that `create` made. */
  constructor(words: Int32Array) {
    this.words = words
    this.capacity = (words.length - SLOTS) / SLOT_WORDS
    this.bell = new Doorbell(words, BELL)
  }

  /** An empty list for up to 256 calls. */
  static create(capacity: number): CallList {
    assert(capacity > 0 && capacity <= MOST_SLOTS, 'a call list has 1 to 256 slots')
    const words = SLOTS + capacity * SLOT_WORDS
    return new CallList(new Int32Array(new SharedArrayBuffer(words * 4)))
  }

  /** The number of the call that has a slot now. Home thread only. */
  numberOf(slot: number): number {
    return (shared.load(this.words, this.#at(slot, STATE)) & ~0xff) | slot
  }

  /** Asks for a call; false when it was asked for already, or is gone. Any thread. */
  schedule(call: number): boolean {
    return this.#mark(call, SCHEDULED)
  }

  /** The same, to be run with other work, within 10 ms. Any thread. */
  scheduleIdle(call: number): boolean {
    return this.#mark(call, SCHEDULED | IDLE)
  }

  /** Asks for the end of a call; it is not run after that. Any thread. */
  delete(call: number): boolean {
    return this.#mark(call, DELETED)
  }

  /** Takes a schedule back. Home thread only. */
  cancel(slot: number): void {
    shared.and(this.words, this.#at(slot, STATE), ~SCHEDULED)
  }

  /** Frees the slot for another call; the old number is refused from now on. Home thread only. */
  retire(slot: number): void {
    const at = this.#at(slot, STATE)
    const next = (shared.load(this.words, at) >>> GENERATION_SHIFT) + 1
    shared.store(this.words, at, next << GENERATION_SHIFT)
  }

  /** What was scheduled in the first `slots` slots, oldest first. Home thread only. */
  take(slots: number): TakenCall[] {
    // Tickets from here on wait for the next take: the ones before them may be in slots that
    // were looked at already.
    const limit = shared.load(this.words, TAIL)
    const found: { readonly slot: number; readonly age: number }[] = []
    for (let slot = 0; slot < slots; slot += 1) {
      if ((shared.load(this.words, this.#at(slot, STATE)) & PENDING) === 0) continue
      const age = (limit - shared.load(this.words, this.#at(slot, ORDER))) | 0
      if (age > 0) found.push({ slot, age })
    }
    found.sort((a, b) => b.age - a.age)
    return found.map(({ slot }) => ({ slot, kind: this.#take(slot) }))
  }

  #take(slot: number): TakenCall['kind'] {
    // Cleared before the callback runs, so that it may be scheduled again from inside.
    const at = this.#at(slot, STATE)
    const state = shared.and(this.words, at, ~(PENDING | SCHEDULED | IDLE))
    if ((state & DELETED) !== 0) return 'delete'
    if ((state & SCHEDULED) === 0) return 'nothing'
    return (state & IDLE) !== 0 ? 'idle' : 'run'
  }

  #mark(call: number, bits: number): boolean {
    const slot = call & (MOST_SLOTS - 1)
    const at = this.#at(slot, STATE)
    for (let ordered = false; ; ) {
      const state = shared.load(this.words, at)
      if (((state ^ call) & ~0xff) !== 0 || (state & DELETED) !== 0) return false
      if ((state & PENDING) === 0 && !ordered) {
        ordered = true
        shared.store(this.words, this.#at(slot, ORDER), shared.add(this.words, TAIL, 1))
      }
      const before = shared.compareExchange(this.words, at, state, state | bits | PENDING)
      if (before !== state) continue
      // Also when it was pending: the order may have moved behind what is being taken now.
      this.bell.ring()
      return (before & SCHEDULED) === 0
    }
  }

  #at(slot: number, word: number): number {
    return SLOTS + slot * SLOT_WORDS + word
  }
}
