import { describe, expect, it } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { fill, patternOf } from '../../support/graph.ts'
import {
  DISK_BYTES,
  memory,
  replicationWorld,
  secondary,
  type World,
} from '../../support/replication.ts'

const MiB = 1024 * 1024
const K64 = 65536

const stageOf = (world: World, name = 'top') =>
  world.registry.list().find((one) => one.node === name)?.stage

function quietCounts(world: World): void {
  for (const node of world.graph.nodes()) {
    expect(node.gate.quiesceCount, `drains of ${node.name}`).toBe(0)
    expect(node.gate.inFlight, `requests of ${node.name}`).toBe(0)
  }
}

describe('replication / secondary', () => {
  it('replication / secondary / before the start every request is refused, also the block status', async () => {
    await using world = replicationWorld()
    const { guest } = await secondary(world)
    expect(() => guest.pread(0, new Uint8Array(512))).toThrow('Input/output error')
    expect(() => guest.pwrite(0, new Uint8Array(512))).toThrow('Input/output error')
    expect(() => guest.blockStatus(0, 512)).toThrow('Input/output error')
    expect(() => world.registry.getErrorAll()).toThrow('Block replication is not running')
  })

  it('replication / secondary / the guest keeps the last checkpoint while the primary writes', async () => {
    await using world = replicationWorld()
    const { exported, guest } = await secondary(world)
    await world.registry.startAll('secondary')
    await fill(exported, 0x22, 0, MiB)
    await fill(guest, 0x33, 2 * MiB, K64)
    expect(await patternOf(guest, 0, 2 * MiB)).toBe(0x11)
    expect(await patternOf(guest, 2 * MiB, K64)).toBe(0x33)
    expect(await patternOf(exported, 0, MiB)).toBe(0x22)
    expect(await patternOf(exported, 2 * MiB, K64)).toBe(0x11)
  })

  it('replication / secondary / a small write saves its whole cluster', async () => {
    await using world = replicationWorld()
    const { exported, guest } = await secondary(world)
    await world.registry.startAll('secondary')
    await fill(exported, 0x22, K64 + 100, 50)
    await fill(exported, 0x22, 3 * K64 - 10, 20)
    expect(await patternOf(guest, 0, DISK_BYTES)).toBe(0x11)
    await fill(guest, 0x33, K64 + 120, 10)
    expect(await patternOf(guest, K64 + 100, 20)).toBe(0x11)
    expect(await patternOf(exported, K64 + 100, 50)).toBe(0x22)
  })

  it('replication / secondary / checkpoint drops the active disk and shows what the primary wrote', async () => {
    await using world = replicationWorld()
    const { exported, guest } = await secondary(world)
    await world.registry.startAll('secondary')
    await fill(exported, 0x22, 0, MiB)
    await fill(guest, 0x33, MiB / 2, MiB)
    await world.registry.checkpointAll()
    expect(await patternOf(guest, 0, MiB)).toBe(0x22)
    expect(await patternOf(guest, MiB, DISK_BYTES - MiB)).toBe(0x11)
    expect(world.registry.list()[0]).toMatchObject({ epoch: 1, copiedBytes: 0, stage: 'running' })
    quietCounts(world)
  })

  it('replication / secondary / failover keeps the last checkpoint and the own writes', async () => {
    await using world = replicationWorld()
    const { exported, guest } = await secondary(world)
    await world.registry.startAll('secondary')
    await fill(exported, 0x21, 0, K64)
    await world.registry.checkpointAll()
    await fill(exported, 0x22, 0, MiB)
    await fill(guest, 0x33, 2 * MiB, MiB)
    await world.registry.stopAll(true)
    expect(await patternOf(guest, 2 * MiB, MiB)).toBe(0x33)
    await world.registry.settled()
    expect(stageOf(world)).toBe('done')
    world.registry.getErrorAll()
    for (const user of [guest, exported]) {
      expect(await patternOf(user, 0, K64)).toBe(0x21)
      expect(await patternOf(user, K64, 2 * MiB - K64)).toBe(0x11)
      expect(await patternOf(user, 2 * MiB, MiB)).toBe(0x33)
    }
    expect(world.graph.find('active')).toBeUndefined()
    expect(world.graph.find('hidden')).toBeUndefined()
    await fill(guest, 0x44, 0, K64)
    quietCounts(world)
  })

  it('replication / secondary / from failover on the export is fenced', async () => {
    await using world = replicationWorld()
    const { exported, guest } = await secondary(world)
    await world.registry.startAll('secondary')
    await world.registry.stopAll(true)
    expect(() => exported.pwrite(0, new Uint8Array(512))).toThrow('taken over by a failover')
    await world.registry.settled()
    expect(() => exported.pwriteZeroes(0, 512)).toThrow('taken over by a failover')
    await guest.close()
    await world.graph.remove('top')
    await fill(exported, 1, 0, 512)
  })

  it('replication / secondary / stop without failover shows the secondary disk, without error', async () => {
    await using world = replicationWorld()
    const { exported, guest } = await secondary(world)
    await world.registry.startAll('secondary')
    await fill(exported, 0x22, 0, MiB)
    await fill(guest, 0x33, MiB / 2, MiB)
    await world.registry.stopAll(false)
    expect(stageOf(world)).toBe('done')
    world.registry.getErrorAll()
    expect(await patternOf(guest, 0, MiB)).toBe(0x22)
    expect(await patternOf(guest, MiB, DISK_BYTES - MiB)).toBe(0x11)
    expect(world.graph.find('hidden')?.readOnly).toBe(true)
    await fill(exported, 0x23, 0, K64)
    quietCounts(world)
  })

  it('replication / secondary / orders meet the stage table', async () => {
    await using world = replicationWorld()
    await secondary(world)
    const { registry } = world
    await expect(registry.checkpointAll()).rejects.toThrow('Backup job was cancelled unexpectedly')
    await expect(registry.stopAll(false)).rejects.toThrow('Block replication is not running')
    await expect(registry.startAll('primary')).rejects.toThrow(
      "The parameter mode's value is invalid, needs 1, but got 0",
    )
    await registry.startAll('secondary')
    await expect(registry.startAll('secondary')).rejects.toThrow(
      'Block replication is running or done',
    )
    await registry.stopAll(false)
    await registry.startAll('secondary')
    await registry.startAll('primary')
    await registry.checkpointAll()
    await registry.stopAll(true)
    expect(stageOf(world)).toBe('done')
  })

  it('replication / secondary / the top node is busy while running and free afterwards', async () => {
    await using world = replicationWorld()
    const { guest } = await secondary(world)
    await world.registry.startAll('secondary')
    const top = world.graph.lookup('top')
    expect(() => top.blockers.check('stream', 'top')).toThrow(
      "Node 'top' is busy: Block device is in use by internal backup job",
    )
    await guest.close()
    await expect(world.graph.remove('top')).rejects.toThrow('internal backup job')
    await world.registry.stopAll(false)
    await world.graph.remove('top')
  })
})

