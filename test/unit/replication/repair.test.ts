import { describe, expect, it, vi } from 'vitest'
import { BlockError, ioError } from '../../../src/util/errors.ts'
import { fill, guest, latch, patternOf } from '../../support/graph.ts'
import { DISK_BYTES, memory, replicationWorld, secondary } from '../../support/replication.ts'
import { TestDisk } from '../../support/test-disk.ts'

const K64 = 65536

/** A primary whose way to the other side is `disk`; its own disk is the memory disk `own`. */
async function primaryOver(disk: TestDisk) {
  const world = replicationWorld(disk.definition)
  const { graph, registry } = world
  const own = await graph.add(memory('own'))
  await graph.add({
    driver: 'replication',
    'node-name': 'p',
    mode: 'primary',
    file: { driver: 'test' },
  })
  await registry.startAll('primary')
  const local = await guest(graph, own)
  const remote = await guest(graph, graph.lookup('p'))
  // What a quorum does: the local disk and the other side get the same write.
  const write = async (pattern: number, offset: number, bytes: number): Promise<void> => {
    await Promise.all([fill(local, pattern, offset, bytes), fill(remote, pattern, offset, bytes)])
  }
  return { world, own, write }
}

describe('replication / primary / resync', () => {
  it('replication / primary / resync / sends just what is missing and clears the error', async () => {
    const disk = new TestDisk(DISK_BYTES)
    const { world, own, write } = await primaryOver(disk)
    await using _ = world
    await write(0x21, 0, DISK_BYTES)
    disk.failNext.set('write', ioError('EIO'))
    await write(0x22, 3 * K64 + 512, 512)
    expect(world.registry.list()[0]).toMatchObject({ missingBytes: K64, forwardFailures: 1 })
    disk.log.length = 0
    await world.registry.resync('p', own)
    expect(disk.log).toEqual([['write', 3 * K64, K64]])
    expect(disk.data.subarray(3 * K64 + 512, 3 * K64 + 1024).every((b) => b === 0x22)).toBe(true)
    world.registry.getErrorAll()
    await world.registry.checkpointAll()
    expect(world.registry.list()[0]).toMatchObject({ missingBytes: 0, forwardFailures: 0 })
  })

  it('replication / primary / resync / a write during the copy of its range ends last', async () => {
    const disk = new TestDisk(DISK_BYTES)
    const { world, own, write } = await primaryOver(disk)
    await using _ = world
    disk.failNext.set('write', ioError('EIO'))
    await write(0x22, 0, K64)
    const held = latch()
    disk.hold.set('write', held)
    const sync = world.registry.resync('p', own)
    // The guest overwrites the range while its old content is on its way.
    await Promise.resolve()
    const late = write(0x23, 0, K64)
    held.open()
    disk.hold.delete('write')
    await Promise.all([sync, late])
    expect(disk.data.subarray(0, K64).every((b) => b === 0x23)).toBe(true)
    world.registry.getErrorAll()
  })

  it('replication / primary / resync / a write that waits for its last pass is not called missing', async () => {
    const disk = new TestDisk(DISK_BYTES)
    const { world, own, write } = await primaryOver(disk)
    await using _ = world
    disk.failNext.set('write', ioError('EIO'))
    await write(0x22, 5 * K64, K64)
    const [first, last] = [latch(), latch()]
    disk.log.length = 0
    disk.hold.set('write', first)
    const sync = world.registry.resync('p', own)
    await vi.waitUntil(() => disk.log.some(([, offset]) => offset === 5 * K64))
    // Behind the first pass, so that the last one has something to send.
    const early = write(0x23, 2 * K64, K64)
    await vi.waitUntil(() => world.registry.list()[0]?.missingBytes === K64)
    disk.hold.set('write', last)
    first.open()
    await vi.waitUntil(() => own.gate.quiesceCount > 0)
    const late = write(0x24, 7 * K64, K64)
    last.open()
    disk.hold.delete('write')
    await Promise.all([sync, early])
    world.registry.getErrorAll()
    await late
    world.registry.getErrorAll()
    expect(world.registry.list()[0]).toMatchObject({ missingBytes: 0, forwardFailures: 0 })
    expect(disk.data.subarray(7 * K64, 8 * K64).every((byte) => byte === 0x24)).toBe(true)
    expect(disk.data.subarray(2 * K64, 3 * K64).every((byte) => byte === 0x23)).toBe(true)
  })

  it('replication / primary / resync / a failed resync keeps what is left and can be repeated', async () => {
    const disk = new TestDisk(DISK_BYTES)
    const { world, own, write } = await primaryOver(disk)
    await using _ = world
    disk.failNext.set('write', ioError('EIO'))
    await write(0x22, 0, K64)
    disk.failNext.set('write', ioError('ENOSPC'))
    await expect(world.registry.resync('p', own)).rejects.toMatchObject({ code: 'ENOSPC' })
    expect(() => world.registry.getErrorAll()).toThrow('I/O error occurred')
    await world.registry.resync('p', own)
    world.registry.getErrorAll()
    await expect(world.registry.resync('own', own)).rejects.toThrow('is not the primary')
  })
})

