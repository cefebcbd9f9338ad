/**
 * Finite state entropy, the second of the two codes of Zstandard.
 *
 * Invariants:
 * - Bits before the start of a stream read as zeroes; nothing else is ever made up.
 */
import { BlockError } from '../../util/errors.ts'

const MIN_ACCURACY = 5
const MAX_ACCURACY = 9

function damaged(): never {
  throw new BlockError('EIO', 'Compressed data are damaged')
}

/** A stream of bits that is read from its end. */
export class Backward {
  readonly #bytes: Uint8Array
  readonly #start: number
  /** Bits that were not read yet; below zero when more were asked for than there are. */
  left: number

  constructor(bytes: Uint8Array, start: number, end: number) {
    const last = end > start ? (bytes[end - 1] ?? 0) : 0
    if (last === 0) damaged()
    this.#bytes = bytes
    this.#start = start
    // The highest set bit of the last byte only marks the end.
    this.left = (end - start) * 8 - 8 + (31 - Math.clz32(last))
  }

  /** The next bits without taking them. */
  peek(count: number): number {
    let value = 0
    const low = this.left - count
    let at = Math.max(0, low)
    let placed = at - low
    while (at < this.left) {
      const take = Math.min(8 - (at & 7), this.left - at)
      const byte = this.#bytes[this.#start + (at >> 3)] ?? 0
      value += ((byte >> (at & 7)) & ((1 << take) - 1)) * 2 ** placed
      placed += take
      at += take
    }
    return value
  }

  /** Takes the next bits. */
  read(count: number): number {
    const value = count === 0 ? 0 : this.peek(count)
    this.left -= count
    return value
  }
}

/** A table that decodes symbols. */
export interface FseTable {
  /** Bits of a state. */
  readonly accuracy: number
  /** The symbol of each state. */
  readonly symbols: Uint8Array
  /** The state after a state. */
  next(state: number, bits: Backward): number
}

/** The table of a distribution: how often each symbol comes, -1 for less than once. */
export function decodeTable(counts: readonly number[], accuracy: number): FseTable {
  const size = 1 << accuracy
  const symbols = new Uint8Array(size)
  const upcoming: number[] = []
  let high = size
  for (const [symbol, count] of counts.entries()) {
    upcoming.push(count === -1 ? 1 : count)
    if (count === -1) symbols[--high] = symbol
  }
  const step = (size >> 1) + (size >> 3) + 3
  let place = 0
  for (const [symbol, count] of counts.entries())
    for (let i = 0; i < count; i++) {
      symbols[place] = symbol
      do place = (place + step) & (size - 1)
      while (place >= high && high > 0 && size > 1)
    }
  const widths = new Uint8Array(size)
  const bases = new Uint16Array(size)
  for (let state = 0; state < size; state++) {
    const symbol = symbols[state] ?? 0
    const turn = upcoming[symbol] ?? damaged()
    upcoming[symbol] = turn + 1
    const width = accuracy - (31 - Math.clz32(turn))
    widths[state] = width
    bases[state] = (turn << width) - size
  }
  return {
    accuracy,
    symbols,
    next: (state, bits) => (bases[state] ?? 0) + bits.read(widths[state] ?? 0),
  }
}

/** Reads a distribution; `end` is where it ends. Errors: EIO. */
export function readCounts(
  bytes: Uint8Array,
  from: number,
): { readonly counts: number[]; readonly accuracy: number; readonly end: number } {
  let bit = from * 8
  const peek = (count: number): number => {
    const at = bit >> 3
    const word = (bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8) | ((bytes[at + 2] ?? 0) << 16)
    return (word >> (bit & 7)) & ((1 << count) - 1)
  }
  const accuracy = peek(4) + MIN_ACCURACY
  bit += 4
  if (accuracy > MAX_ACCURACY) damaged()
  let remaining = (1 << accuracy) + 1
  let threshold = 1 << accuracy
  let width = accuracy + 1
  const counts: number[] = []
  while (remaining > 1) {
    const limit = 2 * threshold - 1 - remaining
    let value = peek(width) & (threshold - 1)
    if (value < limit) bit += width - 1
    else {
      value = peek(width)
      if (value >= threshold) value -= limit
      bit += width
    }
    counts.push(value - 1)
    remaining -= Math.abs(value - 1)
    if (value === 1)
      for (let zeros = 3; zeros === 3; ) {
        zeros = peek(2)
        bit += 2
        for (let i = 0; i < zeros; i++) counts.push(0)
      }
    if (remaining < 1 || counts.length > 256 || bit > bytes.length * 8) damaged()
    while (remaining < threshold && threshold > 1) {
      threshold >>= 1
      width--
    }
  }
  return { counts, accuracy, end: (bit + 7) >> 3 }
}
