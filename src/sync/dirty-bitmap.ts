/**
 * Which regions of a disk changed, shared between writers and a copier.
 *
 * Invariants:
 * - A writer sets the bits after its write is done; the copier clears the bits before it reads. So
 *   whatever the copier missed is dirty again.
 * - A bit that is set already is left alone: the copier's clear, if one comes, comes after.
 * - The count is exact whenever no `setRange` or `clearRange` is under way.
 *
 * Words: `count` and one bit a region; written by writers and copier of any thread. Nobody waits.
 */
import { assert } from '../util/errors.ts'
import { shared } from './atomics.ts'

const COUNT = 0
const BITS = 1

/** A stretch of dirty bytes. */
export interface DirtyRange {
  /** First byte; a multiple of the granularity. */
  readonly offset: number
  /** Length in bytes; reaches at most to the end of the disk. */
  readonly bytes: number
}

/** A view of a dirty bitmap. */
export class DirtyBitmap {
  /** Bytes a bit stands for; a power of two. */
  readonly granularity: number
  /** Length of the disk in bytes. */
  readonly size: number
  /** The array that holds the words. */
  readonly words: Int32Array
  readonly #regions: number
  readonly #end: number

  /** A view over words that `create` made, with the same size and granularity. */
  constructor(words: Int32Array, size: number, granularity: number) {
    assert(Number.isInteger(Math.log2(granularity)), 'a granularity is a power of two')
    assert(words.length >= DirtyBitmap.wordsFor(size, granularity), 'the words cover the disk')
    this.words = words
    this.size = size
    this.granularity = granularity
    this.#regions = Math.ceil(size / granularity)
    this.#end = BITS + Math.ceil(this.#regions / 32)
  }

  /** How many words a bitmap takes. */
  static wordsFor(size: number, granularity: number): number {
    return BITS + Math.ceil(Math.ceil(size / granularity) / 32)
  }

  /** A clean bitmap for a disk of `size` bytes. */
  static create(size: number, granularity: number): DirtyBitmap {
    const bytes = DirtyBitmap.wordsFor(size, granularity) * 4
    return new DirtyBitmap(new Int32Array(new SharedArrayBuffer(bytes)), size, granularity)
  }

  /** How many regions are dirty. */
  get count(): number {
    return shared.load(this.words, COUNT)
  }

  /** How many bytes the dirty regions have; the last region counts whole. */
  get dirtyBytes(): number {
    return this.count * this.granularity
  }

  /** Whether the region of a byte is dirty. */
  get(offset: number): boolean {
    const bit = Math.floor(offset / this.granularity)
    return (shared.load(this.words, BITS + (bit >>> 5)) & (1 << (bit & 31))) !== 0
  }

  /** Marks every region that the range touches. */
  setRange(offset: number, bytes: number): void {
    this.#change(Math.floor(offset / this.granularity), this.#after(offset + bytes), true)
  }

  /** Cleans every region that the range touches. Read only after that. */
  clearRange(offset: number, bytes: number): void {
    this.#change(Math.floor(offset / this.granularity), this.#after(offset + bytes), false)
  }

  /** Marks the whole disk. */
  setAll(): void {
    this.#change(0, this.#regions, true)
  }

  /** Cleans the whole disk. */
  clearAll(): void {
    this.#change(0, this.#regions, false)
  }

