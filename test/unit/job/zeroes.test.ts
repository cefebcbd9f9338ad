import { expect, test } from 'vitest'
import { isZero, ZERO_BLOCK_BYTES, zeroRun } from '../../../src/job/zeroes.ts'

test('job / zeroes / one other byte makes a block data', () => {
  const block = new Uint8Array(ZERO_BLOCK_BYTES)
  expect(isZero(block)).toBe(true)
  block[ZERO_BLOCK_BYTES - 1] = 1
  expect(isZero(block)).toBe(false)
  expect(isZero(block.subarray(0, 512))).toBe(true)
})

test('job / zeroes / a buffer falls into runs of whole blocks, the last one may be cut', () => {
  const unit = ZERO_BLOCK_BYTES
  const buf = new Uint8Array(5 * unit + 512)
  buf[2 * unit + 7] = 1
  buf[4 * unit - 1] = 1
  const runs = []
  for (let at = 0; at < buf.length; ) {
    const run = zeroRun(buf, at)
    runs.push([run.zero, run.bytes])
    at += run.bytes
  }
  expect(runs).toEqual([
    [true, 2 * unit],
    [false, 2 * unit],
    [true, unit + 512],
  ])
})
