/** What the block layer promises of single requests, one rule a test. */
import { describe, expect, it } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { FLAG, PERM } from '../../../src/block/driver.ts'
import type { BlockGraph } from '../../../src/block/graph.ts'
import { isAllocatedAbove } from '../../../src/block/status.ts'
import { nodeTruncate } from '../../../src/block/truncate.ts'
import { DirtyBitmap } from '../../../src/sync/dirty-bitmap.ts'
import { ioError } from '../../../src/util/errors.ts'
import { fill, guest, HeldDriver, latch, memoryGraph, patternOf } from '../../support/graph.ts'
import { TestDisk } from '../../support/test-disk.ts'
import { memory, openDisk, turns } from './probe.ts'

describe('block / request / backend', () => {
  it('block / request / backend / one longer than 31 bits fails, whatever its offset', async () => {
    const { user } = await openDisk(new TestDisk(4096))
    const long = new Uint8Array(2 ** 31 - 511)
    expect(() => user.pread(0, long)).toThrow('Input/output error')
    expect(() => user.pwrite(0, long)).toThrow('Input/output error')
    expect(user.inFlight).toBe(0)
  })

  it('block / request / backend / without a node everything fails with ENOMEDIUM, before its range is looked at', async () => {
    const { user } = await openDisk(new TestDisk(4096))
    await user.close()
    const noMedium = expect.objectContaining({ code: 'ENOMEDIUM' })
    expect(() => user.pread(-1, new Uint8Array(1))).toThrow(noMedium)
    expect(() => user.pwrite(9999, new Uint8Array(1))).toThrow(noMedium)
    expect(() => user.flush()).toThrow(noMedium)
    expect(() => user.blockStatus(0, 1)).toThrow(noMedium)
  })

  it('block / request / backend / a negative offset fails', async () => {
    const { user } = await openDisk(new TestDisk(4096))
    expect(() => user.pread(-512, new Uint8Array(512))).toThrow('Input/output error')
    expect(() => user.pdiscard(-512, 512)).toThrow('Input/output error')
  })

  it('block / request / backend / with the write cache off every write carries FUA', async () => {
    const disk = new TestDisk(4096)
    const graph = memoryGraph(disk.definition)
    const node = await graph.add({ driver: 'test', 'node-name': 't' })
    const perm = PERM.WRITE
    const user = await BlockBackend.create(graph, node, {
      perm,
      shared: PERM.ALL,
      writethrough: true,
    })
    await fill(user, 1, 0, 512)
    expect(disk.log.map(([op]) => op)).toEqual(['write', 'flush'])
  })

  it('block / request / backend / two who close it at once close it once', async () => {
    const { graph, user } = await openDisk(new TestDisk(4096))
    await Promise.all([user.close(), user.close()])
    expect(graph.lookup('t').refs).toBe(1)
  })
})

