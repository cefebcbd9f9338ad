/**
 * The JSON of the monitor: an incremental parser that reads what clients really send, and a writer.
 *
 * Invariants:
 * - Integers of 64 bits, signed or unsigned, keep every digit: a number when safe, else a bigint.
 * - Single-quoted strings are strings; a duplicate key is an error; nesting ends at 1024.
 * - A parse error costs the broken text and nothing else: the stream goes on.
 * - Output is pure ASCII.
 */
import { BlockError } from '../util/errors.ts'
import { JsonLexer, type Token } from './json-lexer.ts'

/** Deepest nesting of objects and lists that is accepted. */
export const MAX_DEPTH = 1024

/** Most tokens one value may have. */
const MAX_TOKENS = 2 * 1024 * 1024

/** A JSON value; a bigint where a number would lose digits. */
export type JsonValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | readonly JsonValue[]
  | { readonly [key: string]: JsonValue }

/** A JSON object. */
export type JsonObject = { readonly [key: string]: JsonValue }

/** Whether a value is a JSON object, not a list and not null. */
export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Plain data as JSON; members that are undefined are left out, what is no data becomes null. */
export function toJson(value: unknown): JsonValue {
  if (value === null || value === undefined) return null
  if (typeof value === 'string' || typeof value === 'number') return value
  if (typeof value === 'boolean' || typeof value === 'bigint') return value
  if (Array.isArray(value)) return value.map(toJson)
  if (!isObject(value)) return null
  const members = Object.entries(value).filter(([, member]) => member !== undefined)
  return Object.fromEntries(members.map(([key, member]) => [key, toJson(member)]))
}

/** Receives what the parser finds. */
export interface JsonSink {
  /** A whole value at the top level. */
  value(value: JsonValue): void
  /** Text that is not JSON; the sentence is made for the client. */
  error(error: BlockError): void
}

/** Reads values from a stream of bytes cut anywhere. */
export class JsonStreamParser {
  readonly #lexer: JsonLexer
  readonly #sink: JsonSink
  #tokens: Token[] = []
  #braces = 0
  #brackets = 0

  constructor(sink: JsonSink) {
    this.#sink = sink
    this.#lexer = new JsonLexer((token) => this.#token(token))
  }

  /** Takes the next bytes of the stream; never throws. */
  push(chunk: Buffer): void {
    this.#lexer.push(chunk)
  }

  #token(token: Token): void {
    if (token.kind === 'stray') {
      this.#fail(`JSON parse error, stray '${decodeLossy(token.bytes)}'`)
      return
    }
    if (token.kind === 'too-long') {
      this.#fail('JSON token size limit exceeded')
      return
    }
    if (token.kind === 'punct') this.#count(token.text)
    this.#tokens.push(token)
    if (this.#braces + this.#brackets > MAX_DEPTH) {
      this.#fail('JSON nesting depth limit exceeded')
      this.#lexer.resync()
    } else if (this.#tokens.length > MAX_TOKENS) {
      this.#fail('JSON token count limit exceeded')
      this.#lexer.resync()
    } else if (this.#braces < 0 || this.#brackets < 0) this.#finish()
    else if (this.#braces === 0 && this.#brackets === 0) this.#finish()
  }

  #count(text: string): void {
    if (text === '{') this.#braces += 1
    else if (text === '}') this.#braces -= 1
    else if (text === '[') this.#brackets += 1
    else if (text === ']') this.#brackets -= 1
  }

  #finish(): void {
    const tokens = this.#reset()
    let value: JsonValue
    try {
      value = new TokenParser(tokens).parse()
    } catch (error) {
      if (!(error instanceof BlockError)) throw error
      this.#sink.error(error)
      return
    }
    this.#sink.value(value)
  }

  #fail(sentence: string): void {
    this.#reset()
    this.#sink.error(new BlockError('EINVAL', sentence))
  }

  #reset(): Token[] {
    const tokens = this.#tokens
    this.#tokens = []
    this.#braces = 0
    this.#brackets = 0
    return tokens
  }
}

