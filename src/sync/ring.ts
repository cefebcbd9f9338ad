/**
 * A queue of fixed-size records from one thread to another, without allocation.
 *
 * Invariants:
 * - One producer, one consumer. The producer alone moves the tail, the consumer alone the head.
 * - A record is written before the tail passes it and read before the head does.
 * - After `close` no push begins; what is in the ring can still be popped. A push that the other
 *   side's close overtakes may stay behind.
 *
 * Words: `head` written by the consumer, waited on by the producer; `tail` the other way round;
 * `sleepers` says which of them must be notified; then the slots, numbers of 64 bits.
 */
import { assert } from '../util/errors.ts'
import { shared } from './atomics.ts'
import { WordWait } from './word-wait.ts'

const HEAD = 0
const TAIL = 1
const SLEEPERS = 2
/** Header words; even, so that the slots are aligned. */
const HEADER = 4
/** Low bit of `head` and `tail`, so that closing changes the word a sleeper waits on. */
const CLOSED = 1
const STEP = 2
const CONSUMER = 1
const PRODUCER = 2
/** Looks before a blocking call sleeps: about two microseconds, a tenth of a sleep and wake-up. */
const SPIN = 128

/** What another thread needs to make its end of a ring; can be posted. */
export interface RingDescription {
  /** The memory. */
  readonly sab: SharedArrayBuffer
  /** How many records fit; a power of two. */
  readonly capacity: number
  /** Numbers in a record. */
  readonly slots: number
}

/** One end of a ring. */
export class Ring {
  /** What makes the other end. */
  readonly description: RingDescription
  readonly #words: Int32Array
  readonly #data: Float64Array
  readonly #mask: number
  readonly #slots: number
  readonly #spin: number
  readonly #readable: WordWait
  readonly #writable: WordWait

  /** An end over a description; `spin` is how often a blocking call looks before it sleeps. */
  constructor(description: RingDescription, spin: number = SPIN) {
    const { sab, capacity, slots } = description
    assert(Number.isInteger(Math.log2(capacity)), 'a capacity is a power of two')
    this.description = description
    this.#words = new Int32Array(sab, 0, HEADER)
    this.#data = new Float64Array(sab, HEADER * 4, capacity * slots)
    this.#mask = capacity - 1
    this.#slots = slots
    this.#spin = spin
    this.#readable = this.#side(TAIL, CONSUMER, () => this.readable)
    this.#writable = this.#side(HEAD, PRODUCER, () => this.writable)
  }

  /** An empty ring of `capacity` records (a power of two) with `slots` numbers each. */
  static create(capacity: number, slots: number): Ring {
    const sab = new SharedArrayBuffer(HEADER * 4 + capacity * slots * 8)
    return new Ring({ sab, capacity, slots })
  }

  /** How many records are in it. */
  get length(): number {
    const head = shared.load(this.#words, HEAD) >>> 1
    return ((shared.load(this.#words, TAIL) >>> 1) - head) & 0x7fff_ffff
  }

  /** Whether it was closed. */
  get closed(): boolean {
    return (shared.load(this.#words, TAIL) & CLOSED) !== 0
  }

  /** Whether a `pop` would not have to wait: a record is there, or it is closed. */
  get readable(): boolean {
    return this.length > 0 || this.closed
  }

  /** Whether a `push` would not have to wait: there is room, or it is closed. */
  get writable(): boolean {
    return this.length <= this.#mask || this.closed
  }

  /** Adds a record; answers false when there is no room or the ring is closed. */
  push(record: ArrayLike<number>): boolean {
    const tail = shared.load(this.#words, TAIL)
    const used = ((tail >>> 1) - (shared.load(this.#words, HEAD) >>> 1)) & 0x7fff_ffff
    if (used > this.#mask || (tail & CLOSED) !== 0) return false
    const base = ((tail >>> 1) & this.#mask) * this.#slots
    for (let i = 0; i < this.#slots; i += 1) shared.set(this.#data, base + i, record[i] ?? 0)
    shared.add(this.#words, TAIL, STEP)
    this.#wake(TAIL, CONSUMER, this.#readable)
    return true
  }

  /** Takes the oldest record into `into`; answers false when there is none. */
  pop(into: Float64Array): boolean {
    const head = shared.load(this.#words, HEAD)
    if (shared.load(this.#words, TAIL) >>> 1 === head >>> 1) return false
    const base = ((head >>> 1) & this.#mask) * this.#slots
    for (let i = 0; i < this.#slots; i += 1) into[i] = shared.get(this.#data, base + i)
    shared.add(this.#words, HEAD, STEP)
    this.#wake(HEAD, PRODUCER, this.#writable)
    return true
  }

  /** Adds a record, blocking while there is no room; false when the ring is closed. For workers. */
  pushBlocking(record: ArrayLike<number>): boolean {
    while (!this.push(record)) {
      if (this.closed) return false
      this.#sleep(HEAD, PRODUCER, () => this.writable)
    }
    return true
  }

  /** Takes a record, blocking while there is none; false when closed and empty. For workers. */
  popBlocking(into: Float64Array): boolean {
    while (!this.pop(into)) {
      // Looked at between two pops: a record pushed just before the close must not be left behind.
      if (this.closed) return this.pop(into)
      this.#sleep(TAIL, CONSUMER, () => this.readable)
    }
    return true
  }

  /** Waits until `readable`. */
  whenReadable(): Promise<void> | undefined {
    return this.#readable.wait()
  }

  /** Waits until `writable`. */
  whenWritable(): Promise<void> | undefined {
    return this.#writable.wait()
  }

  /** Ends it, from either side; wakes the other. */
  close(): void {
    for (const index of [TAIL, HEAD]) {
      shared.or(this.#words, index, CLOSED)
      shared.notify(this.#words, index)
    }
    this.#readable.poke()
    this.#writable.poke()
  }

  #side(index: number, sleeper: number, ready: () => boolean): WordWait {
    return new WordWait(this.#words, index, {
      ready,
      register: () => shared.or(this.#words, SLEEPERS, sleeper),
      unregister: () => shared.and(this.#words, SLEEPERS, ~sleeper),
    })
  }

  #wake(index: number, sleeper: number, local: WordWait): void {
    if ((shared.load(this.#words, SLEEPERS) & sleeper) === 0) return
    shared.notify(this.#words, index)
    local.poke()
  }

  #sleep(index: number, sleeper: number, ready: () => boolean): void {
    for (let i = 0; i < this.#spin; i += 1) if (ready()) return
    shared.or(this.#words, SLEEPERS, sleeper)
    for (;;) {
      const value = shared.load(this.#words, index)
      if (ready()) break
      shared.wait(this.#words, index, value)
    }
    shared.and(this.#words, SLEEPERS, ~sleeper)
  }
}
