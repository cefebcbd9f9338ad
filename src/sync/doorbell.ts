/**
 * A bell that any thread rings and one or more threads listen to.
 *
 * Invariants:
 * - Rings are counted, so one that comes before the listener listens is not lost.
 * - Several rings before the listener looks are one wake-up.
 *
 * Words: `bell`, bits 8…31 rings, bits 0…7 threads that wait; written by who rings and by waiters,
 * waited on by listeners.
 */
import { assert } from '../util/errors.ts'
import { shared } from './atomics.ts'
import { WordWait } from './word-wait.ts'

/** One ring in the word; below it stand the waiting threads. */
const RING = 256

/** A view of a bell. */
export class Doorbell {
  /** How many words a bell takes. */
  static readonly WORDS = 1
  /** The array that holds the word. */
  readonly words: Int32Array
  readonly #index: number
  readonly #wait: WordWait
  #seen = 0

  constructor(words: Int32Array, index = 0) {
    assert(index >= 0 && index < words.length, 'a bell lies inside its array')
    this.words = words
    this.#index = index
    this.#wait = new WordWait(words, index, {
      ready: (value) => value >>> 8 !== this.#seen,
      register: () => shared.add(words, index, 1),
      unregister: () => shared.sub(words, index, 1),
    })
  }

  /** A bell with a word of its own. */
  static create(): Doorbell {
    return new Doorbell(new Int32Array(new SharedArrayBuffer(4)))
  }

  /** How often it rang, modulo 2^24. */
  get count(): number {
    return shared.load(this.words, this.#index) >>> 8
  }

  /** Rings. */
  ring(): void {
    const before = shared.add(this.words, this.#index, RING)
    if ((before & (RING - 1)) === 0) return
    shared.notify(this.words, this.#index)
    this.#wait.poke()
  }

  /** Waits until the count is not `seen`; may be over early. `undefined` = it is not. */
  whenRung(seen: number): Promise<void> | undefined {
    if (!this.#wait.waiting) this.#seen = seen
    return this.#wait.wait()
  }

  /** The blocking form, for workers. */
  waitRung(seen: number): void {
    shared.add(this.words, this.#index, 1)
    for (;;) {
      const value = shared.load(this.words, this.#index)
      if (value >>> 8 !== seen) break
      shared.wait(this.words, this.#index, value)
    }
    shared.sub(this.words, this.#index, 1)
  }

  /** Lets the host's wait on the word go; for the end of the bell's life. */
  dispose(): void {
    this.#wait.release()
  }
}