/** Reads text that holds exactly one value; for command lines and tests. */
export function parseJson(text: string): JsonValue {
  const values: JsonValue[] = []
  const errors: BlockError[] = []
  const parser = new JsonStreamParser({
    value: (value) => values.push(value),
    error: (error) => errors.push(error),
  })
  parser.push(Buffer.from(`${text}\n`))
  if (errors[0] !== undefined) throw errors[0]
  // What is not whole yet gave no value and no error.
  const cut = values.length === 0 && text.trim() !== ''
  if (values.length !== 1) throw parseError(cut ? 'premature EOI' : 'expecting value')
  return values[0] as JsonValue
}

class TokenParser {
  readonly #tokens: readonly Token[]
  #at = 0

  constructor(tokens: readonly Token[]) {
    this.#tokens = tokens
  }

  parse(): JsonValue {
    return this.#value()
  }

  #next(): Token | undefined {
    return this.#tokens[this.#at++]
  }

  #isPunct(text: string): boolean {
    const token = this.#tokens[this.#at]
    return token?.kind === 'punct' && token.text === text
  }

  #value(): JsonValue {
    const token = this.#next()
    if (token === undefined) throw parseError('expecting value')
    if (token.kind === 'string') return decodeString(token.bytes)
    if (token.kind === 'number') return decodeNumber(token.text)
    if (token.kind === 'keyword') return decodeKeyword(token.text)
    if (token.kind === 'punct' && token.text === '{') return this.#object()
    if (token.kind === 'punct' && token.text === '[') return this.#list()
    throw parseError('expecting value')
  }

  #object(): JsonValue {
    const object: { [key: string]: JsonValue } = {}
    if (this.#isPunct('}')) {
      this.#at += 1
      return object
    }
    for (;;) {
      const key = this.#value()
      if (typeof key !== 'string') throw parseError('key is not a string in object')
      if (!this.#isPunct(':')) throw parseError('missing : in object pair')
      this.#at += 1
      const value = this.#value()
      if (Object.hasOwn(object, key)) throw parseError('duplicate key')
      // A plain assignment to __proto__ would change the object's prototype.
      Object.defineProperty(object, key, {
        value,
        enumerable: true,
        writable: true,
        configurable: true,
      })
      const token = this.#next()
      if (token?.kind === 'punct' && token.text === '}') return object
      if (token?.kind !== 'punct' || token.text !== ',')
        throw parseError('expected separator in dict')
    }
  }

  #list(): JsonValue {
    const list: JsonValue[] = []
    if (this.#isPunct(']')) {
      this.#at += 1
      return list
    }
    for (;;) {
      list.push(this.#value())
      const token = this.#next()
      if (token?.kind === 'punct' && token.text === ']') return list
      if (token?.kind !== 'punct' || token.text !== ',')
        throw parseError('expected separator in list')
    }
  }
}

function parseError(what: string): BlockError {
  return new BlockError('EINVAL', `JSON parse error, ${what}`)
}

function decodeKeyword(text: string): JsonValue {
  if (text === 'true') return true
  if (text === 'false') return false
  if (text === 'null') return null
  throw parseError(`invalid keyword '${text}'`)
}

const INT_MIN = -(2n ** 63n)
const UINT_MAX = 2n ** 64n - 1n

function decodeNumber(text: string): number | bigint {
  if (!/^-?[0-9]+$/.test(text)) return Number(text)
  const number = Number(text)
  if (Number.isSafeInteger(number)) return number === 0 ? 0 : number
  // 21 characters hold every 64-bit integer; longer text need not become a bigint to be judged.
  if (text.length > 21) return number
  const exact = BigInt(text)
  return exact >= INT_MIN && exact <= UINT_MAX ? exact : number
}

const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  "'": "'",
  '\\': '\\',
  '/': '/',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
}

