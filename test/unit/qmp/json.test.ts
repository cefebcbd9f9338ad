import { describe, expect, test } from 'vitest'
import {
  JsonStreamParser,
  type JsonValue,
  parseJson,
  stringifyJson,
} from '../../../src/qmp/json.ts'
import { Random } from '../../../src/util/random.ts'

/** Everything the parser finds in the text, errors as `!sentence`. */
function read(text: string | Buffer, cuts: (length: number) => number = (n) => n): unknown[] {
  const found: unknown[] = []
  const parser = new JsonStreamParser({
    value: (value) => found.push(value),
    error: (error) => found.push(`!${error.message}`),
  })
  const bytes = typeof text === 'string' ? Buffer.from(text) : text
  for (let at = 0; at < bytes.length; ) {
    const step = Math.max(1, cuts(bytes.length - at))
    parser.push(bytes.subarray(at, at + step))
    at += step
  }
  return found
}

const err = (what: string): string => `!JSON parse error, ${what}`

const TABLE: readonly (readonly [string | Buffer, readonly unknown[]])[] = [
  ['{"a":1,}\n', [err('expecting value')]],
  ['xyz\n', [err("invalid keyword 'xyz'")]],
  ['{"a" 1}\n', [err('missing : in object pair')]],
  ['{"a":1 "b":2}\n', [err('expected separator in dict')]],
  ['[1 2]\n', [err('expected separator in list')]],
  ['{"a":1,"a":2}\n', [err('duplicate key')]],
  ['{5:1}\n', [err('key is not a string in object')]],
  ['{a:1}\n', [err("invalid keyword 'a'")]],
  ['"\\q"\n', [err('invalid escape sequence in string')]],
  ['"a\u0001b" 7\n', [err("stray '\"a\u0001'")]],
  [Buffer.from('22ff220a', 'hex'), [err("stray '\"\uFFFD'")]],
  ['01 \n', [err("stray '01'")]],
  ['0x10 \n', [0, err("invalid keyword 'x'"), 10]],
  ['-\n5\n', [err("stray '-\n'")]],
  ['1e \n', [err("stray '1e '")]],
  ['#{"a":1}\n', [err("stray '#'"), { a: 1 }]],
  ['{"x": # }\n{"y":1}\n', [err("stray '#'"), err('expecting value'), { y: 1 }]],
  ['}\n', [err('expecting value')]],
  [': , \n', [err('expecting value'), err('expecting value')]],
  ['"\\ud800"\n', [err('\\ud800 is not a valid Unicode character')]],
  ['"\\u12"\n', [err('\\u12 is not a valid Unicode character')]],
  ['"abc\ndef"\n', [err("stray '\"abc\n'")]],
  ['tru.e\n', [err("invalid keyword 'tru'"), err("stray '.'")]],
  ['[1}]\n', [err('expected separator in list'), err('expecting value')]],
  ["{'execute':'quit'}", [{ execute: 'quit' }]],
  ['{"a":1}{"b":[]}', [{ a: 1 }, { b: [] }]],
  [
    '{"__proto__":{"a":1}}',
    [Object.defineProperty({}, '__proto__', { value: { a: 1 }, enumerable: true })],
  ],
]

describe('qmp / json / reads', () => {
  for (const [text, found] of TABLE) {
    test(`${JSON.stringify(String(text))}`, () => {
      expect(read(text)).toEqual(found)
    })
  }

  test('integers of 64 bits keep every digit', () => {
    const list = parseJson('[18446744073709551615,-9223372036854775808,9007199254740991,5,-0]')
    expect(list).toEqual([18446744073709551615n, -9223372036854775808n, 9007199254740991, 5, 0])
  })

  test('nesting of 1024 is read and 1025 refused, and the stream goes on', () => {
    const deep = (n: number): string => '['.repeat(n) + ']'.repeat(n)
    expect(read(deep(1024))).toHaveLength(1)
    const found = read(`${'['.repeat(1025)}\n{"a":1}`)
    expect(found[0]).toBe('!JSON nesting depth limit exceeded')
    expect(found.at(-1)).toEqual({ a: 1 })
  })

  test('a long string is one token', () => {
    const text = 'x'.repeat(3 * 1024 * 1024)
    expect(read(JSON.stringify(text), () => 65536)).toEqual([text])
  })

  test('the way the stream is cut changes nothing', () => {
    const seed = 7
    const random = new Random(seed)
    for (const [text] of TABLE) {
      expect(
        read(text, () => 1 + random.int(3)),
        `seed ${seed}: ${text}`,
      ).toEqual(read(text))
    }
  })
})

describe('qmp / json / writes', () => {
  const written: readonly (readonly [JsonValue, string])[] = [
    [{ a: 1, b: ['x', true, null] }, '{"a": 1, "b": ["x", true, null]}'],
    [
      'é😀\u0000/\b\f\n\r\t\\"\'\u007f',
      '"\\u00E9\\uD83D\\uDE00\\u0000/\\b\\f\\n\\r\\t\\\\\\"\'\\u007F"',
    ],
    ['a\\u00e9', '"a\\\\u00e9"'],
    [18446744073709551615n, '18446744073709551615'],
    [1e23, '9.9999999999999992e+22'],
    [-(2 ** 63) * 1.5, '-1.3835058055282164e+19'],
    [0.1, '0.10000000000000001'],
    [1e-7, '9.9999999999999995e-08'],
    [123456789.125, '123456789.125'],
    [-0, '-0'],
  ]
  for (const [value, text] of written) {
    test(text, () => expect(stringifyJson(value)).toBe(text))
  }
})
