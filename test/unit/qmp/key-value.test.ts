import { describe, expect, test } from 'vitest'
import { blockdevOptions } from '../../../src/qmp/blockdev-schema.ts'
import { coerce, parseKeyValue } from '../../../src/qmp/key-value.ts'
import { BlockError } from '../../../src/util/errors.ts'

describe('qmp / key-value', () => {
  test('dots nest, doubled commas are commas, a lone word is on', () => {
    expect(parseKeyValue('driver=file,filename=/a,,b,cache.direct,read-only=off')).toEqual({
      driver: 'file',
      filename: '/a,b',
      cache: { direct: 'on' },
      'read-only': 'off',
    })
  })

  test('the schema gives values their types, also below', () => {
    const text =
      'driver=quorum,vote-threshold=1,children.1.driver=null-co,children.1.size=512,children.0=a,read-only=on'
    expect(coerce(blockdevOptions, parseKeyValue(text))).toEqual({
      driver: 'quorum',
      'vote-threshold': 1,
      children: ['a', { driver: 'null-co', size: 512 }],
      'read-only': true,
    })
  })

  test('numbers may have the suffix of a size', () => {
    for (const [text, size] of [
      ['4M', 4 * 1024 * 1024],
      ['64k', 65536],
      ['5X', '5X'],
      ['9999999T', '9999999T'],
    ] as const)
      expect(coerce(blockdevOptions, parseKeyValue(`driver=null-co,size=${text}`))).toEqual({
        driver: 'null-co',
        size,
      })
  })

  test('text that does not fit stays text', () => {
    expect(coerce(blockdevOptions, parseKeyValue('driver=null-co,size=big'))).toEqual({
      driver: 'null-co',
      size: 'big',
    })
  })

  test('a name used as value and as parent is refused', () => {
    for (const text of ['a=1,a.b=2', 'a.b=2,a=1', '__proto__.x=1', '=1']) {
      expect(() => parseKeyValue(text), text).toThrow(BlockError)
    }
  })
})