describe('block / request / write', () => {
  it('block / request / write / two zero writes into one block both count', async () => {
    const disk = new TestDisk(4096, { requestAlignment: 4096 })
    disk.data.fill(1)
    const { user } = await openDisk(disk)
    await Promise.all([user.pwriteZeroes(0, 512), user.pwriteZeroes(512, 512)])
    expect(await patternOf(user, 0, 1024)).toBe(0)
    expect(await patternOf(user, 1024, 3072)).toBe(1)
  })

  it('block / request / write / a zero write of half a block does not undo a write of the whole', async () => {
    const disk = new TestDisk(4096, { requestAlignment: 4096 })
    const { user } = await openDisk(disk)
    const held = latch()
    disk.hold.set('write', held)
    const zero = Promise.resolve(user.pwriteZeroes(0, 512))
    await turns()
    disk.hold.delete('write')
    const whole = fill(user, 7, 0, 4096)
    await turns()
    held.open()
    await Promise.all([zero, whole])
    expect(await patternOf(user, 512, 3584)).toBe(7)
  })

  it('block / request / write / read-only says EPERM, a user without the permission is our mistake', async () => {
    const disk = new TestDisk(4096)
    const graph = memoryGraph(disk.definition)
    const node = await graph.add({ driver: 'test', 'node-name': 't' })
    const perm = PERM.CONSISTENT_READ
    const reader = await BlockBackend.create(graph, node, { perm, shared: PERM.ALL })
    expect(() => reader.pwrite(0, new Uint8Array(512))).toThrow('assertion failed')
    expect(() => reader.pwriteZeroes(0, 512)).toThrow('assertion failed')
    expect(reader.inFlight).toBe(0)
    const fixed = await graph.add({ driver: 'test', 'node-name': 'r', 'read-only': true })
    const other = await BlockBackend.create(graph, fixed, { perm, shared: PERM.ALL })
    expect(() => other.pwrite(0, new Uint8Array(512))).toThrow('Operation not permitted')
  })

  it('block / request / write / what changes nothing needs only the permission for that', async () => {
    const disk = new TestDisk(4096)
    const graph = memoryGraph(disk.definition)
    const node = await graph.add({ driver: 'test', 'node-name': 't' })
    const perm = PERM.WRITE_UNCHANGED
    const user = await BlockBackend.create(graph, node, { perm, shared: PERM.ALL })
    await user.pwrite(0, new Uint8Array(512), FLAG.WRITE_UNCHANGED)
    expect(() => user.pwrite(0, new Uint8Array(512))).toThrow('assertion failed')
  })

  it('block / request / write / beyond the end needs RESIZE', async () => {
    const { user } = await openDisk(new TestDisk(4096))
    expect(() => user.root.pwrite(4000, new Uint8Array(512))).toThrow('Input/output error')
  })

  it('block / request / write / a read-only bitmap refuses writes and discards of its node', async () => {
    const { user } = await openDisk(new TestDisk(4096), { discard: 'unmap' })
    const bits = DirtyBitmap.create(4096, 512)
    user.node.bitmaps.adopt({ name: 'b', granularity: 512 }, bits).readOnly = true
    const words = "Bitmap 'b' is readonly and cannot be modified"
    expect(() => user.pwrite(0, new Uint8Array(512))).toThrow(words)
    expect(() => user.pwriteZeroes(0, 512)).toThrow(words)
    expect(() => user.pdiscard(0, 512)).toThrow(words)
  })

  it('block / request / write / bits are dirty after the end of the I/O, also when it failed', async () => {
    const disk = new TestDisk(4096)
    const { user } = await openDisk(disk)
    const bitmap = user.node.bitmaps.add({ name: 'b', granularity: 512 })
    const held = latch()
    disk.hold.set('write', held)
    disk.failNext.set('write', ioError('EIO'))
    const write = fill(user, 1, 512, 512)
    await turns()
    expect(bitmap.bits.dirtyBytes).toBe(0)
    held.open()
    await expect(write).rejects.toMatchObject({ code: 'EIO' })
    expect(bitmap.bits.nextDirty(0)).toEqual({ offset: 512, bytes: 512 })
  })

  it('block / request / write / a misaligned one without fallback is refused', async () => {
    const { user } = await openDisk(new TestDisk(8192, { requestAlignment: 4096 }))
    expect(() => user.pwrite(0, new Uint8Array(512), FLAG.NO_FALLBACK)).toThrow(
      expect.objectContaining({ code: 'ENOTSUP' }),
    )
    expect(user.node.gate.inFlight).toBe(0)
  })

  it('block / request / write / an empty one succeeds at any offset', async () => {
    const { user } = await openDisk(new TestDisk(8192, { requestAlignment: 4096 }))
    expect(user.pwrite(100, new Uint8Array(0))).toBeUndefined()
    expect(user.pread(100, new Uint8Array(0))).toBeUndefined()
  })

  it('block / request / write / zeroes with FUA are flushed once, at the end', async () => {
    const disk = new TestDisk(8192, { maxZeroes: 4096 })
    disk.zeroes = 'yes'
    const { user } = await openDisk(disk)
    await user.pwriteZeroes(0, 8192, FLAG.FUA)
    expect(disk.log.map(([op]) => op)).toEqual(['zeroes', 'zeroes', 'flush'])
  })
})

