import { describe, expect, it } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { Accounting } from '../../../src/block/accounting.ts'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { BlockGraph } from '../../../src/block/graph.ts'
import { memoryDriver } from '../../../src/drivers/memory.ts'
import { type Clock, VirtualClock } from '../../../src/util/clock.ts'
import { BlockError, ioError } from '../../../src/util/errors.ts'
import { guest, latch } from '../../support/graph.ts'
import { TestDisk } from '../../support/test-disk.ts'

const MS = 1e6
const NOTHING = { operations: 0, bytes: 0, failed: 0, invalid: 0, totalTimeNs: 0 }

interface World {
  clock: VirtualClock
  graph: BlockGraph
  disk: TestDisk
  user: BlockBackend
}

async function open(driver = 'test', more: object = {}): Promise<World> {
  const clock = new VirtualClock()
  const disk = new TestDisk(65536)
  const drivers = [memoryDriver, disk.definition]
  const graph = new BlockGraph({ ctx: new AioContext({ clock }), drivers })
  const options = { driver, 'node-name': 'n', size: 65536, discard: 'unmap', ...more } as const
  return { clock, graph, disk, user: await guest(graph, await graph.add(options)) }
}

/** A request that is held for so many milliseconds. */
async function during(world: World, op: string, ms: number, start: () => unknown): Promise<void> {
  const held = latch()
  world.disk.hold.set(op, held)
  const request = start()
  await world.clock.advance(ms)
  world.disk.hold.delete(op)
  held.open()
  await request
}

/** Time that a test moves between two looks of the accounting itself. */
class StepClock extends VirtualClock {
  at = 0
  looks = 0

  override nowMs(): number {
    this.looks++
    return this.at
  }
}

const inline = (accounting: Accounting, clock: StepClock, tookMs: number): void => {
  const from = accounting.begin(accounting.read)
  clock.at += tookMs
  accounting.done(accounting.read, 512, from)
}

