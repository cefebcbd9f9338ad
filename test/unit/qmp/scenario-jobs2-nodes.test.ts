import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM, type Permissions } from '../../../src/block/driver.ts'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { Rig } from './rig.ts'

const KiB = 1024
const MiB = 1024 * KiB
const LENGTH = 8 * MiB

let rig: Rig
beforeEach(async () => {
  rig = new Rig()
  const disk = { driver: 'memory', size: LENGTH }
  const add = (name: string, more: JsonObject = {}) =>
    rig.run('blockdev-add', { ...disk, 'node-name': name, ...more })
  await add('base')
  await write('base', 0, LENGTH)
  await add('mid', { backing: 'base' })
  await write('mid', 0, LENGTH)
  await add('top', { backing: 'mid' })
  await add('dst')
})
afterEach(() => rig.close())

const writerOf = (name: string): Promise<BlockBackend> =>
  BlockBackend.create(rig.graph, rig.graph.lookup(name, name), {
    perm: PERM.WRITE,
    shared: PERM.ALL,
  })

async function write(name: string, offset: number, bytes: number): Promise<void> {
  await using user = await writerOf(name)
  await user.pwrite(offset, new Uint8Array(bytes).fill(7))
}

async function event(start: string): Promise<void> {
  while (!rig.calls.some((call) => call.startsWith(start))) await rig.graph.ctx.breathe()
}

const status = (id: string, name: string) => `JOB_STATUS_CHANGE {"id":"${id}","status":"${name}"}`
const del = (name: string) => rig.refused('blockdev-del', { 'node-name': name })
const busy = (name: string, type: string) =>
  `Node '${name}' is busy: block device is in use by block job: ${type}`

async function start(command: string, more: JsonObject = {}): Promise<void> {
  await rig.run(command, { 'job-id': 'j', device: 'top', ...more })
}

async function mirrorOf(sync: string): Promise<void> {
  await start('blockdev-mirror', { target: 'dst', sync })
  await event('BLOCK_JOB_READY')
}

async function bitmapsOf(name: string): Promise<JsonObject[]> {
  const nodes = (await rig.run('query-named-block-nodes', { flat: true })) as JsonObject[]
  const node = nodes.find((one) => one['node-name'] === name)
  return (node?.['dirty-bitmaps'] ?? []) as JsonObject[]
}

async function cancelled(): Promise<void> {
  await rig.run('block-job-cancel', { device: 'j', force: true })
  await event(status('j', 'null'))
}

describe('scenario / jobs / busy nodes', () => {
  test('J98 the source of a mirror is kept by its job, the target by its writer', async () => {
    await mirrorOf('none')
    expect(await del('top')).toBe(busy('top', 'mirror'))
    expect(await del('dst')).toBe('Node dst is in use')
    await rig.run('block-job-cancel', { device: 'j' })
    await event('BLOCK_JOB_COMPLETED')
    await event(status('j', 'null'))
    expect(await del('top')).toBe('accepted')
  })

  test('J99 the top layer of an active commit is kept by its job', async () => {
    await start('block-commit')
    await event('BLOCK_JOB_READY')
    expect(await del('top')).toBe(busy('top', 'commit'))
    await rig.run('block-job-cancel', { device: 'j' })
    await event('BLOCK_JOB_COMPLETED')
    await event(status('j', 'null'))
    expect(await del('top')).toBe('accepted')
  })

  test('J100 nobody reads a layer that is folded down, nor writes the base below it', async () => {
    await start('block-commit', { 'top-node': 'mid', 'base-node': 'base', speed: 1 })
    expect(await del('top')).toBe(busy('top', 'commit'))
    expect(await del('mid')).toBe('Node mid is in use')
    const reader = { perm: PERM.CONSISTENT_READ, shared: PERM.ALL }
    const writer = { perm: PERM.WRITE, shared: PERM.ALL }
    const open = (name: string, rights: Permissions) =>
      BlockBackend.create(rig.graph, rig.graph.lookup(name, name), rights)
    await expect(open('mid', reader)).rejects.toThrow(
      "unshared by commit job 'j' (uses node 'mid' as 'intermediate node' child)",
    )
    await expect(open('base', writer)).rejects.toThrow(/^Permission conflict on node 'base'/)
    await using user = await open('top', reader)
    await user.pread(0, new Uint8Array(512))
    await cancelled()
    await using after = await open('mid', reader)
    await after.pread(0, new Uint8Array(512))
  })

  test('J101 nobody writes a layer that a stream copies from', async () => {
    await start('block-stream', { speed: 1 })
    for (const name of ['mid', 'base']) {
      await expect(write(name, 0, 512)).rejects.toThrow(
        `unshared by stream job 'j' (uses node '${name}' as 'intermediate node' child)`,
      )
    }
    await cancelled()
    expect(await del('top')).toBe('accepted')
  })

  test('J99 an active commit is refused while somebody reads what it folds down', async () => {
    const node = rig.graph.lookup('mid', 'mid')
    const rights = { perm: PERM.CONSISTENT_READ, shared: PERM.ALL }
    await using reader = await BlockBackend.create(rig.graph, node, rights)
    const commit = { 'job-id': 'j', device: 'top', 'base-node': 'base' }
    expect(await rig.refused('block-commit', commit)).toContain(
      "required by an unnamed block device (uses node 'mid' as 'root' child)",
    )
    expect(await rig.run('query-jobs')).toEqual([])
    await reader.pread(0, new Uint8Array(512))
    await reader.close()
    expect(await rig.refused('block-commit', commit)).toBe('accepted')
  })

  test('J98 what is below the top layer stays free under a mirror of that layer', async () => {
    await mirrorOf('top')
    await rig.run('blockdev-add', { driver: 'memory', 'node-name': 'other', size: LENGTH })
    const backup = { 'job-id': 'k', device: 'mid', target: 'other', sync: 'none' }
    expect(await rig.refused('blockdev-backup', backup)).toBe('accepted')
  })
})

