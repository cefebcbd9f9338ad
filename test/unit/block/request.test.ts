import { describe, expect, it } from 'vitest'
import { FLAG } from '../../../src/block/driver.ts'
import { ioError } from '../../../src/util/errors.ts'
import { fill, guest, latch, memoryGraph, patternOf } from '../../support/graph.ts'
import { TestDisk } from '../../support/test-disk.ts'
import { openDisk } from './probe.ts'

describe('block / request', () => {
  it('block / request / a misaligned write keeps what surrounds it', async () => {
    const disk = new TestDisk(16384, { requestAlignment: 4096 })
    disk.data.fill(0x11)
    const { user } = await openDisk(disk)
    await fill(user, 0x22, 1000, 5000)
    expect(disk.data.subarray(0, 1000).every((b) => b === 0x11)).toBe(true)
    expect(disk.data.subarray(1000, 6000).every((b) => b === 0x22)).toBe(true)
    expect(disk.data.subarray(6000).every((b) => b === 0x11)).toBe(true)
    expect(disk.log).toEqual([
      ['read', 0, 8192],
      ['write', 0, 8192],
    ])
  })

  it('block / request / a failed read of the surroundings fails a misaligned write', async () => {
    const disk = new TestDisk(16384, { requestAlignment: 4096 })
    disk.data.fill(0x11)
    const { user } = await openDisk(disk)
    disk.failNext.set('read', ioError('EIO'))
    await expect(fill(user, 0x22, 512, 512)).rejects.toMatchObject({ code: 'EIO' })
    expect(disk.data.every((b) => b === 0x11)).toBe(true)
    expect(user.node.gate.inFlight).toBe(0)
  })

  it('block / request / a misaligned read answers just what was asked', async () => {
    const disk = new TestDisk(16384, { requestAlignment: 4096 })
    disk.data.fill(0x11, 0, 5000)
    disk.data.fill(0x22, 5000)
    const { user } = await openDisk(disk)
    expect(await patternOf(user, 4900, 100)).toBe(0x11)
    expect(await patternOf(user, 5000, 100)).toBe(0x22)
  })

  it('block / request / two misaligned writes to one block both survive', async () => {
    const disk = new TestDisk(4096, { requestAlignment: 4096 })
    const { user } = await openDisk(disk)
    await Promise.all([fill(user, 1, 0, 512), fill(user, 2, 512, 512), fill(user, 3, 1024, 512)])
    expect([disk.data[0], disk.data[512], disk.data[1024], disk.data[1536]]).toEqual([1, 2, 3, 0])
  })

  it('block / request / a serialising write waits for the readers it overlaps, and nobody waits for it in turn', async () => {
    const disk = new TestDisk(65536)
    const { user } = await openDisk(disk)
    const held = latch()
    disk.hold.set('read', held)
    const early = patternOf(user, 0, 4096)
    disk.hold.delete('read')
    const write = Promise.resolve(user.pwrite(0, new Uint8Array(4096).fill(9), FLAG.SERIALISING))
    const late = patternOf(user, 0, 4096)
    const beside = await patternOf(user, 8192, 4096)
    expect(beside).toBe(0)
    expect(disk.log.filter(([op]) => op === 'write')).toEqual([])
    held.open()
    expect([await early, await late]).toEqual([0, 0])
    await write
    expect(await patternOf(user, 0, 4096)).toBe(9)
    expect(user.node.tracked.size).toBe(0)
  })

  it('block / request / long requests are split to what the driver takes', async () => {
    const disk = new TestDisk(65536, { maxTransfer: 16384 })
    const { user } = await openDisk(disk)
    await fill(user, 5, 0, 40000)
    expect(disk.log.map(([, , bytes]) => bytes)).toEqual([16384, 16384, 7232])
    expect(await patternOf(user, 0, 40000)).toBe(5)
  })

  it('block / request / zero writes fall back to data where the driver cannot', async () => {
    const disk = new TestDisk(65536)
    disk.data.fill(1)
    const { user } = await openDisk(disk)
    await user.pwriteZeroes(4096, 8192)
    expect(disk.log.map(([op]) => op)).toEqual(['zeroes', 'write'])
    expect(await patternOf(user, 4096, 8192)).toBe(0)
    await expect(user.pwriteZeroes(0, 512, FLAG.NO_FALLBACK)).rejects.toMatchObject({
      code: 'ENOTSUP',
    })
    expect(await patternOf(user, 0, 512)).toBe(1)
  })

  it('block / request / detected zero data become a zero write, other data do not', async () => {
    const disk = new TestDisk(65536)
    disk.data.fill(1)
    disk.zeroes = 'yes'
    const { user } = await openDisk(disk, { 'detect-zeroes': 'on' })
    await fill(user, 0, 0, 8192)
    await fill(user, 2, 8192, 4096)
    expect(disk.log.map(([op]) => op)).toEqual(['zeroes', 'write'])
    expect(await patternOf(user, 0, 8192)).toBe(0)
  })

  it('block / request / a write with FUA ends after a flush', async () => {
    const disk = new TestDisk(4096)
    const { user } = await openDisk(disk)
    await user.pwrite(0, new Uint8Array(512), FLAG.FUA)
    expect(disk.log.map(([op]) => op)).toEqual(['write', 'flush'])
  })

  it('block / request / a flush without new writes does not reach the disk', async () => {
    const disk = new TestDisk(4096)
    const { user } = await openDisk(disk)
    await fill(user, 1, 0, 512)
    await user.flush()
    await user.flush()
    expect(disk.log.map(([op]) => op)).toEqual(['write', 'flush'])
  })

  it('block / request / a failed flush is tried again by the next one', async () => {
    const disk = new TestDisk(4096)
    const { user } = await openDisk(disk)
    await fill(user, 1, 0, 512)
    disk.failNext.set('flush', ioError('EIO'))
    await expect(user.flush()).rejects.toMatchObject({ code: 'EIO' })
    await user.flush()
    expect(disk.log.map(([op]) => op)).toEqual(['write', 'flush', 'flush'])
  })

  it('block / request / discards are ignored unless asked for', async () => {
    const plain = new TestDisk(4096)
    await (await openDisk(plain)).user.pdiscard(0, 4096)
    expect(plain.log).toEqual([])
    const unmap = new TestDisk(4096)
    await (await openDisk(unmap, { discard: 'unmap' })).user.pdiscard(0, 4096)
    expect(unmap.log).toEqual([['discard', 0, 4096]])
  })

  it('block / request / out of range is refused and leaves nothing in flight', async () => {
    const { user } = await openDisk(new TestDisk(4096))
    expect(() => user.pread(4000, new Uint8Array(512))).toThrow('Input/output error')
    expect(() => user.pwrite(4096, new Uint8Array(1))).toThrow('Input/output error')
    expect(user.inFlight).toBe(0)
    expect(user.node.gate.inFlight).toBe(0)
  })

  it('block / request / a failed request leaves no count behind, so a drain ends', async () => {
    const disk = new TestDisk(4096)
    const { graph, user } = await openDisk(disk)
    disk.failNext.set('write', ioError('ENOSPC'))
    await expect(fill(user, 1, 0, 512)).rejects.toMatchObject({ code: 'ENOSPC' })
    await graph.withDrained(user.node, () => undefined)
    expect(user.node.gate.quiesceCount).toBe(0)
  })

  it('block / request / a fenced backend refuses every change and still reads', async () => {
    const disk = new TestDisk(4096)
    const { user } = await openDisk(disk)
    user.fence(ioError('EPERM'))
    expect(() => user.pwrite(0, new Uint8Array(512))).toThrow('Operation not permitted')
    expect(() => user.pwriteZeroes(0, 512)).toThrow('Operation not permitted')
    expect(() => user.pdiscard(0, 512)).toThrow('Operation not permitted')
    expect(await patternOf(user, 0, 512)).toBe(0)
    user.unfence()
    await fill(user, 1, 0, 512)
  })
})

describe('block / status', () => {
  it('block / status / beyond the end of a short backing image everything is zero', async () => {
    const graph = memoryGraph()
    const base = await graph.add({ driver: 'memory', 'node-name': 'base', size: 65536 })
    await fill(await guest(graph, base), 0x11, 0, 65536)
    const top = await guest(
      graph,
      await graph.add({ driver: 'memory', 'node-name': 'top', size: 131072, backing: 'base' }),
    )
    expect(await top.blockStatus(0, 131072)).toMatchObject({ bytes: 65536, depth: 1 })
    const tail = await top.blockStatus(65536, 65536)
    expect(tail.bytes).toBe(65536)
    expect(await patternOf(top, 65536, 65536)).toBe(0)
  })
})