describe('block / accounting', () => {
  it('block / accounting / a backend that did nothing says so', async () => {
    const { user } = await open()
    const none = { read: NOTHING, write: NOTHING, flush: NOTHING, unmap: NOTHING }
    expect(user.statistics()).toEqual(none)
  })

  it('block / accounting / requests that wait are counted with their exact time', async () => {
    const world = await open()
    const { user } = world
    await during(world, 'read', 3, () => user.pread(0, new Uint8Array(512)))
    await during(world, 'read', 4, () => user.pread(512, new Uint8Array(1024)))
    await during(world, 'write', 5, () => user.pwrite(0, new Uint8Array(4096)))
    await during(world, 'write', 6, () => user.pwriteZeroes(0, 8192))
    await during(world, 'discard', 7, () => user.pdiscard(0, 16384))
    await during(world, 'flush', 8, () => user.flush())
    await world.clock.advance(9)
    expect(user.statistics()).toEqual({
      read: { ...NOTHING, operations: 2, bytes: 1536, totalTimeNs: 7 * MS },
      write: { ...NOTHING, operations: 2, bytes: 12288, totalTimeNs: 11 * MS },
      unmap: { ...NOTHING, operations: 1, bytes: 16384, totalTimeNs: 7 * MS },
      flush: { ...NOTHING, operations: 1, totalTimeNs: 8 * MS },
      idleTimeNs: 9 * MS,
    })
  })

  it('block / accounting / requests that end inline are counted', async () => {
    const { user } = await open('memory')
    for (let at = 0; at < 1000; at++) {
      expect(user.pread(0, new Uint8Array(512))).toBeUndefined()
      expect(user.pwrite(0, new Uint8Array(1024))).toBeUndefined()
    }
    const { read, write } = user.statistics()
    expect(read).toEqual({ ...NOTHING, operations: 1000, bytes: 512_000 })
    expect(write).toEqual({ ...NOTHING, operations: 1000, bytes: 1_024_000 })
  })

  it('block / accounting / a failed request has its time but no bytes', async () => {
    const world = await open()
    const { disk, user } = world
    disk.failNext.set('write', ioError('ENOSPC'))
    const write = during(world, 'write', 2, () => user.pwrite(0, new Uint8Array(512)))
    await expect(write).rejects.toMatchObject({ code: 'ENOSPC' })
    expect(user.statistics()).toMatchObject({
      write: { ...NOTHING, failed: 1, totalTimeNs: 2 * MS },
      idleTimeNs: 0,
    })
  })

  it('block / accounting / a range that does not exist is invalid, not failed', async () => {
    const { user } = await open()
    expect(() => user.pread(65024, new Uint8Array(1024))).toThrow(BlockError)
    expect(() => user.pwrite(-512, new Uint8Array(512))).toThrow(BlockError)
    expect(() => user.pdiscard(65536, 512)).toThrow(BlockError)
    expect(() => user.pwriteZeroes(65536, 512)).toThrow(BlockError)
    expect(() => user.blockStatus(65536, 512)).toThrow(BlockError)
    const { read, write, unmap } = user.statistics()
    expect([read, write, unmap]).toEqual([
      { ...NOTHING, invalid: 1 },
      { ...NOTHING, invalid: 2 },
      { ...NOTHING, invalid: 1 },
    ])
  })

  it('block / accounting / what a fence and a read-only node refuse has failed', async () => {
    const { graph, user } = await open('memory')
    user.fence(ioError('EPERM'))
    expect(() => user.pwrite(0, new Uint8Array(512))).toThrow(BlockError)
    user.unfence()
    await user.close()
    const node = graph.find('n')
    if (node === undefined) throw new Error('no node')
    await graph.setReadOnly(node, true)
    const reads = { perm: PERM.CONSISTENT_READ, shared: PERM.ALL }
    const reader = await BlockBackend.create(graph, node, reads)
    expect(() => reader.pwrite(0, new Uint8Array(512))).toThrow(BlockError)
    expect(user.statistics().write.failed).toBe(1)
    expect(reader.statistics().write.failed).toBe(1)
  })

  it('block / accounting / the wait for the end of a drain is part of the time', async () => {
    const { clock, graph, user } = await open('memory')
    for (let at = 0; at < 100; at++) await user.pread(0, new Uint8Array(512))
    await graph.drainedBegin(user.node)
    user.setLatencyHistogram('read', [3 * MS, 10 * MS])
    const read = user.pread(0, new Uint8Array(512))
    await clock.advance(5)
    expect(user.statistics().read.operations).toBe(100)
    graph.drainedEnd(user.node)
    await read
    const histogram = { boundaries: [3 * MS, 10 * MS], bins: [0, 1, 0] }
    const bytes = 101 * 512
    const expected = { ...NOTHING, operations: 101, bytes, totalTimeNs: 5 * MS, histogram }
    expect(user.statistics().read).toEqual(expected)
  })

  it('block / accounting / a request that was drained twice has both waits', async () => {
    const { clock, graph, user } = await open('memory')
    await graph.drainedBegin(user.node)
    const read = user.pread(0, new Uint8Array(512))
    await clock.advance(5)
    graph.drainedEnd(user.node)
    const again = graph.drainedBegin(user.node)
    await clock.advance(7)
    await again
    graph.drainedEnd(user.node)
    await read
    expect(user.statistics().read).toMatchObject({ operations: 1, totalTimeNs: 12 * MS })
  })

  it('block / accounting / a woken request that is refused leaves no start behind', async () => {
    const { clock, graph, disk, user } = await open()
    await graph.drainedBegin(user.node)
    const read = user.pread(60_000, new Uint8Array(512))
    await clock.advance(5)
    Object.defineProperty(disk, 'data', { value: new Uint8Array(4096) })
    graph.drainedEnd(user.node)
    await expect(read).rejects.toMatchObject({ code: 'EIO' })
    await user.pread(0, new Uint8Array(512))
    expect(user.statistics().read).toEqual({ ...NOTHING, operations: 1, bytes: 512, invalid: 1 })
  })

  it('block / accounting / a histogram counts by latency, boundaries belong to the bin above', async () => {
    const world = await open()
    const { user } = world
    user.setLatencyHistogram('write', [2 * MS, 4 * MS])
    for (const ms of [0, 1, 2, 3, 4, 100]) {
      await during(world, 'write', ms, () => user.pwrite(0, new Uint8Array(512)))
    }
    expect(user.statistics().write.histogram?.bins).toEqual([2, 2, 2])
    expect(user.statistics().read.histogram).toBeUndefined()
    user.setLatencyHistogram('write', [1])
    expect(user.statistics().write.histogram).toEqual({ boundaries: [1], bins: [0, 0] })
    user.setLatencyHistogram('write', undefined)
    expect(user.statistics().write.histogram).toBeUndefined()
  })

  it('block / accounting / boundaries must ascend from above zero', async () => {
    const { user } = await open()
    for (const boundaries of [[0], [5, 5], [7, 3]]) {
      expect(() => user.setLatencyHistogram('read', boundaries)).toThrow(BlockError)
    }
    user.setLatencyHistogram('read', [])
    expect(user.statistics().read.histogram).toEqual({ boundaries: [], bins: [0] })
  })

  it('block / accounting / slow inline requests are each timed', () => {
    const clock = new StepClock()
    const accounting = new Accounting(clock as Clock)
    for (let at = 0; at < 100; at++) inline(accounting, clock, 0.5)
    expect(clock.looks).toBe(200)
    expect(accounting.report().read.totalTimeNs).toBe(50 * MS)
    expect(accounting.report().idleTimeNs).toBe(0)
  })

  it('block / accounting / fast inline requests share a look at the clock, and lose no time', () => {
    const clock = new StepClock()
    const accounting = new Accounting(clock as Clock)
    // The first, then after 1, 3, 7 … 63 more, and from there on every sixty-fourth.
    const count = 1 + 2 + 4 + 8 + 16 + 32 + 64 * 10
    for (let at = 0; at < count; at++) inline(accounting, clock, 1 / 8192)
    expect(clock.looks).toBe(2 * 16)
    const { operations, bytes, totalTimeNs } = accounting.report().read
    expect({ operations, bytes }).toEqual({ operations: count, bytes: count * 512 })
    expect(totalTimeNs).toBe(Math.round((count * MS) / 8192))
  })

  it('block / accounting / after a report, and while there is a histogram, every request is timed', () => {
    const clock = new StepClock()
    const accounting = new Accounting(clock as Clock)
    for (let at = 0; at < 500; at++) inline(accounting, clock, 1 / 8192)
    accounting.report()
    let looks = clock.looks
    inline(accounting, clock, 1 / 8192)
    expect(clock.looks - looks).toBe(2)
    accounting.setHistogram('read', [50, 500])
    looks = clock.looks
    for (let at = 0; at < 500; at++) inline(accounting, clock, 1 / 8192)
    expect(clock.looks - looks).toBe(1000)
    expect(accounting.report().read.histogram?.bins).toEqual([0, 500, 0])
  })
})

describe('block / furthest write', () => {
  it('block / furthest write / failed writes and zero writes count, discards and refused ones do not', async () => {
    const { disk, user } = await open()
    const { node } = user
    expect(node.writtenEnd).toBe(0)
    await user.pwrite(4096, new Uint8Array(512))
    expect(node.writtenEnd).toBe(4608)
    await user.pwrite(0, new Uint8Array(512))
    expect(node.writtenEnd).toBe(4608)
    await user.pwriteZeroes(8192, 512)
    expect(node.writtenEnd).toBe(8704)
    disk.failNext.set('write', ioError('EIO'))
    await expect(user.pwrite(16384, new Uint8Array(512))).rejects.toThrow()
    expect(node.writtenEnd).toBe(16896)
    await user.pdiscard(32768, 512)
    expect(() => user.pwrite(65536, new Uint8Array(512))).toThrow()
    await user.pwrite(65536, new Uint8Array(0))
    expect(node.writtenEnd).toBe(16896)
  })
})
