import { describe, expect, it } from 'vitest'
import { fill, guest, memoryGraph } from '../../support/graph.ts'

const MiB = 1024 * 1024

async function disk() {
  const graph = memoryGraph()
  const node = await graph.add({ driver: 'memory', 'node-name': 'a', size: MiB })
  return { graph, node, user: await guest(graph, node) }
}

describe('block / bitmap', () => {
  it('block / bitmap / an enabled bitmap records every write, a disabled one none', async () => {
    const { node, user } = await disk()
    const on = node.bitmaps.add({ name: 'on', granularity: 65536 })
    const off = node.bitmaps.add({ name: 'off', granularity: 65536, disabled: true })
    await fill(user, 1, 65530, 10)
    await user.pwriteZeroes(131072 * 2, 4096)
    expect([on.bits.count, off.bits.count]).toEqual([3, 0])
    on.disable()
    off.enable()
    await fill(user, 1, MiB - 512, 512)
    expect([on.bits.count, off.bits.count]).toEqual([3, 1])
  })

  it('block / bitmap / clear and merge can be taken back, with what was written meanwhile', async () => {
    const { node, user } = await disk()
    const a = node.bitmaps.add({ name: 'a', granularity: 4096 })
    const b = node.bitmaps.add({ name: 'b', granularity: 65536 })
    await fill(user, 1, 0, 4096)
    const back = a.clear()
    expect(a.bits.count).toBe(0)
    await fill(user, 1, 8192, 4096)
    back()
    expect(a.bits.count).toBe(2)
    const apart = b.bits.count
    const unmerge = a.merge([b])
    expect(a.bits.count).toBe(16)
    unmerge()
    expect([a.bits.count, b.bits.count]).toEqual([2, apart])
  })

  it('block / bitmap / wrong names, granularities and states are refused', async () => {
    const { node } = await disk()
    const b = node.bitmaps.add({ name: 'b' })
    expect(b.granularity).toBe(4096)
    expect(() => node.bitmaps.add({ name: 'b' })).toThrow('Bitmap already exists: b')
    expect(() => node.bitmaps.add({ name: '' })).toThrow('cannot be empty')
    expect(() => node.bitmaps.add({ name: 'c', granularity: 256 })).toThrow('at least 512')
    expect(() => node.bitmaps.add({ name: 'c', granularity: 64000 })).toThrow('power of 2')
    expect(() => node.bitmaps.add({ name: 'c', persistent: true })).toThrow(
      "Can't store persistent bitmaps to a",
    )
    expect(() => node.bitmaps.need('x')).toThrow("Dirty bitmap 'x' not found")
    const done = b.use()
    expect(() => b.clear()).toThrow('currently in use')
    expect(() => node.bitmaps.remove('b')).toThrow('currently in use')
    done()
    node.bitmaps.remove('b')
    expect(node.bitmaps.list()).toEqual([])
  })
})
