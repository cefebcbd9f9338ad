import { describe, expect, it } from 'vitest'
import { copyBytes } from '../../../src/util/copy.ts'

describe('util / copy', () => {
  it('util / copy / any length and alignment, between shared and own memory', () => {
    const shared = new Uint8Array(new SharedArrayBuffer(4096))
    const own = new Uint8Array(4096)
    for (const [i] of own.entries()) own[i] = (i * 31 + (i >> 8)) & 0xff
    for (const length of [0, 1, 255, 256, 257, 1000, 2048]) {
      for (const [at, from] of [
        [0, 0],
        [1, 0],
        [7, 28],
        [512, 3],
      ] as const) {
        shared.fill(0xee)
        const source = own.subarray(from, from + length)
        copyBytes(shared, at, source)
        expect(Buffer.compare(shared.subarray(at, at + length), source)).toBe(0)
        const around = shared.filter((_, i) => i < at || i >= at + length)
        expect(around.every((b) => b === 0xee)).toBe(true)
        const back = new Uint8Array(4096)
        copyBytes(back, from, shared.subarray(at, at + length))
        expect(Buffer.compare(back.subarray(from, from + length), source)).toBe(0)
      }
    }
  })

  it('util / copy / does not fit', () => {
    const to = new Uint8Array(1000)
    expect(() => copyBytes(to, 900, new Uint8Array(300))).toThrow(RangeError)
    expect(() => copyBytes(to, 990, new Uint8Array(20))).toThrow(RangeError)
  })
})