describe('block / request / read', () => {
  it('block / request / read / what lies beyond the end is zero', async () => {
    const disk = new TestDisk(4096)
    disk.data.fill(1)
    const { user } = await openDisk(disk)
    const buf = new Uint8Array(1024).fill(9)
    await user.root.pread(3584, buf)
    expect([buf[511], buf[512], buf[1023]]).toEqual([1, 0, 0])
  })
})

describe('block / request / discard', () => {
  it('block / request / discard / a bad range fails even where discards are ignored', async () => {
    const { user } = await openDisk(new TestDisk(4096))
    expect(() => user.root.pdiscard(4096, 512)).toThrow('Input/output error')
    await user.root.pdiscard(0, 512)
  })

  it('block / request / discard / partial blocks are left, ENOTSUP of the driver is no failure', async () => {
    const disk = new TestDisk(16384, { discardAlignment: 4096 })
    const { user } = await openDisk(disk, { discard: 'unmap' })
    await user.pdiscard(100, 10000)
    expect(disk.log).toEqual([['discard', 4096, 4096]])
    disk.log.length = 0
    disk.limits = { ...disk.limits, maxDiscard: 8192 }
    await user.pdiscard(0, 16384)
    expect(disk.log).toEqual([
      ['discard', 0, 8192],
      ['discard', 8192, 8192],
    ])
    disk.failNext.set('discard', ioError('ENOTSUP'))
    await user.pdiscard(0, 4096)
    disk.failNext.set('discard', ioError('EIO'))
    await expect(user.pdiscard(0, 4096)).rejects.toMatchObject({ code: 'EIO' })
  })
})

describe('block / request / flush', () => {
  it('block / request / flush / of a read-only node succeeds and reaches nothing', async () => {
    const disk = new TestDisk(4096)
    const graph = memoryGraph(disk.definition)
    const node = await graph.add({ driver: 'test', 'node-name': 't', 'read-only': true })
    const perm = PERM.CONSISTENT_READ
    const user = await BlockBackend.create(graph, node, { perm, shared: PERM.ALL })
    await user.flush()
    expect(disk.log).toEqual([])
  })

  it('block / request / flush / goes to the file of a node, never to its backing image', async () => {
    const disk = new TestDisk(65536)
    const graph = memoryGraph(disk.definition)
    const base = await graph.add({ driver: 'test', 'node-name': 't' })
    await fill(await guest(graph, base), 1, 0, 512)
    const top = await guest(graph, await graph.add(memory('top', 't')))
    await fill(top, 1, 0, 512)
    await top.flush()
    expect(disk.log.filter(([op]) => op.startsWith('flush'))).toEqual([])
  })

  it('block / request / flush / a write that ends meanwhile is not taken for stable', async () => {
    const disk = new TestDisk(4096)
    const { user } = await openDisk(disk)
    await fill(user, 1, 0, 512)
    const held = latch()
    disk.hold.set('flush', held)
    const first = user.flush()
    await fill(user, 2, 512, 512)
    held.open()
    disk.hold.delete('flush')
    await first
    await user.flush()
    expect(disk.log.map(([op]) => op)).toEqual(['write', 'flush', 'write', 'flush'])
  })
})

