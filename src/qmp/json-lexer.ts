/**
 * Splits a byte stream into JSON tokens, any piece at a time.
 *
 * Invariants:
 * - The result does not depend on how the stream was cut into pieces.
 * - After a lexical error everything up to the next newline or structural character is skipped.
 * - No token grows past `MAX_TOKEN_BYTES`.
 */

/** Longest token that is accepted: 64 MiB, far above any sane command. */
export const MAX_TOKEN_BYTES: number = 64 * 1024 * 1024

/** A piece of JSON, or the reason why there is none. */
export type Token =
  | { readonly kind: 'punct'; readonly text: string }
  | { readonly kind: 'string'; readonly bytes: Buffer }
  | { readonly kind: 'number'; readonly text: string }
  | { readonly kind: 'keyword'; readonly text: string }
  /** Bytes that are no token. */
  | { readonly kind: 'stray'; readonly bytes: Buffer }
  /** A token beyond the limit. */
  | { readonly kind: 'too-long' }

type State = 'start' | 'single' | 'double' | 'escape' | 'number' | 'keyword' | 'skip'

const NEWLINE = 0x0a
const QUOTE_SINGLE = 0x27
const QUOTE_DOUBLE = 0x22
const BACKSLASH = 0x5c
const NUMBER = /^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$/
// What may still become a number; the byte that leaves this language is part of the stray text.
const NUMBER_PREFIX =
  /^-?(0|[1-9][0-9]*)?$|^-?(0|[1-9][0-9]*)(\.[0-9]*)?$|^-?(0|[1-9][0-9]*)(\.[0-9]+)?[eE][-+]?[0-9]*$/

/** The incremental lexer; `push` hands over every token that a piece completes. */
export class JsonLexer {
  #state: State = 'start'
  #quote: 'single' | 'double' = 'double'
  #pieces: Buffer[] = []
  #size = 0
  readonly #emit: (token: Token) => void

  constructor(emit: (token: Token) => void) {
    this.#emit = emit
  }

  /** Takes the next bytes of the stream. */
  push(chunk: Buffer): void {
    let from = 0
    let at = 0
    while (at < chunk.length) {
      const byte = chunk[at] as number
      switch (this.#state) {
        case 'start':
          from = at
          this.#begin(byte)
          at += 1
          break
        case 'skip':
          if (byte === NEWLINE || isStructural(byte)) this.#state = 'start'
          if (byte === NEWLINE || !isStructural(byte)) at += 1
          break
        case 'escape':
          this.#state = this.#quote
          at += 1
          if (byte < 0x20) this.#stray(chunk.subarray(from, at))
          break
        case 'single':
        case 'double':
          at = this.#inString(chunk, from, at)
          break
        default:
          at = this.#inWord(chunk, from, at)
      }
      if (this.#state === 'start' || this.#state === 'skip') from = at
    }
    if (this.#state !== 'start' && this.#state !== 'skip') this.#keep(chunk.subarray(from))
  }

  /** Forgets the token in progress and skips to the next place to start from. */
  resync(): void {
    this.#drop('skip')
  }

  #begin(byte: number): void {
    if (isSpace(byte)) return
    if (isStructural(byte)) {
      this.#emit({ kind: 'punct', text: String.fromCharCode(byte) })
      return
    }
    if (byte === QUOTE_SINGLE || byte === QUOTE_DOUBLE) {
      this.#quote = byte === QUOTE_SINGLE ? 'single' : 'double'
      this.#state = this.#quote
    } else if (byte === 0x2d || isDigit(byte)) this.#state = 'number'
    else if (isLetter(byte)) this.#state = 'keyword'
    else {
      this.#emit({ kind: 'stray', bytes: Buffer.of(byte) })
      this.#state = 'skip'
    }
  }

  #inString(chunk: Buffer, from: number, start: number): number {
    const end = this.#quote === 'single' ? QUOTE_SINGLE : QUOTE_DOUBLE
    let at = start
    while (at < chunk.length) {
      const byte = chunk[at] as number
      at += 1
      if (byte === end) {
        const bytes = this.#take(chunk.subarray(from, at))
        this.#drop('start')
        if (bytes !== undefined) this.#emit({ kind: 'string', bytes })
        return at
      }
      if (byte === BACKSLASH) {
        this.#state = 'escape'
        return at
      }
      if (byte < 0x20 || byte >= 0xfe) {
        this.#stray(chunk.subarray(from, at))
        return at
      }
    }
    return at
  }

  #inWord(chunk: Buffer, from: number, start: number): number {
    const keyword = this.#state === 'keyword'
    let at = start
    while (at < chunk.length) {
      const byte = chunk[at] as number
      if (keyword ? !isLetter(byte) : !isNumberByte(byte)) break
      at += 1
    }
    if (at === chunk.length) return at
    const text = this.#take(chunk.subarray(from, at))?.toString('latin1')
    if (text === undefined) return at
    this.#drop('start')
    if (keyword) {
      this.#emit({ kind: 'keyword', text })
      return at
    }
    return this.#number(text, chunk, at)
  }

  // "0x10" is the number 0 and the keyword x10, but "01" and "1e " are no tokens at all.
  #number(text: string, chunk: Buffer, end: number): number {
    if (NUMBER.test(text)) {
      this.#emit({ kind: 'number', text })
      return end
    }
    let good = 0
    while (good < text.length && NUMBER_PREFIX.test(text.slice(0, good + 1))) good += 1
    const whole = good === text.length
    const next = chunk[end] as number
    const bytes = Buffer.from(
      whole ? text + String.fromCharCode(next) : text.slice(0, good + 1),
      'latin1',
    )
    this.#emit({ kind: 'stray', bytes })
    this.#state = 'skip'
    return whole ? end + 1 : end
  }

  #stray(tail: Buffer): void {
    const bytes = this.#take(tail)
    if (bytes === undefined) return
    this.#drop('skip')
    this.#emit({ kind: 'stray', bytes })
  }

  #keep(tail: Buffer): void {
    this.#size += tail.length
    if (this.#size > MAX_TOKEN_BYTES) this.#tooLong()
    else if (tail.length > 0) this.#pieces.push(Buffer.from(tail))
  }

  #take(tail: Buffer): Buffer | undefined {
    if (this.#size + tail.length > MAX_TOKEN_BYTES) {
      this.#tooLong()
      return undefined
    }
    return this.#pieces.length === 0 ? tail : Buffer.concat([...this.#pieces, tail])
  }

  #tooLong(): void {
    this.#drop('skip')
    this.#emit({ kind: 'too-long' })
  }

  #drop(state: State): void {
    this.#state = state
    this.#pieces = []
    this.#size = 0
  }
}

function isSpace(byte: number): boolean {
  return byte === 0x20 || byte === 0x09 || byte === 0x0d || byte === NEWLINE
}

// One of { } [ ] : ,
function isStructural(byte: number): boolean {
  return (
    byte === 0x7b ||
    byte === 0x7d ||
    byte === 0x5b ||
    byte === 0x5d ||
    byte === 0x3a ||
    byte === 0x2c
  )
}

function isDigit(byte: number): boolean {
  return byte >= 0x30 && byte <= 0x39
}

function isLetter(byte: number): boolean {
  return byte >= 0x61 && byte <= 0x7a
}

// Digits, + - . e E
function isNumberByte(byte: number): boolean {
  return (
    isDigit(byte) ||
    byte === 0x2b ||
    byte === 0x2d ||
    byte === 0x2e ||
    byte === 0x65 ||
    byte === 0x45
  )
}
