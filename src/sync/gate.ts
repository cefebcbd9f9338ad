/**
 * The gate of a node: counts requests in flight and keeps new ones out while somebody drains.
 *
 * Invariants:
 * - A worker announces itself in the in-flight count before it looks at the quiesce count; a drain
 *   owner raises the quiesce count before it looks at the in-flight count. So one of the two sees
 *   the other, whatever the order.
 * - The main thread's requests are counted, never refused: the owner of a drain may use the node.
 * - At rest both counts are zero.
 *
 * Words: `quiesce` written by the drain owner (main thread), waited on by `enterBlocking`;
 * `in-flight` written by every user, waited on by the drain owner.
 */
import { assert } from '../util/errors.ts'
import { shared } from './atomics.ts'
import { WordWait } from './word-wait.ts'

const QUIESCE = 0
const IN_FLIGHT = 1
/**
 * One request in the in-flight word. The low 8 bits count threads that wait for idle, so that
 * ending a request learns in the same step whether somebody must be woken: up to 255 threads and
 * 8 million requests.
 */
const REQUEST = 256

/** A view of one gate; every thread that uses the node makes its own over the same words. */
export class Gate {
  /** How many words a gate takes. */
  static readonly WORDS = 2
  /** The array that holds the words. */
  readonly words: Int32Array
  readonly #quiesce: number
  readonly #inFlight: number
  readonly #ledger: Int32Array | undefined
  readonly #idle: WordWait
  readonly #open: WordWait

  /**
   * A view over `words` from `index`. A worker passes its `ledger`, one word of its own in which
   * what it holds is counted, so that `forgive` can take it back when the worker dies.
   */
  constructor(words: Int32Array, index = 0, ledger?: Int32Array) {
    assert(index >= 0 && index + Gate.WORDS <= words.length, 'a gate lies inside its array')
    this.words = words
    this.#quiesce = index + QUIESCE
    this.#inFlight = index + IN_FLIGHT
    this.#ledger = ledger
    this.#idle = new WordWait(words, this.#inFlight, {
      ready: (value) => value >>> 8 === 0,
      register: () => shared.add(words, this.#inFlight, 1),
      unregister: () => shared.sub(words, this.#inFlight, 1),
    })
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

  /** How many requests are in flight, in all threads. */
  get inFlight(): number {
    return shared.load(this.words, this.#inFlight) >>> 8
  }

  /** A request of the main thread begins; never refused. */
  begin(): void {
    shared.add(this.words, this.#inFlight, REQUEST)
  }

  /** A request ends, of the main thread or one that `tryEnter` or `enterBlocking` let in. */
  end(): void {
    if (this.#ledger !== undefined) shared.sub(this.#ledger, 0, 1)
    this.#leave(REQUEST)
  }

  /** A request of a worker begins, unless the gate is closed; answers whether it did. */
  tryEnter(): boolean {
    shared.add(this.words, this.#inFlight, REQUEST)
    if (this.#ledger !== undefined) shared.add(this.#ledger, 0, 1)
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
    return this.#idle.wait()
  }

  /** Waits until no drain holds the gate closed. */
  whenOpen(): Promise<void> | undefined {
    return this.#open.wait()
  }

  /** The blocking form of `whenIdle`, for a worker that drains. */
  waitIdle(): void {
    shared.add(this.words, this.#inFlight, 1)
    for (;;) {
      const value = shared.load(this.words, this.#inFlight)
      if (value >>> 8 === 0) break
      shared.wait(this.words, this.#inFlight, value)
    }
    shared.sub(this.words, this.#inFlight, 1)
  }

  /** Ends everything that a dead worker had in flight, by its ledger; answers how much it was. */
  forgive(ledger: Int32Array): number {
    const held = shared.exchange(ledger, 0, 0)
    if (held > 0) this.#leave(held * REQUEST)
    return held
  }

  /** Lets the host's waits on the words go; for the end of the node's life. */
  dispose(): void {
    this.#idle.release()
    this.#open.release()
  }

  #leave(amount: number): void {
    const before = shared.sub(this.words, this.#inFlight, amount)
    assert(before >>> 8 >= amount >>> 8, 'a request ends once')
    const left = before - amount
    // Idle, and somebody waits for it.
    if (left > 0 && left < REQUEST) this.#wake(left)
  }

  #wake(waiters: number): void {
    const mine = this.#idle.waiting
    if (!mine || waiters > 1) shared.notify(this.words, this.#inFlight)
    if (mine) this.#idle.poke()
  }
}
