import { describe, expect, it } from 'vitest'
import type { BlockNode } from '../../../src/block/node.ts'
import { rawDriver } from '../../../src/drivers/raw.ts'
import { startBackup } from '../../../src/job/backup.ts'
import { fill, patternOf, guest as user } from '../../support/graph.ts'
import { memory, replicationWorld, secondary, type World } from '../../support/replication.ts'

const MiB = 1024 * 1024

function find(world: World, name: string): BlockNode {
  const node = world.graph.find(name)
  if (node === undefined) throw new Error(`no node ${name}`)
  return node
}

const statusOf = (world: World) => world.registry.list()[0]

/** Asks for another backing image; the refusal, or undefined. */
async function rebase(
  world: World,
  name: string,
  backing: string | null,
): Promise<string | undefined> {
  const node = find(world, name)
  const options = { ...memory(name), ...(node.readOnly ? { 'read-only': true } : {}), backing }
  try {
    await world.graph.reopen([{ node, options }])
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
  return undefined
}

/** What a running secondary promises, from the first write to the end of a failover. */
async function expectIsolation(
  world: World,
  { exported, guest }: Awaited<ReturnType<typeof secondary>>,
): Promise<void> {
  await fill(exported, 0x22, 0, MiB)
  await fill(guest, 0x33, 2 * MiB, MiB)
  expect(await patternOf(guest, 0, MiB)).toBe(0x11)
  await world.registry.checkpointAll()
  expect(await patternOf(guest, 0, MiB)).toBe(0x22)
  expect(await patternOf(guest, 2 * MiB, MiB)).toBe(0x11)
  await fill(exported, 0x55, MiB, MiB)
  await fill(guest, 0x44, 3 * MiB, MiB)
  await world.registry.stopAll(true)
  await world.registry.settled()
  expect(statusOf(world)).toMatchObject({ stage: 'done' })
  expect(await patternOf(guest, 0, MiB)).toBe(0x22)
  expect(await patternOf(guest, MiB, 2 * MiB)).toBe(0x11)
  expect(await patternOf(guest, 3 * MiB, MiB)).toBe(0x44)
}

describe('replication / secondary / chain', () => {
  it.each([
    ['active', null, "Cannot change frozen 'backing' link from 'active' to 'hidden'"],
    ['active', 'local', "Cannot change frozen 'backing' link from 'active' to 'hidden'"],
    ['hidden', null, "Cannot change frozen 'backing' link from 'hidden' to 'local'"],
  ])(
    'replication / secondary / chain / while it runs %s cannot get %s below it',
    async (name, to, words) => {
      await using world = replicationWorld()
      const disk = await secondary(world)
      await world.registry.startAll('secondary')
      expect(await rebase(world, name, to)).toBe(words)
      await expectIsolation(world, disk)
    },
  )

  it('replication / secondary / chain / while it runs no overlay comes over the active disk', async () => {
    await using world = replicationWorld()
    const disk = await secondary(world)
    await world.registry.startAll('secondary')
    const overlay = await world.graph.add(memory('overlay', { backing: 'active' }))
    await expect(world.graph.replace(find(world, 'active'), overlay)).rejects.toThrow(
      "Cannot change 'file' link to 'active'",
    )
    await world.graph.remove('overlay')
    await expectIsolation(world, disk)
  })

  it('replication / secondary / chain / the links are free before the start, after a failed one and after a stop', async () => {
    await using world = replicationWorld()
    await secondary(world, { topId: 'nobody' })
    const turn = async (): Promise<void> => {
      expect(await rebase(world, 'active', 'local')).toBeUndefined()
      expect(await rebase(world, 'active', 'hidden')).toBeUndefined()
    }
    find(world, 'hidden').refs++
    await turn()
    await expect(world.registry.startAll('secondary')).rejects.toThrow('No top_bs')
    await turn()
  })

  it('replication / secondary / chain / a stop lets the links go', async () => {
    await using world = replicationWorld()
    await secondary(world)
    await world.registry.startAll('secondary')
    await world.registry.stopAll(false)
    expect(await rebase(world, 'active', 'local')).toBeUndefined()
  })

  it('replication / secondary / chain / a failover merges through a backup of the secondary disk', async () => {
    await using world = replicationWorld()
    const disk = await secondary(world)
    const spare = await world.graph.add(memory('spare'))
    await world.registry.startAll('secondary')
    const { job } = await startBackup(world.graph, world.jobs, world.pool, {
      jobId: 'j',
      source: find(world, 'local'),
      target: spare,
      sync: 'none',
    })
    await expectIsolation(world, disk)
    await job.cancelSync(true)
    // What a point-in-time copy saved of the disk as it was when the backup began.
    const copy = await user(world.graph, spare)
    expect(await patternOf(copy, 0, 2 * MiB)).toBe(0x11)
    expect(await patternOf(copy, 3 * MiB, MiB)).toBe(0x11)
    expect(await patternOf(disk.guest, 3 * MiB, MiB)).toBe(0x44)
  })

  it('replication / secondary / chain / a stop goes around a broken buffer through a backup of the disk', async () => {
    await using world = replicationWorld()
    const { exported, guest } = await secondary(world)
    const spare = await world.graph.add(memory('spare'))
    await world.registry.startAll('secondary')
    await startBackup(world.graph, world.jobs, world.pool, {
      jobId: 'j',
      source: find(world, 'local'),
      target: spare,
      sync: 'none',
    })
    await fill(exported, 0x22, 0, MiB)
    await fill(guest, 0x33, MiB, MiB)
    const { driver } = find(world, 'active')
    if (driver === undefined) throw new Error('active is closed')
    Object.defineProperty(driver, 'makeEmpty', {
      value: async () => Promise.reject(new Error('broken')),
    })
    await world.registry.stopAll(false)
    expect(statusOf(world)).toMatchObject({ stage: 'done' })
    expect(await patternOf(guest, 0, MiB)).toBe(0x22)
    expect(await patternOf(guest, MiB, MiB)).toBe(0x11)
  })
})

describe('replication / secondary / closing', () => {
  it('replication / secondary / closing / a running node ends its protection and closes', async () => {
    await using world = replicationWorld(rawDriver)
    const { exported, guest } = await secondary(world, { topId: 'upper' })
    await guest.close()
    await world.graph.add({ driver: 'raw', 'node-name': 'upper', file: 'top' })
    await world.graph.add(memory('spare'))
    await world.registry.startAll('secondary')
    await fill(exported, 0x22, 0, MiB)
    const upper = { driver: 'raw', 'node-name': 'upper', file: 'spare' } as const
    await world.graph.reopen([{ node: find(world, 'upper'), options: upper }])
    await world.graph.remove('top')
    expect(world.graph.nodes().map((node) => node.name)).toEqual(['spare', 'upper', 'local'])
    expect(find(world, 'upper').blockers.empty).toBe(true)
    await fill(exported, 0x33, 0, MiB)
    expect(await patternOf(exported, 0, MiB)).toBe(0x33)
  })

  it('replication / secondary / closing / a node that merges gives up and closes', async () => {
    await using world = replicationWorld()
    const { exported, guest } = await secondary(world)
    const keeper = await user(world.graph, find(world, 'active'))
    await world.registry.startAll('secondary')
    await fill(guest, 0x33, 0, 2 * MiB)
    await fill(exported, 0x22, MiB, 2 * MiB)
    await guest.close()
    await world.registry.stopAll(true)
    await world.graph.remove('top')
    expect(world.graph.find('top')).toBeUndefined()
    // The three images together still say what the guest saw.
    expect(await patternOf(keeper, 0, 2 * MiB)).toBe(0x33)
    expect(await patternOf(keeper, 2 * MiB, 2 * MiB)).toBe(0x11)
    await keeper.close()
  })
})