function decodeString(quoted: Buffer): string {
  const body = quoted.subarray(1, -1)
  if (!isUtf8(body)) throw parseError('invalid UTF-8 sequence in string')
  const text = body.toString('utf8')
  if (!text.includes('\\')) return text
  let out = ''
  let at = 0
  for (;;) {
    const backslash = text.indexOf('\\', at)
    if (backslash < 0) return out + text.slice(at)
    out += text.slice(at, backslash)
    const letter = text[backslash + 1] ?? ''
    if (letter === 'u') {
      const [decoded, end] = decodeUnicode(text, backslash)
      out += decoded
      at = end
    } else {
      const plain = ESCAPES[letter]
      if (plain === undefined) throw parseError('invalid escape sequence in string')
      out += plain
      at = backslash + 2
    }
  }
}

function decodeUnicode(text: string, at: number): [string, number] {
  const first = hex4(text, at)
  const low =
    first >= 0xd800 && first < 0xdc00 && text.startsWith('\\u', at + 6) ? hex4(text, at + 6) : -1
  if (low >= 0xdc00 && low < 0xe000) return [String.fromCharCode(first, low), at + 12]
  if (first < 0 || (first >= 0xd800 && first < 0xe000) || first >= 0xfffe) {
    throw parseError(`${text.slice(at, at + 6)} is not a valid Unicode character`)
  }
  return [String.fromCharCode(first), at + 6]
}

function hex4(text: string, at: number): number {
  const digits = text.slice(at + 2, at + 6)
  return /^[0-9a-fA-F]{4}$/.test(digits) ? Number.parseInt(digits, 16) : -1
}

function isUtf8(bytes: Buffer): boolean {
  const text = bytes.toString('utf8')
  return !text.includes('\uFFFD') || Buffer.from(text, 'utf8').equals(bytes)
}

function decodeLossy(bytes: Buffer): string {
  return bytes.toString('utf8')
}

/** Writes a value as the monitor does: `": "` and `", "`, ASCII only, no line end. */
export function stringifyJson(value: JsonValue): string {
  if (value === null) return 'null'
  if (typeof value === 'string') return quote(value)
  if (typeof value === 'number') return writeNumber(value)
  if (typeof value === 'boolean' || typeof value === 'bigint') return String(value)
  if (isList(value)) return `[${value.map(stringifyJson).join(', ')}]`
  const members = Object.entries(value)
    .filter(([, member]) => member !== undefined)
    .map(([key, member]) => `${quote(key)}: ${stringifyJson(member)}`)
  return `{${members.join(', ')}}`
}

function isList(value: JsonValue): value is readonly JsonValue[] {
  return Array.isArray(value)
}

// Escaped backslashes are matched as a pair, so that what follows one is not taken for an escape.
function quote(text: string): string {
  return JSON.stringify(text).replace(/\\\\|\\u[0-9a-f]{4}|[\u007f-\uffff]/g, (match) => {
    if (match === '\\\\') return match
    const hex = match.length === 1 ? match.charCodeAt(0).toString(16) : match.slice(2)
    return `\\u${hex.toUpperCase().padStart(4, '0')}`
  })
}

// As C's %.17g, which every reader of this protocol has met; JSON has no infinity, so one that a
// client sent as an overlong exponent goes back as such.
function writeNumber(value: number): string {
  if (Number.isSafeInteger(value)) return Object.is(value, -0) ? '-0' : String(value)
  if (!Number.isFinite(value)) return value < 0 ? '-1e999' : '1e999'
  const [mantissa = '', exponentText = '0'] = value.toExponential(16).split('e')
  const exponent = Number(exponentText)
  if (exponent >= -4 && exponent < 17) return trimZeros(value.toFixed(16 - exponent))
  const sign = exponent < 0 ? '-' : '+'
  return `${trimZeros(mantissa)}e${sign}${String(Math.abs(exponent)).padStart(2, '0')}`
}

function trimZeros(text: string): string {
  return text.includes('.') ? text.replace(/\.?0+$/, '') : text
}