describe('scenario / jobs / bitmaps without a name', () => {
  const named = (more: JsonObject) => ({ name: 'b', busy: true, recording: true, ...more })
  const cases: [mode: string, end: string, left: number][] = [
    ['on-success', 'job-finalize', 1],
    ['never', 'job-finalize', 3],
    ['always', 'job-finalize', 1],
    ['on-success', 'job-cancel', 3],
    ['never', 'job-cancel', 3],
    ['always', 'job-cancel', 1],
  ]
  test.each(cases)(
    'J72 to J77 a backup with %s and %s leaves %i clusters',
    async (mode, end, left) => {
      const unit = 64 * KiB
      await rig.run('block-dirty-bitmap-add', { node: 'top', name: 'b', granularity: unit })
      // It comes before the filter of the backup, and writes through it then.
      await using guest = await writerOf('top')
      const data = new Uint8Array(unit).fill(9)
      await guest.pwrite(0, data)
      await guest.pwrite(MiB, data)
      const bitmap = { bitmap: 'b', 'bitmap-mode': mode, sync: 'bitmap', 'auto-finalize': false }
      await start('blockdev-backup', { target: 'dst', ...bitmap })
      await event(status('j', 'pending'))
      await guest.pwrite(2 * MiB, data)
      expect(await bitmapsOf('top')).toMatchObject([
        { recording: false, busy: false, persistent: false, count: 0 },
        { recording: true, busy: false, persistent: false, count: unit },
        named({ count: 2 * unit }),
      ])
      expect((await bitmapsOf('top')).map((one) => 'name' in one)).toEqual([false, false, true])
      await rig.run(end, { id: 'j' })
      await event(status('j', 'null'))
      expect(await bitmapsOf('top')).toMatchObject([named({ busy: false, count: left * unit })])
    },
  )

  test('J98 a mirror shows what it has yet to copy, and no more when it is over', async () => {
    await mirrorOf('none')
    await rig.run('job-pause', { id: 'j' })
    await write('top', 0, 64 * KiB)
    expect(await bitmapsOf('top')).toMatchObject([{ recording: true, count: 64 * KiB }])
    await cancelled()
    expect(await bitmapsOf('top')).toEqual([])
  })
})

test('scenario / jobs / J84 a filter says whether it misses the node or the bitmap', async () => {
  const filter = { driver: 'copy-before-write', 'node-name': 'cbw', file: 'top', target: 'dst' }
  const add = (node: string, name: string) =>
    rig.refused('blockdev-add', { ...filter, bitmap: { node, name } })
  expect(await add('no', 'b')).toBe("Node 'no' not found")
  expect(await add('top', 'b')).toBe("Dirty bitmap 'b' not found")
})
