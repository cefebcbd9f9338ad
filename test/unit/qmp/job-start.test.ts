import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { createQcow2 } from '../../../src/drivers/qcow2/create.ts'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { memory, Rig } from './rig.ts'

let rig: Rig
beforeEach(async () => {
  rig = new Rig()
  for (const name of ['a', 'b', 'c', 'd']) await rig.run('blockdev-add', memory(name))
})
afterEach(() => rig.close())

const job = (more: JsonObject): JsonObject => ({
  'job-id': 'j',
  device: 'a',
  target: 'b',
  sync: 'full',
  ...more,
})
const mirror = (more: JsonObject) => rig.refused('blockdev-mirror', job(more))
const backup = (more: JsonObject) => rig.refused('blockdev-backup', job(more))

async function event(start: string, count = 1): Promise<void> {
  while (rig.calls.filter((call) => call.startsWith(start)).length < count) {
    await rig.graph.ctx.breathe()
  }
}

describe('qmp / job start', () => {
  test('granularity 0 is the default, other values have bounds', async () => {
    expect(await mirror({ granularity: 1 })).toContain('in range [512B, 64MB]')
    expect(await mirror({ granularity: 513 })).toContain('expects a power of 2')
    expect(await mirror({ granularity: 'x' })).toBe("Parameter 'granularity' expects uint64")
    expect(await mirror({ granularity: -1 })).toBe("Parameter 'granularity' expects uint32_t")
    expect(await mirror({ granularity: 0 })).toBe('accepted')
  })

  test('what is replaced must show what the source shows', async () => {
    const children = ['a', 'c']
    const quorum = { driver: 'quorum', 'node-name': 'q', children, 'vote-threshold': 1 }
    await rig.run('blockdev-add', quorum)
    const abrupt = (name: string, source: string): string =>
      `Cannot replace '${name}' by a node mirrored from '${source}', because it cannot be ` +
      'guaranteed that doing so would not lead to an abrupt change of visible data'
    const replace = (replaces: string) => mirror({ device: 'q', replaces })
    expect(await replace('no')).toBe("Failed to find node with node-name='no'")
    expect(await replace('d')).toBe(abrupt('d', 'q'))
    expect(await replace('b')).toBe(abrupt('b', 'q'))
    expect(await mirror({ device: 'd', replaces: 'c' })).toBe(abrupt('c', 'd'))
    expect(await replace('c')).toBe('accepted')
  })

  test('what is wrong with the disks comes before what is wrong with the id', async () => {
    expect(await backup({ sync: 'none' })).toBe('accepted')
    const filter = { 'job-id': '5', device: 'a' }
    expect(await rig.refused('blockdev-mirror', job({ ...filter, target: 'c' }))).toBe(
      'Need a root block node',
    )
    expect(await backup({ 'job-id': '5', target: 'b', device: 'c' })).toBe(
      "Node 'b' is busy: block device is in use by block job: backup",
    )
    expect(await backup({ 'job-id': '5', device: 'c', target: 'd' })).toBe("Invalid job ID '5'")
    expect(await rig.refused('block-commit', { 'job-id': '5', device: 'a' })).toBe(
      'Need a root block node',
    )
  })

  test('a filter that cannot be made is named as what failed', async () => {
    expect(await backup({ 'filter-node-name': 'b' })).toBe(
      "Could not create node: Duplicate nodes with node-name='b'",
    )
    expect(
      await rig.refused('block-stream', { 'job-id': 'j', device: 'a', 'filter-node-name': '5' }),
    ).toBe("Could not create node: Invalid node-name: '5'")
    expect(await mirror({ 'filter-node-name': 'b' })).toBe("Duplicate nodes with node-name='b'")
  })

  test('limits of a backup are checked', async () => {
    const perf = (more: JsonObject) => backup({ 'x-perf': more })
    const workers = 'max-workers must be between 1 and 2147483647'
    expect(await perf({ 'max-workers': 0 })).toBe(workers)
    expect(await perf({ 'max-workers': 2 ** 31 })).toBe(workers)
    expect(await perf({ 'max-chunk': -1 })).toContain('max-chunk must be zero')
    expect(await perf({ 'max-chunk': 1 })).toBe(
      'Required max-chunk (1) is less than backup cluster size (65536)',
    )
    expect(await perf({ 'max-chunk': 65536, 'max-workers': 1 })).toBe('accepted')
  })

  test('nobody reads or writes a copy that is being made', async () => {
    expect(await mirror({})).toBe('accepted')
    const reader = { perm: PERM.CONSISTENT_READ, shared: PERM.ALL }
    const copy = rig.graph.lookup(undefined, 'b')
    await expect(BlockBackend.create(rig.graph, copy, reader)).rejects.toThrow(
      "Permission conflict on node 'b'",
    )
  })

  test('the filter of a mirror shows by its kind', async () => {
    expect(await mirror({ 'filter-node-name': 'f' })).toBe('accepted')
    expect(rig.graph.lookup(undefined, 'f').definition.name).toBe('mirror_top')
    await event('BLOCK_JOB_READY')
  })
})

