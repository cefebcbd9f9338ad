/**
 * The gate of a node: counts requests in flight and keeps new ones out while somebody drains.
 *
 * Invariants:
 * - A worker announces itself in flight before it looks at the quiesce count; a drain owner raises
 *   the quiesce count before it looks at what is in flight. So one of the two sees the other,
 *   whatever the order.
 * - The main thread's requests are counted, never refused: the owner of a drain may use the node.
 * - At rest all words are zero.
 * - A worker with a lane may end anywhere, even between two operations: its lane is one bit, so
 *   whoever sees the end clears it without knowing how far the worker came.
 *
 * Words: `quiesce` written by the drain owner (main thread), waited on by `enterBlocking`;
 * `in-flight` and `lanes` written by every user, waited on by the drain owner.
 */
import { assert } from '../util/errors.ts'
import { shared } from './atomics.ts'
import { WordWait } from './word-wait.ts'

const QUIESCE = 0
const IN_FLIGHT = 1
const LANES = 2
/**
 * One request in the in-flight word, and the first lane in the lanes word. The low 8 bits of both
 * count threads that wait for idle, so that ending a request learns in the same step whether
 * somebody must be woken: up to 255 threads, 8 million requests, 24 lanes.
 */
const REQUEST = 256
const WAITERS = REQUEST - 1

/** A view of one gate; every thread that uses the node makes its own over the same words. */
export class Gate {
  /** How many words a gate takes. */
  static readonly WORDS = 3
  /** How many workers can have a lane. */
  static readonly LANES = 24
  /** The array that holds the words. */
  readonly words: Int32Array
  readonly #quiesce: number
  readonly #inFlight: number
  readonly #lanes: number
  /** The bit of this view's lane; 0 when its requests are counted. */
  readonly #lane: number
  /** Requests of this view that are in the lane. */
  #inLane = 0
  readonly #idle: WordWait
  readonly #lanesIdle: WordWait
  readonly #open: WordWait

  /**
   * A view over `words` from `index`. A worker passes its `lane`, a number below `Gate.LANES` that
   * no other view of the gate has, so that `forgive` can take back what it holds when it dies.
   */
  constructor(words: Int32Array, index = 0, lane?: number) {
    assert(index >= 0 && index + Gate.WORDS <= words.length, 'a gate lies inside its array')
    this.words = words
    this.#quiesce = index + QUIESCE
    this.#inFlight = index + IN_FLIGHT
    this.#lanes = index + LANES
    this.#lane = lane === undefined ? 0 : bitOf(lane)
    this.#idle = idleWait(words, this.#inFlight)
    this.#lanesIdle = idleWait(words, this.#lanes)
    this.#open = new WordWait(words, this.#quiesce, { ready: (value) => value === 0 })
  }

  /** A gate with words of its own. */
  static create(): Gate {
    return new Gate(new Int32Array(new SharedArrayBuffer(Gate.WORDS * 4)))
  }

  /** The memory of the words, to be handed to another thread. */
  get sab(): SharedArrayBuffer {
    const buffer = this.words.buffer
    assert(buffer instanceof SharedArrayBuffer, 'the words of a gate are shared')
    return buffer
  }

