import { afterEach, describe, expect, it } from 'vitest'
import { FLAG } from '../../../src/block/driver.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { createQcow2 } from '../../../src/drivers/qcow2/create.ts'
import { Bench } from './qcow2-support.ts'

let bench: Bench
afterEach(() => bench.close())

const MiB = 1 << 20

async function outcome(act: () => unknown): Promise<unknown> {
  try {
    await act()
  } catch (error) {
    return error instanceof Error && 'code' in error ? error.code : error
  }
  return 'ok'
}

/** A qcow2 image over a blkdebug node with these rules. */
async function over(rules: object) {
  bench = new Bench()
  const filename = bench.path('image')
  await createQcow2(filename, { size: MiB })
  const file = { driver: 'blkdebug', image: { driver: 'file', filename }, ...rules }
  return bench.open({ driver: 'qcow2', 'node-name': 'd', file })
}

const empty = (node: BlockNode) =>
  outcome(() => bench.graph.withDrained(node, () => node.driver?.makeEmpty?.()))

describe('blkdebug / below', () => {
  it('blkdebug / below / a rule for the emptying of an image fails it, with its content in place', async () => {
    const { node, disk } = await over({
      'inject-error': [{ event: 'empty_image_prepare', errno: 28, once: true }],
    })
    await disk.pwrite(0, new Uint8Array(MiB).fill(7))
    expect(await empty(node)).toBe('ENOSPC')
    const buf = new Uint8Array(MiB)
    await disk.pread(0, buf)
    expect(buf.every((byte) => byte === 7)).toBe(true)
    expect(await empty(node)).toBe('ok')
    await disk.pread(0, buf)
    expect(buf.every((byte) => byte === 0)).toBe(true)
  })

  it('blkdebug / below / an image that holds nothing is emptied for the rules to count', async () => {
    const { node, disk } = await over({
      'inject-error': [{ event: 'empty_image_prepare', state: 2, once: true }],
      'set-state': [{ event: 'empty_image_prepare', state: 1, new_state: 2 }],
    })
    expect(await empty(node)).toBe('ok')
    expect(await empty(node)).toBe('EIO')
    expect(await empty(node)).toBe('ok')
    expect(await outcome(() => disk.pwrite(0, new Uint8Array(512)))).toBe('ok')
  })

  it('blkdebug / below / a write through to the disk meets the rule for flushes', async () => {
    bench = new Bench()
    const filename = bench.path('image')
    await createQcow2(filename, { size: MiB })
    const image = { driver: 'qcow2', file: { driver: 'file', filename } }
    const rules = [{ event: 'none', iotype: 'flush', errno: 5 }]
    const { disk } = await bench.open({
      driver: 'blkdebug',
      'node-name': 'd',
      image,
      'inject-error': rules,
    })
    expect(await outcome(() => disk.pwrite(0, new Uint8Array(512)))).toBe('ok')
    expect(await outcome(() => disk.pwrite(0, new Uint8Array(512), FLAG.FUA))).toBe('EIO')
  })
})