describe('qmp / job group', () => {
  const group = (...actions: JsonObject[]): Promise<unknown> =>
    rig.run('transaction', { actions, properties: { 'completion-mode': 'grouped' } })
  const member = (id: string, device: string, target: string, more: JsonObject = {}) => ({
    type: 'blockdev-backup',
    data: job({ 'job-id': id, device, target, ...more }),
  })
  const since = (start: string): string[] => {
    const from = rig.calls.findIndex((call) => call.startsWith(start))
    return rig.calls.slice(from).map((call) => {
      const data = JSON.parse(call.slice(call.indexOf('{'))) as JsonObject
      return `${String(data.id ?? data.device)} ${String(data.status ?? call.split(' ')[0])}`
    })
  }

  test('jobs are shown and finished the newest first', async () => {
    await group(member('one', 'a', 'b', { 'auto-finalize': false }), member('two', 'c', 'd'))
    await event('BLOCK_JOB_PENDING')
    expect(await rig.run('query-jobs')).toMatchObject([{ id: 'two' }, { id: 'one' }])
    rig.calls.length = 0
    await rig.run('job-finalize', { id: 'two' })
    expect(since('BLOCK')).toEqual([
      ...['two BLOCK_JOB_COMPLETED', 'two concluded', 'two null'],
      ...['one BLOCK_JOB_COMPLETED', 'one concluded', 'one null'],
    ])
  })

  test('a cancel of one ends each in turn, and the answer comes after all', async () => {
    await group(
      member('one', 'a', 'b', { sync: 'none' }),
      member('two', 'c', 'd', { sync: 'none' }),
    )
    while (((await rig.run('query-block-jobs')) as JsonObject[]).some((one) => one.busy === true)) {
      await rig.graph.ctx.breathe()
    }
    rig.calls.length = 0
    await rig.run('job-cancel', { id: 'one' })
    expect(since('JOB')).toEqual([
      'one aborting',
      ...['two aborting', 'two BLOCK_JOB_CANCELLED', 'two concluded', 'two null'],
      ...['one BLOCK_JOB_CANCELLED', 'one concluded', 'one null'],
    ])
    expect(await rig.run('query-jobs')).toEqual([])
  })

  test('a job that waits for the others is cancelled with them, in turn', async () => {
    await group(member('one', 'a', 'b'), member('two', 'c', 'd', { sync: 'none' }))
    await event('JOB_STATUS_CHANGE {"id":"one","status":"waiting"}')
    rig.calls.length = 0
    await rig.run('job-cancel', { id: 'one' })
    expect(since('JOB')).toEqual([
      ...['two aborting', 'two BLOCK_JOB_CANCELLED', 'two concluded', 'two null'],
      ...['one aborting', 'one BLOCK_JOB_CANCELLED', 'one concluded', 'one null'],
    ])
  })

  test('a bitmap that a transaction removes keeps its name until the end', async () => {
    await rig.run('block-dirty-bitmap-add', { node: 'a', name: 'x' })
    const of = { node: 'a', name: 'x' }
    const remove = { type: 'block-dirty-bitmap-remove', data: of }
    const refused = (data: JsonObject) => rig.refused('transaction', { actions: [remove, data] })
    expect(await refused({ type: 'block-dirty-bitmap-add', data: of })).toBe(
      'Bitmap already exists: x',
    )
    expect(await refused({ type: 'block-dirty-bitmap-clear', data: of })).toBe(
      "Bitmap 'x' is currently in use by another operation and cannot be used",
    )
    expect(rig.graph.lookup(undefined, 'a').bitmaps.need('x').busy).toBe(false)
    await rig.run('transaction', { actions: [remove] })
    expect(rig.graph.lookup(undefined, 'a').bitmaps.get('x')).toBeUndefined()
  })
})

describe('qmp / images under jobs', () => {
  let dir: string
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'blockstep-start-'))
  })
  afterEach(() => rmSync(dir, { recursive: true }))

  async function image(name: string, more: JsonObject = {}): Promise<void> {
    const filename = join(dir, name)
    await createQcow2(filename, { size: 65536 })
    const file = { driver: 'file', 'node-name': `${name}-file`, filename }
    await rig.run('blockdev-add', { driver: 'qcow2', 'node-name': name, file, ...more })
  }

  test('an overlay whose file has a name of its own goes over a node', async () => {
    await image('base')
    await image('over', { backing: null })
    await rig.run('blockdev-snapshot', { node: 'base', overlay: 'over' })
    expect(rig.graph.lookup(undefined, 'over').child('backing')?.node.name).toBe('base')
    expect(rig.graph.lookup(undefined, 'over').child('file')?.node.name).toBe('over-file')
  })

  test('amending nothing is a job that ends well, anything else is refused', async () => {
    await image('i')
    const amend = (node: string, driver: string) =>
      rig.refused('x-blockdev-amend', { 'job-id': 'j', 'node-name': node, options: { driver } })
    expect(await amend('no', 'qcow2')).toBe("Cannot find device='' nor node-name='no'")
    expect(await amend('i', 'raw')).toContain("doesn't support changing the block driver")
    expect(await amend('i-file', 'file')).toBe('Driver does not support x-blockdev-amend')
    expect(await amend('i', 'qcow2')).toBe('accepted')
    await rig.jobs.get('j').done
    expect(await rig.run('query-jobs')).toEqual([
      { id: 'j', type: 'amend', status: 'concluded', 'current-progress': 1, 'total-progress': 1 },
    ])
  })
})