  /** How many drains hold the gate closed. */
  get quiesceCount(): number {
    return shared.load(this.words, this.#quiesce)
  }

  /** How many requests are in flight, in all threads; those in one lane count as one. */
  get inFlight(): number {
    let count = shared.load(this.words, this.#inFlight) >>> 8
    for (let lanes = shared.load(this.words, this.#lanes) >>> 8; lanes !== 0; lanes &= lanes - 1)
      count += 1
    return count
  }

  /** A request of the main thread begins; never refused. */
  begin(): void {
    if (this.#lane === 0) shared.add(this.words, this.#inFlight, REQUEST)
    else this.#enterLane()
  }

  /** A request ends, of the main thread or one that `tryEnter` or `enterBlocking` let in. */
  end(): void {
    if (this.#lane !== 0) {
      this.#leaveLane()
      return
    }
    const before = shared.sub(this.words, this.#inFlight, REQUEST)
    assert(before >>> 8 > 0, 'a request ends once')
    this.#wakeIfIdle(this.#inFlight, before - REQUEST, this.#idle)
  }

  /** A request of a worker begins, unless the gate is closed; answers whether it did. */
  tryEnter(): boolean {
    this.begin()
    if (shared.load(this.words, this.#quiesce) === 0) return true
    this.end()
    return false
  }

  /** A request of a worker begins; blocks the worker while the gate is closed. */
  enterBlocking(): void {
    while (!this.tryEnter()) {
      const count = shared.load(this.words, this.#quiesce)
      if (count !== 0) shared.wait(this.words, this.#quiesce, count)
    }
  }

  /** Closes the gate for workers; nests. Answers the new count. */
  quiesce(): number {
    return shared.add(this.words, this.#quiesce, 1) + 1
  }

  /** Ends one `quiesce`; the last one opens the gate. Answers the new count. */
  unquiesce(): number {
    const count = shared.sub(this.words, this.#quiesce, 1) - 1
    assert(count >= 0, 'unquiesce follows quiesce')
    if (count === 0) {
      shared.notify(this.words, this.#quiesce)
      this.#open.poke()
    }
    return count
  }

  /** Waits until nothing is in flight. Something may begin again unless the gate is closed. */
  whenIdle(): Promise<void> | undefined {
    const counted = this.#idle.wait()
    const lanes = this.#lanesIdle.wait()
    if (counted === undefined || lanes === undefined) return counted ?? lanes
    return counted.then(() => this.whenIdle())
  }

  /** Waits until no drain holds the gate closed. */
  whenOpen(): Promise<void> | undefined {
    return this.#open.wait()
  }

  /** The blocking form of `whenIdle`, for a worker that drains. */
  waitIdle(): void {
    this.#waitIdle(this.#inFlight)
    this.#waitIdle(this.#lanes)
  }

  /** Ends what a dead worker had in flight, by its lane; answers whether it had anything. */
  forgive(lane: number): boolean {
    const bit = bitOf(lane)
    const before = shared.and(this.words, this.#lanes, ~bit)
    // Also when it had nothing: it may have ended between its request and the wake-up it owed.
    this.#wakeIfIdle(this.#lanes, before & ~bit, this.#lanesIdle)
    return (before & bit) !== 0
  }

  /** Lets the host's waits on the words go; for the end of the node's life. */
  dispose(): void {
    this.#idle.release()
    this.#lanesIdle.release()
    this.#open.release()
  }

  #enterLane(): void {
    if (this.#inLane === 0) shared.or(this.words, this.#lanes, this.#lane)
    this.#inLane += 1
  }

  #leaveLane(): void {
    assert(this.#inLane > 0, 'a request ends once')
    this.#inLane -= 1
    if (this.#inLane > 0) return
    const left = shared.and(this.words, this.#lanes, ~this.#lane) & ~this.#lane
    this.#wakeIfIdle(this.#lanes, left, this.#lanesIdle)
  }

  #wakeIfIdle(index: number, left: number, wait: WordWait): void {
    // Nothing in flight, and somebody waits for it.
    if (left === 0 || (left & WAITERS) !== left) return
    const mine = wait.waiting
    if (!mine || left > 1) shared.notify(this.words, index)
    if (mine) wait.poke()
  }

  #waitIdle(index: number): void {
    shared.add(this.words, index, 1)
    for (;;) {
      const value = shared.load(this.words, index)
      if (value >>> 8 === 0) break
      shared.wait(this.words, index, value)
    }
    shared.sub(this.words, index, 1)
  }
}

function bitOf(lane: number): number {
  assert(lane >= 0 && lane < Gate.LANES, 'a gate has a lane of that number')
  return REQUEST << lane
}

function idleWait(words: Int32Array, index: number): WordWait {
  return new WordWait(words, index, {
    ready: (value) => value >>> 8 === 0,
    register: () => shared.add(words, index, 1),
    unregister: () => shared.sub(words, index, 1),
  })
}