describe('block / status / rules', () => {
  it('block / status / rules / a node between that is shorter counts as holding what it lacks', async () => {
    const graph = memoryGraph()
    const base = await graph.add({ ...memory('base'), size: 131072 })
    await fill(await guest(graph, base), 1, 0, 131072)
    await graph.add({ ...memory('mid', 'base'), size: 65536 })
    const top = await graph.add({ ...memory('top', 'mid'), size: 131072 })
    expect(await isAllocatedAbove(top, base, 0, 131072)).toEqual({ allocated: false, bytes: 65536 })
    expect(await isAllocatedAbove(top, base, 65536, 65536)).toMatchObject({ allocated: true })
    expect(await patternOf(await guest(graph, top), 65536, 65536)).toBe(0)
  })

  it('block / status / rules / a filter asks what it filters', async () => {
    const graph = memoryGraph(new HeldDriver().definition)
    const base = await graph.add(memory('base'))
    await fill(await guest(graph, base), 1, 0, 4096)
    const filter = await graph.add({ driver: 'held', 'node-name': 'f', file: 'base' })
    const user = await guest(graph, filter)
    expect(await user.blockStatus(0, 65536)).toEqual(
      await (await guest(graph, base)).blockStatus(0, 65536),
    )
  })

  it('block / status / rules / a driver that refuses requests refuses questions too', async () => {
    const { user } = await openDisk(new TestDisk(4096))
    const { driver } = user.node
    user.node.driver = undefined
    expect(() => user.root.blockStatus(0, 512)).toThrow('No medium')
    user.node.driver = driver
  })
})

describe('block / truncate', () => {
  const resizer = (graph: BlockGraph, name: string): Promise<BlockBackend> =>
    BlockBackend.create(graph, graph.lookup(name), {
      perm: PERM.RESIZE | PERM.WRITE | PERM.CONSISTENT_READ,
      shared: PERM.ALL,
    })

  /** A test disk whose length can change. */
  function growing(size: number): TestDisk {
    const disk = new TestDisk(size)
    const { definition } = disk
    const open: typeof definition.open = async (node, options, opener) => ({
      ...(await definition.open(node, options, opener)),
      length: () => disk.data.length,
      truncate: (to) => {
        const next = new Uint8Array(to).fill(0xee)
        next.set(disk.data.subarray(0, to))
        Object.assign(disk, { data: next })
      },
    })
    Object.assign(disk, { definition: { ...definition, open } })
    return disk
  }

  it('block / truncate / bad sizes, read-only nodes and drivers that cannot are told apart', async () => {
    const disk = growing(4096)
    const graph = memoryGraph(disk.definition)
    await graph.add({ driver: 'test', 'node-name': 't' })
    const user = await resizer(graph, 't')
    await expect(nodeTruncate(user.root, -1)).rejects.toThrow('Image size cannot be negative')
    user.node.readOnly = true
    await expect(nodeTruncate(user.root, 512)).rejects.toMatchObject({
      code: 'EACCES',
      message: 'Image is read-only',
    })
    user.node.readOnly = false
    await nodeTruncate(user.root, 512)
    expect(user.length()).toBe(512)
    await graph.add(memory('m'))
    await expect(nodeTruncate((await resizer(graph, 'm')).root, 512)).rejects.toThrow(
      'Image format driver does not support resize',
    )
  })

  it('block / truncate / what is gained over a longer backing image reads as zeroes', async () => {
    const disk = growing(4096)
    const graph = memoryGraph({
      ...disk.definition,
      open: async (node, options, opener) => {
        await opener.open('backing', 'base', 'backing')
        return disk.definition.open(node, options, opener)
      },
    })
    await fill(await guest(graph, await graph.add(memory('base'))), 1, 0, 65536)
    await graph.add({ driver: 'test', 'node-name': 't' })
    const user = await resizer(graph, 't')
    const heard: number[][] = []
    user.node.writeListeners.add((offset, bytes) => heard.push([offset, bytes]))
    await nodeTruncate(user.root, 131072)
    expect(heard).toEqual([[4096, 61440]])
    expect(disk.data.subarray(4096, 65536).every((byte) => byte === 0)).toBe(true)
    expect(user.node.gate.inFlight).toBe(0)
  })

  it('block / truncate / growing waits for nobody but those of the new range', async () => {
    const disk = growing(8192)
    const graph = memoryGraph(disk.definition)
    await graph.add({ driver: 'test', 'node-name': 't' })
    const user = await resizer(graph, 't')
    const held = latch()
    disk.hold.set('read', held)
    const read = patternOf(user, 0, 512)
    await nodeTruncate(user.root, 16384)
    held.open()
    expect(await read).toBe(0)
  })
})
