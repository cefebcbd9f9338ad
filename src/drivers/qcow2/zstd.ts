/**
 * Reading one frame of Zstandard (RFC 8878), as clusters of images with that compression hold it.
 *
 * Invariants:
 * - Never reads or writes outside of what it was given; damage is an error, not a wrong result.
 * - Stops when the output is full; checksums and what follows the frame are not looked at.
 * - Dictionaries are not supported, as images have none.
 */
import { BlockError } from '../../util/errors.ts'
import { Backward, decodeTable, type FseTable, readCounts } from './zstd-fse.ts'
import { type Huffman, readHuffman, readLiterals } from './zstd-literals.ts'

const FRAME_MAGIC = 0xfd2fb528
const MAX_BLOCK = 1 << 17
const DAMAGED = 'Compressed data are damaged'

/** What one block hands to the next. */
interface State {
  readonly out: Uint8Array
  at: number
  readonly repeats: [number, number, number]
  huffman: Huffman | undefined
  readonly tables: (FseTable | undefined)[]
}

function damaged(): never {
  throw new BlockError('EIO', DAMAGED)
}

/** Where the first block of a frame begins. */
function headerEnd(src: Uint8Array): number {
  const view = new DataView(src.buffer, src.byteOffset, src.byteLength)
  if (src.length < 6 || view.getUint32(0, true) !== FRAME_MAGIC) damaged()
  const descriptor = view.getUint8(4)
  const single = (descriptor & 0x20) !== 0
  const dictionary = [0, 1, 2, 4][descriptor & 3] ?? 0
  const sizeFlag = descriptor >> 6
  const size = sizeFlag === 0 ? (single ? 1 : 0) : 1 << sizeFlag
  return 5 + (single ? 0 : 1) + dictionary + size
}

/** Fills `out` from a frame; answers whether it gave that much. Errors: EIO. */
export function zstdDecode(src: Uint8Array, out: Uint8Array): boolean {
  const state: State = { out, at: 0, repeats: [1, 4, 8], huffman: undefined, tables: [] }
  let at = headerEnd(src)
  for (let last = false; !last && state.at < out.length; ) {
    if (at + 3 > src.length) damaged()
    const header = byteAt(src, at) | (byteAt(src, at + 1) << 8) | (byteAt(src, at + 2) << 16)
    at += 3
    last = (header & 1) !== 0
    const size = header >> 3
    if (size > MAX_BLOCK) damaged()
    const kind = (header >> 1) & 3
    const length = kind === 1 ? 1 : size
    if (at + length > src.length || kind === 3) damaged()
    const body = src.subarray(at, at + length)
    if (kind === 0) put(state, body)
    else if (kind === 1) fill(state, byteAt(body, 0), size)
    else compressedBlock(state, body)
    at += length
  }
  return state.at === out.length
}

function byteAt(bytes: Uint8Array, at: number): number {
  return bytes[at] ?? damaged()
}

function put(state: State, bytes: Uint8Array): void {
  const fits = bytes.subarray(0, state.out.length - state.at)
  state.out.set(fits, state.at)
  state.at += fits.length
}

function fill(state: State, value: number, count: number): void {
  const end = Math.min(state.out.length, state.at + count)
  state.out.fill(value, state.at, end)
  state.at = end
}

function compressedBlock(state: State, body: Uint8Array): void {
  const { literals, end, huffman } = readLiterals(body, state.huffman, readHuffman)
  state.huffman = huffman
  let at = end
  const first = byteAt(body, at++)
  let count = first
  if (first >= 128 && first < 255) count = ((first - 128) << 8) + byteAt(body, at++)
  else if (first === 255) {
    count = byteAt(body, at) + (byteAt(body, at + 1) << 8) + 0x7f00
    at += 2
  }
  if (count === 0) put(state, literals)
  else sequences(state, body, at, count, literals)
}

/** A kind of code: what it starts from, and how many extra bits it has. */
interface Codes {
  readonly counts: readonly number[]
  readonly accuracy: number
  readonly maxAccuracy: number
}

