/**
 * The literals of a Zstandard block: plain, repeated, or in a Huffman code.
 *
 * Invariants:
 * - A block may use the code of the block before it, never one that nobody sent.
 */
import { BlockError } from '../../util/errors.ts'
import { Backward, decodeTable, readCounts } from './zstd-fse.ts'

const MAX_BITS = 11

function damaged(): never {
  throw new BlockError('EIO', 'Compressed data are damaged')
}

/** A code: symbol and width for every value of the next `bits` bits. */
export interface Huffman {
  readonly bits: number
  readonly symbols: Uint8Array
  readonly widths: Uint8Array
}

/** Reads a code; `end` is where it ends. Errors: EIO. */
export function readHuffman(
  bytes: Uint8Array,
  from: number,
): { readonly huffman: Huffman; readonly end: number } {
  const header = bytes[from] ?? damaged()
  const weights: number[] = []
  let end = from + 1
  if (header >= 128) {
    const count = header - 127
    for (let i = 0; i < count; i++) {
      const pair = bytes[end + (i >> 1)] ?? damaged()
      weights.push(i % 2 === 0 ? pair >> 4 : pair & 15)
    }
    end += (count + 1) >> 1
  } else {
    end += header
    if (end > bytes.length) damaged()
    packedWeights(bytes, from + 1, end, weights)
  }
  return { huffman: codeOf(weights), end }
}

function packedWeights(bytes: Uint8Array, from: number, end: number, weights: number[]): void {
  const { counts, accuracy, end: start } = readCounts(bytes.subarray(0, end), from)
  const table = decodeTable(counts, accuracy)
  const bits = new Backward(bytes, start, end)
  let [now, other] = [bits.read(accuracy), bits.read(accuracy)]
  // Two states take turns; the last symbols are those of the states when no bits are left.
  for (;;) {
    weights.push(table.symbols[now] ?? damaged())
    now = table.next(now, bits)
    if (weights.length > 255) damaged()
    if (bits.left < 0) {
      weights.push(table.symbols[other] ?? damaged())
      return
    }
    ;[now, other] = [other, now]
  }
}

function codeOf(weights: number[]): Huffman {
  let sum = 0
  for (const weight of weights) if (weight > 0) sum += 2 ** (weight - 1)
  if (sum === 0) damaged()
  const bits = 32 - Math.clz32(sum)
  const rest = 2 ** bits - sum
  // The last weight is not sent: it fills the code up.
  if (bits > MAX_BITS || !Number.isInteger(Math.log2(rest))) damaged()
  weights.push(Math.log2(rest) + 1)
  const symbols = new Uint8Array(2 ** bits)
  const widths = new Uint8Array(2 ** bits)
  let at = 0
  for (let weight = 1; weight <= bits; weight++)
    for (const [symbol, own] of weights.entries()) {
      if (own !== weight) continue
      symbols.fill(symbol, at, at + 2 ** (weight - 1))
      widths.fill(bits + 1 - weight, at, at + 2 ** (weight - 1))
      at += 2 ** (weight - 1)
    }
  return { bits, symbols, widths }
}

/** What a block's literals were, and where the sequences begin. Errors: EIO. */
export function readLiterals(
  body: Uint8Array,
  before: Huffman | undefined,
  readCode: typeof readHuffman,
): { readonly literals: Uint8Array; readonly end: number; readonly huffman: Huffman | undefined } {
  const first = body[0] ?? damaged()
  const kind = first & 3
  const form = (first >> 2) & 3
  const word = littleEndian(body, 5)
  if (kind < 2) {
    const header = form === 1 ? 2 : form === 3 ? 3 : 1
    const size = Math.floor((word % 2 ** (8 * header)) / (header === 1 ? 8 : 16))
    const bytes = kind === 0 ? size : 1
    if (size > 1 << 17 || header + bytes > body.length) damaged()
    const given = body.subarray(header, header + bytes)
    const literals = kind === 0 ? given : new Uint8Array(size).fill(given[0] ?? 0)
    return { literals, end: header + bytes, huffman: before }
  }
  const width = form < 2 ? 10 : form === 2 ? 14 : 18
  const header = form < 2 ? 3 : form + 2
  const size = Math.floor(word / 16) % 2 ** width
  const packed = Math.floor(word / 2 ** (4 + width)) % 2 ** width
  const end = header + packed
  if (size > 1 << 17 || end > body.length) damaged()
  let at = header
  let huffman = before
  if (kind === 2) {
    const code = readCode(body.subarray(0, end), header)
    huffman = code.huffman
    at = code.end
  }
  if (huffman === undefined) return damaged()
  const literals = new Uint8Array(size)
  if (form === 0) readStream(huffman, body, at, end, literals)
  else readFour(huffman, body, at, end, literals)
  return { literals, end, huffman }
}

function littleEndian(bytes: Uint8Array, count: number): number {
  let value = 0
  for (let i = Math.min(count, bytes.length) - 1; i >= 0; i--) value = value * 256 + (bytes[i] ?? 0)
  return value
}

function readFour(
  huffman: Huffman,
  body: Uint8Array,
  from: number,
  end: number,
  out: Uint8Array,
): void {
  const share = (out.length + 3) >> 2
  let at = from + 6
  for (let stream = 0; stream < 4; stream++) {
    const field = from + 2 * stream
    const bytes = (body[field] ?? 0) | ((body[field + 1] ?? 0) << 8)
    const stop = stream === 3 ? end : at + bytes
    if (stop > end) damaged()
    const last = stream === 3 ? out.length : share * (stream + 1)
    readStream(huffman, body, at, stop, out.subarray(share * stream, last))
    at = stop
  }
}

function readStream(
  { bits: width, symbols, widths }: Huffman,
  body: Uint8Array,
  from: number,
  end: number,
  out: Uint8Array,
): void {
  const bits = new Backward(body, from, end)
  for (let i = 0; i < out.length; i++) {
    const value = bits.peek(width)
    out[i] = symbols[value] ?? 0
    bits.left -= widths[value] ?? 0
  }
  if (bits.left !== 0) damaged()
}