describe('replication / secondary / start', () => {
  it('replication / secondary / start / a refused start says why, changes nothing, and can be repeated', async () => {
    await using world = replicationWorld()
    await secondary(world, { topId: 'nobody' })
    const before = world.graph.nodes().map((n) => [n.name, n.readOnly, n.parents.size])
    for (let i = 0; i < 3; i++)
      await expect(world.registry.startAll('secondary')).rejects.toThrow(
        'No top_bs or it is invalid',
      )
    expect(world.graph.nodes().map((n) => [n.name, n.readOnly, n.parents.size])).toEqual(before)
    expect(stageOf(world)).toBe('none')
    expect(world.graph.lookup('top').blockers.reason('stream')).toBeUndefined()
    quietCounts(world)
  })

  it('replication / secondary / start / disks that do not fit are named', async () => {
    await using world = replicationWorld()
    const { graph, registry } = world
    await graph.add(memory('local'))
    const hidden = memory('h', { backing: 'local' })
    const add = (name: string, file: unknown) =>
      graph.add({
        driver: 'replication',
        'node-name': name,
        mode: 'secondary',
        'top-id': name,
        file,
      })
    const tries: readonly (readonly [unknown, string])[] = [
      [memory('a'), "Active disk doesn't have backing file"],
      [memory('a', { backing: memory('h') }), "Hidden disk doesn't have backing file"],
      [memory('a', { backing: hidden }), "The secondary disk doesn't have block backend"],
    ]
    for (const [file, message] of tries) {
      await add('t', file)
      await expect(registry.startAll('secondary')).rejects.toThrow(message)
      await graph.remove('t')
    }
    await BlockBackend.create(graph, graph.lookup('local'), { perm: 0, shared: PERM.ALL })
    await add('t', memory('a', { size: 2 * DISK_BYTES, backing: hidden }))
    await expect(registry.startAll('secondary')).rejects.toThrow('length are not the same')
  })

  it('replication / secondary / start / when one of two disks cannot start, none does', async () => {
    await using world = replicationWorld()
    await secondary(world, { prefix: 'bad-', topId: 'nobody' })
    const good = await secondary(world, { prefix: 'good-' })
    await expect(world.registry.startAll('secondary')).rejects.toThrow('No top_bs')
    expect(stageOf(world, 'good-top')).toBe('none')
    expect(() => good.guest.pread(0, new Uint8Array(512))).toThrow('Input/output error')
    await fill(good.exported, 0x22, 0, K64)
    quietCounts(world)
  })
})

