/**
 * A character device that keeps the last bytes written to it, and the text that it is read as.
 *
 * Invariants:
 * - It holds at most its size in bytes; what is too much pushes out the oldest.
 * - Text ends at the first zero byte. A zero inside a text is written as the two bytes C0 80, and
 *   read back from them; bytes that are no text become one replacement character a sequence.
 */

/** Lowest character that needs a sequence of that many bytes. */
const LOWEST = [0, 0, 0x80, 0x800, 0x10000]
const REPLACEMENT = '\u{fffd}'

/** The bytes. */
export class RingBuffer {
  readonly #size: number
  #held: Buffer = Buffer.alloc(0)

  /** `size` in bytes. */
  constructor(size: number) {
    this.#size = size
  }

  /** Adds bytes. */
  write(bytes: Uint8Array): void {
    const all = Buffer.concat([this.#held, bytes])
    this.#held = all.subarray(Math.max(0, all.length - this.#size))
  }

  /** Takes the oldest bytes out, `most` of them if there are as many. */
  read(most: number): Buffer {
    const taken = this.#held.subarray(0, most)
    this.#held = this.#held.subarray(taken.length)
    return taken
  }
}

/** The bytes of a text. */
export function encodeText(text: string): Buffer {
  const parts = text.split('\0').map((part) => Buffer.from(part, 'utf8'))
  const zero = Buffer.from([0xc0, 0x80])
  return Buffer.concat(parts.flatMap((part, at) => (at === 0 ? [part] : [zero, part])))
}

/** The text of bytes. */
export function decodeText(bytes: Uint8Array): string {
  let text = ''
  for (let at = 0; at < bytes.length && bytes[at] !== 0; ) {
    const end = sequenceEnd(bytes, at)
    text += characterOf(bytes.subarray(at, end))
    at = end
  }
  return text
}

// A sequence is a first byte and as many continuations as it announces, or as there are.
function sequenceEnd(bytes: Uint8Array, at: number): number {
  const first = bytes[at] ?? 0
  const most = at + lengthOf(first)
  let end = at + 1
  while (end < most && ((bytes[end] ?? 0) & 0xc0) === 0x80) end++
  return end
}

function lengthOf(first: number): number {
  if (first >= 0xc0 && first < 0xe0) return 2
  if (first >= 0xe0 && first < 0xf0) return 3
  return first >= 0xf0 && first < 0xf8 ? 4 : 1
}

function characterOf(sequence: Uint8Array): string {
  const [first = 0, ...rest] = sequence
  const length = lengthOf(first)
  if (sequence.length < length) return REPLACEMENT
  if (length === 1) return first < 0x80 ? String.fromCharCode(first) : REPLACEMENT
  if (first === 0xc0 && rest[0] === 0x80) return '\0'
  const code = rest.reduce((sum, byte) => sum * 64 + (byte & 0x3f), first & (0x7f >> length))
  const surrogate = code >= 0xd800 && code < 0xe000
  const known = code >= (LOWEST[length] ?? 0) && code <= 0x10ffff && !surrogate
  return known ? String.fromCodePoint(code) : REPLACEMENT
}