describe('replication / secondary / protection', () => {
  it('replication / secondary / protection / when the worker dies, writes fail until a checkpoint', async () => {
    await using world = replicationWorld()
    const { exported, guest: top } = await secondary(world)
    await world.registry.startAll('secondary')
    await fill(exported, 0x22, 0, K64)
    await world.pool.close()
    await expect(fill(exported, 0x22, K64, K64)).rejects.toThrow('protection of node')
    expect(() => world.registry.getErrorAll()).toThrow('I/O error occurred')
    expect(await patternOf(exported, K64, K64)).toBe(0x11)
    expect(await patternOf(top, 0, DISK_BYTES)).toBe(0x11)
    await world.registry.checkpointAll()
    world.registry.getErrorAll()
    expect(await patternOf(top, 0, K64)).toBe(0x22)
    await fill(exported, 0x23, K64, K64)
    expect(await patternOf(top, K64, K64)).toBe(0x11)
  })

  it('replication / secondary / protection / a watermark warns once an epoch', async () => {
    await using world = replicationWorld()
    const { graph, registry } = world
    const local = await guest(graph, await graph.add(memory('local')))
    await graph.add({
      driver: 'replication',
      'node-name': 'top',
      mode: 'secondary',
      'top-id': 'top',
      'hidden-watermark': 3 * K64,
      file: memory('active', { backing: memory('hidden', { backing: 'local' }) }),
    })
    await registry.startAll('secondary')
    const warnings: unknown[] = []
    graph.events.on('REPLICATION_HIDDEN_WATERMARK', (data) => warnings.push(data))
    for (let epoch = 0; epoch < 2; epoch++) {
      for (let i = 0; i < 8; i++) await fill(local, 1, i * K64, 512)
      expect(warnings).toHaveLength(epoch + 1)
      await registry.checkpointAll()
    }
    expect(warnings[0]).toMatchObject({ 'node-name': 'top', watermark: 3 * K64 })
  })
})

describe('replication / secondary / failed failover', () => {
  it('replication / secondary / failed failover / keeps the view, takes writes, and can be tried again', async () => {
    const disk = new TestDisk(DISK_BYTES)
    await using world = replicationWorld(disk.definition)
    const { exported, guest: top } = await secondary(world, {
      wrap: { local: () => ({ driver: 'test', 'node-name': 'local' }) },
    })
    await world.registry.startAll('secondary')
    await fill(exported, 0x22, 0, K64)
    await fill(top, 0x33, 4 * K64, K64)
    const broken = new BlockError('EIO', 'broken disk')
    disk.failNext.set('write', broken)
    await world.registry.stopAll(true)
    await world.registry.settled()
    expect(world.registry.list()[0]).toMatchObject({ stage: 'failover-failed' })
    expect(() => world.registry.getErrorAll()).toThrow('I/O error occurred')
    expect(await patternOf(top, 0, K64)).toBe(0x11)
    expect(await patternOf(top, 4 * K64, K64)).toBe(0x33)
    // Into a clean area, over saved data, and across both.
    await fill(top, 0x44, 10 * K64, K64)
    await fill(top, 0x55, 4 * K64 + 100, 2 * K64)
    expect(await patternOf(top, 10 * K64, K64)).toBe(0x44)
    expect(await patternOf(top, 4 * K64 + 100, 2 * K64)).toBe(0x55)
    expect(await patternOf(exported, 10 * K64, K64)).toBe(0x44)
    for (const order of ['startAll', 'checkpointAll', 'stopAll'] as const)
      await expect(
        order === 'startAll'
          ? world.registry.startAll('secondary')
          : order === 'stopAll'
            ? world.registry.stopAll(true)
            : world.registry.checkpointAll(),
      ).rejects.toMatchObject({ code: 'EINVAL' })
    await world.registry.retryFailover('top')
    await world.registry.settled()
    world.registry.getErrorAll()
    expect(world.registry.list()[0]).toMatchObject({ stage: 'done' })
    for (const user of [top, exported]) {
      expect(await patternOf(user, 0, 4 * K64)).toBe(0x11)
      expect(await patternOf(user, 4 * K64 + 100, 2 * K64)).toBe(0x55)
      expect(await patternOf(user, 10 * K64, K64)).toBe(0x44)
    }
  })
})
