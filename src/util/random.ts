/**
 * Chance from a seed: the same seed gives the same numbers on every machine.
 *
 * Invariants:
 * - The state is one 32-bit number; two generators never share it.
 * - Not for secrets.
 */

/** A seeded generator (mulberry32). */
export class Random {
  /** The seed it was made with, to print when a run fails. */
  readonly seed: number
  #state: number

  constructor(seed: number) {
    this.seed = seed >>> 0
    this.#state = this.seed
  }

  /** A number in [0, 1). */
  next(): number {
    return this.uint32() / 0x1_0000_0000
  }

  /** An integer in [0, 2^32). */
  uint32(): number {
    this.#state = (this.#state + 0x6d2b_79f5) | 0
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return (mixed ^ (mixed >>> 14)) >>> 0
  }

  /** An integer in [0, n); `n` is at least 1 and may exceed 2^32. */
  int(n: number): number {
    return Math.floor(this.next() * n)
  }

  /** True with the given probability. */
  chance(probability: number): boolean {
    return this.next() < probability
  }

  /** One of the items; there must be one. */
  pick<T>(items: readonly T[]): T {
    const item = items[this.int(items.length)]
    if (item === undefined && items.length === 0)
      throw new Error('assertion failed: nothing to pick')
    return item as T
  }

  /** Fills `buf`; answers it. */
  bytes<B extends Uint8Array>(buf: B): B {
    for (let i = 0; i < buf.length; i += 4) {
      const word = this.uint32()
      const end = Math.min(4, buf.length - i)
      for (let j = 0; j < end; j += 1) buf[i + j] = word >>> (8 * j)
    }
    return buf
  }

  /** Reorders `items` in place; answers them. */
  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i -= 1) {
      const j = this.int(i + 1)
      const held = items[i] as T
      items[i] = items[j] as T
      items[j] = held
    }
    return items
  }

  /** A generator of its own for a part of the work, so that parts do not disturb each other. */
  fork(): Random {
    return new Random(this.uint32())
  }
}

/** A seed from the host's chance. */
export function hostSeed(): number {
  return Math.floor(Math.random() * 0x1_0000_0000)
}