const LITERAL_CODES: Codes = {
  counts: [
    ...[4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1],
    ...[1, 1, 1, 1, -1, -1, -1, -1],
  ],
  accuracy: 6,
  maxAccuracy: 9,
}
const OFFSET_CODES: Codes = {
  counts: [
    ...[1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ...[-1, -1, -1, -1, -1],
  ],
  accuracy: 5,
  maxAccuracy: 8,
}
const MATCH_CODES: Codes = {
  counts: [
    ...[1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ...[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1],
  ],
  accuracy: 6,
  maxAccuracy: 9,
}

const LITERAL_BITS = [
  ...[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  ...[1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
]
const MATCH_BITS = [
  ...Array.from({ length: 32 }, () => 0),
  ...[1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
]

/** Each code begins where the one before ends. */
function bases(first: number, bits: readonly number[]): number[] {
  let next = first
  return bits.map((count) => {
    const base = next
    next += 2 ** count
    return base
  })
}

const LITERAL_BASES = bases(0, LITERAL_BITS)
const MATCH_BASES = bases(3, MATCH_BITS)

function sequences(
  state: State,
  body: Uint8Array,
  from: number,
  count: number,
  literals: Uint8Array,
): void {
  const modes = byteAt(body, from)
  let at = from + 1
  for (const [index, codes] of [LITERAL_CODES, OFFSET_CODES, MATCH_CODES].entries())
    at = tableOf(state, index, codes, (modes >> (6 - 2 * index)) & 3, body, at)
  const [literalTable, offsetTable, matchTable] = state.tables
  if (literalTable === undefined || offsetTable === undefined || matchTable === undefined)
    throw new BlockError('EIO', DAMAGED)
  const bits = new Backward(body, at, body.length)
  let literalState = bits.read(literalTable.accuracy)
  let offsetState = bits.read(offsetTable.accuracy)
  let matchState = bits.read(matchTable.accuracy)
  let used = 0
  for (let i = 0; i < count && state.at < state.out.length; i++) {
    const offsetCode = offsetTable.symbols[offsetState] ?? damaged()
    const matchCode = matchTable.symbols[matchState] ?? damaged()
    const literalCode = literalTable.symbols[literalState] ?? damaged()
    if (offsetCode > 30) damaged()
    const offsetValue = 2 ** offsetCode + bits.read(offsetCode)
    const match = (MATCH_BASES[matchCode] ?? damaged()) + bits.read(MATCH_BITS[matchCode] ?? 0)
    const length =
      (LITERAL_BASES[literalCode] ?? damaged()) + bits.read(LITERAL_BITS[literalCode] ?? 0)
    if (i + 1 < count) {
      literalState = literalTable.next(literalState, bits)
      matchState = matchTable.next(matchState, bits)
      offsetState = offsetTable.next(offsetState, bits)
    }
    if (used + length > literals.length) damaged()
    put(state, literals.subarray(used, used + length))
    used += length
    copy(state, distance(state.repeats, offsetValue, length === 0), match)
  }
  if (state.at < state.out.length) put(state, literals.subarray(used))
}

function distance(repeats: [number, number, number], value: number, noLiterals: boolean): number {
  const [a, b, c] = repeats
  if (value > 3) {
    repeats.splice(0, 3, value - 3, a, b)
    return value - 3
  }
  const which = value + (noLiterals ? 1 : 0)
  if (which === 1) return a
  const found = which === 2 ? b : which === 3 ? c : a - 1
  repeats.splice(0, 3, found, a, which === 2 ? c : b)
  return found
}

function copy(state: State, back: number, length: number): void {
  if (back <= 0 || back > state.at) damaged()
  const end = Math.min(state.out.length, state.at + length)
  // What is copied may be what this copy just made.
  for (let to = state.at; to < end; to++) state.out[to] = state.out[to - back] ?? 0
  state.at = end
}

function tableOf(
  state: State,
  index: number,
  codes: Codes,
  mode: number,
  body: Uint8Array,
  at: number,
): number {
  if (mode === 0) state.tables[index] = decodeTable(codes.counts, codes.accuracy)
  else if (mode === 1) {
    const only = byteAt(body, at)
    const counts = Array.from({ length: only + 1 }, (_, symbol) => (symbol === only ? 1 : 0))
    state.tables[index] = decodeTable(counts, 0)
    return at + 1
  } else if (mode === 2) {
    const { counts, accuracy, end } = readCounts(body, at)
    if (accuracy > codes.maxAccuracy) damaged()
    state.tables[index] = decodeTable(counts, accuracy)
    return end
  } else if (state.tables[index] === undefined) damaged()
  return at
}
