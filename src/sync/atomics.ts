/**
 * The one door to shared words: every atomic operation of the library goes through `shared`.
 *
 * Invariants:
 * - No other file names `Atomics`.
 * - The table is replaced as a whole, and only by a model that explores interleavings.
 */

/** What a wait that does not block answers. */
export type AsyncWait =
  | { readonly async: false; readonly value: 'not-equal' | 'timed-out' }
  | { readonly async: true; readonly value: PromiseLike<unknown> }

/** The operations on shared words; each is one indivisible, sequentially consistent step. */
export interface SharedOps {
  /** Reads a word. */
  load(words: Int32Array, index: number): number
  /** Writes a word; answers the value written. */
  store(words: Int32Array, index: number, value: number): number
  /** Adds; answers the value before. */
  add(words: Int32Array, index: number, value: number): number
  /** Subtracts; answers the value before. */
  sub(words: Int32Array, index: number, value: number): number
  /** Sets bits; answers the value before. */
  or(words: Int32Array, index: number, value: number): number
  /** Keeps only the given bits; answers the value before. */
  and(words: Int32Array, index: number, value: number): number
  /** Writes a word; answers the value before. */
  exchange(words: Int32Array, index: number, value: number): number
  /** Writes `replacement` if the word is `expected`; answers the value before. */
  compareExchange(words: Int32Array, index: number, expected: number, replacement: number): number
  /** Blocks the thread while the word is `value`, until notified; never on the main thread. */
  wait(words: Int32Array, index: number, value: number): 'ok' | 'not-equal' | 'timed-out'
  /** The same without blocking. It does not keep the process alive and cannot be taken back. */
  waitAsync(words: Int32Array, index: number, value: number): AsyncWait
  /** Wakes up to `count` waiters of a word (default all); answers how many. */
  notify(words: Int32Array, index: number, count?: number): number
  /**
   * The first index in `from` to `to - 1` whose word is not 0, or -1. Not atomic: each word is read
   * once, in order, and a hit must be looked at again with `load`.
   */
  firstNonZero(words: Int32Array, from: number, to: number): number
  /** Plain read of a slot that another operation guards. */
  get(slots: Int32Array | Float64Array, index: number): number
  /** Plain write of a slot that another operation guards. */
  set(slots: Int32Array | Float64Array, index: number, value: number): void
}

/** The operations of the host. */
export const HOST_OPS: SharedOps = {
  load: Atomics.load,
  store: Atomics.store,
  add: Atomics.add,
  sub: Atomics.sub,
  or: Atomics.or,
  and: Atomics.and,
  exchange: Atomics.exchange,
  compareExchange: Atomics.compareExchange,
  wait: (words, index, value) => Atomics.wait(words, index, value),
  waitAsync: (words, index, value) => Atomics.waitAsync(words, index, value),
  notify: (words, index, count) => Atomics.notify(words, index, count),
  firstNonZero: (words, from, to) => {
    for (let i = from; i < to; i += 1) if (words[i] !== 0) return i
    return -1
  },
  get: (slots, index) => slots[index] ?? 0,
  set: (slots, index, value) => {
    slots[index] = value
  },
}

/** The table that the primitives call. */
export const shared: SharedOps = { ...HOST_OPS }

/** Runs `fn` with other operations; everything it runs must finish before it returns. */
export function withSharedOps<T>(ops: SharedOps, fn: () => T): T {
  const before = { ...shared }
  Object.assign(shared, ops)
  try {
    return fn()
  } finally {
    Object.assign(shared, before)
  }
}