describe('replication / secondary / two disks', () => {
  it('replication / secondary / two disks / start, checkpoint and failover together', async () => {
    await using world = replicationWorld()
    const one = await secondary(world, { prefix: 'a-' })
    const two = await secondary(world, { prefix: 'b-' })
    await world.registry.startAll('secondary')
    for (const disk of [one, two]) await fill(disk.exported, 0x22, 0, K64)
    await world.registry.checkpointAll()
    for (const disk of [one, two]) expect(await patternOf(disk.guest, 0, K64)).toBe(0x22)
    await world.registry.stopAll(true)
    await world.registry.settled()
    expect(stageOf(world, 'a-top')).toBe('done')
    expect(stageOf(world, 'b-top')).toBe('done')
  })

  it('replication / secondary / two disks / when one cannot be checkpointed, neither moves', async () => {
    await using world = replicationWorld()
    const one = await secondary(world, { prefix: 'a-' })
    const two = await secondary(world, { prefix: 'b-' })
    await world.registry.startAll('secondary')
    for (const disk of [one, two]) await fill(disk.exported, 0x22, 0, K64)
    const hidden = world.graph.lookup('a-hidden')
    const driver = hidden.needDriver()
    hidden.driver = undefined
    await expect(world.registry.checkpointAll()).rejects.toThrow('Hidden disk a-hidden is ejected')
    hidden.driver = driver
    for (const disk of [one, two]) expect(await patternOf(disk.guest, 0, K64)).toBe(0x11)
    await world.registry.checkpointAll()
    for (const disk of [one, two]) expect(await patternOf(disk.guest, 0, K64)).toBe(0x22)
    quietCounts(world)
  })
})

describe('replication / primary', () => {
  it('replication / primary / forwards writes, hides failures, refuses to read and to checkpoint', async () => {
    const { TestDisk } = await import('../../support/test-disk.ts')
    const { ioError } = await import('../../../src/util/errors.ts')
    const { guest } = await import('../../support/graph.ts')
    const disk = new TestDisk(65536)
    await using world = replicationWorld(disk.definition)
    const { graph, registry } = world
    await graph.add({
      driver: 'replication',
      'node-name': 'p',
      mode: 'primary',
      file: { driver: 'test' },
    })
    const user = await guest(graph, graph.lookup('p'))
    expect(() => user.pwrite(0, new Uint8Array(512))).toThrow('Input/output error')
    await registry.checkpointAll()
    await registry.startAll('primary')
    await fill(user, 0x22, 0, 512)
    expect(disk.data[0]).toBe(0x22)
    expect(() => user.pread(0, new Uint8Array(512))).toThrow('Input/output error')
    registry.getErrorAll()
    disk.failNext.set('write', ioError('ENOSPC'))
    await fill(user, 0x33, 0, 512)
    expect(disk.data[0]).toBe(0x22)
    expect(() => registry.getErrorAll()).toThrow('I/O error occurred')
    await fill(user, 0x34, 0, 512)
    await expect(registry.checkpointAll()).rejects.toMatchObject({
      code: 'EIO',
      context: { node: 'p', offset: 0, bytes: 512 },
    })
    await registry.stopAll(false)
    registry.getErrorAll()
    expect(() => user.pwrite(0, new Uint8Array(512))).toThrow('Input/output error')
  })
})