  /**
   * The first dirty stretch at or after a byte, at most `maxBytes` long; `undefined` when there is
   * none up to the end of the disk.
   */
  nextDirty(from: number, maxBytes: number = this.granularity * 1024): DirtyRange | undefined {
    // The last region may be a short one: the end of the disk lies inside it.
    if (from >= this.size) return undefined
    const first = this.#firstDirty(Math.floor(from / this.granularity))
    if (first < 0) return undefined
    const limit = Math.min(
      this.#regions,
      first + Math.max(1, Math.floor(maxBytes / this.granularity)),
    )
    let bit = first + 1
    while (bit < limit && this.#isSet(bit)) bit += 1
    const offset = first * this.granularity
    return { offset, bytes: Math.min(bit * this.granularity, this.size) - offset }
  }

  /** The bits as bytes: region n is bit `n % 8` of byte `n / 8`; padded with zeroes to `align` bytes. */
  toBytes(align = 8): Uint8Array {
    const bytes = new Uint8Array(Math.ceil(Math.ceil(this.#regions / 8) / align) * align)
    const view = new DataView(bytes.buffer)
    for (let index = BITS; index < this.#end; index++) {
      const word = shared.load(this.words, index)
      const at = (index - BITS) * 4
      if (word === 0) continue
      if (at + 4 <= bytes.length) view.setInt32(at, word, true)
      else for (let i = at; i < bytes.length; i++) bytes[i] = word >>> ((i - at) * 8)
    }
    return bytes
  }

  /**
   * Marks every region whose bit is set in `bytes`, which has the form that `toBytes` gives and
   * begins with the region of byte `from`, eight regions aligned. Bits beyond the end are ignored.
   */
  addBytes(bytes: Uint8Array, from = 0): void {
    const first = from / this.granularity
    assert(first % 8 === 0, 'bytes of a bitmap begin with a whole byte')
    let changed = 0
    for (let i = 0; i < bytes.length && first + i * 8 < this.#regions; i++) {
      const bit = first + i * 8
      const set = (bytes[i] ?? 0) & bitMask(0, Math.min(8, this.#regions - bit))
      if (set !== 0) changed += this.#setMask(BITS + (bit >>> 5), set << (bit & 31))
    }
    if (changed !== 0) shared.add(this.words, COUNT, changed)
  }

  #after(end: number): number {
    return Math.min(this.#regions, Math.ceil(end / this.granularity))
  }

  #isSet(bit: number): boolean {
    return (shared.load(this.words, BITS + (bit >>> 5)) & (1 << (bit & 31))) !== 0
  }

  #firstDirty(from: number): number {
    let index = BITS + (from >>> 5)
    if (index >= this.#end) return -1
    const start = shared.load(this.words, index) & (-1 << (from & 31))
    if (start !== 0) return ((index - BITS) << 5) + lowestBit(start)
    for (;;) {
      index = shared.firstNonZero(this.words, index + 1, this.#end)
      if (index < 0) return -1
      const word = shared.load(this.words, index)
      if (word !== 0) return ((index - BITS) << 5) + lowestBit(word)
    }
  }

  #change(from: number, to: number, dirty: boolean): void {
    let changed = 0
    for (let bit = from; bit < to; ) {
      const low = bit & 31
      const high = Math.min(32, low + to - bit)
      const mask = bitMask(low, high)
      const index = BITS + (bit >>> 5)
      changed += dirty ? this.#setMask(index, mask) : this.#clearMask(index, mask)
      bit += high - low
    }
    if (changed !== 0) shared.add(this.words, COUNT, dirty ? changed : -changed)
  }

  #setMask(index: number, mask: number): number {
    if ((shared.load(this.words, index) & mask) === mask) return 0
    return bitCount(mask & ~shared.or(this.words, index, mask))
  }

  #clearMask(index: number, mask: number): number {
    if ((shared.load(this.words, index) & mask) === 0) return 0
    return bitCount(mask & shared.and(this.words, index, ~mask))
  }
}

/** Bits `low` to `high - 1`. */
function bitMask(low: number, high: number): number {
  const upTo = high === 32 ? -1 : (1 << high) - 1
  return upTo & (-1 << low)
}

function lowestBit(word: number): number {
  return 31 - Math.clz32(word & -word)
}

function bitCount(word: number): number {
  let n = word - ((word >>> 1) & 0x5555_5555)
  n = (n & 0x3333_3333) + ((n >>> 2) & 0x3333_3333)
  return Math.imul((n + (n >>> 4)) & 0x0f0f_0f0f, 0x0101_0101) >>> 24
}
