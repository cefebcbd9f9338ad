import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { checkQcow2 } from '../../../src/drivers/qcow2/check.ts'
import { createQcow2, type Qcow2CreateOptions } from '../../../src/drivers/qcow2/create.ts'
import type { JsonObject, JsonValue } from '../../../src/qmp/json.ts'
import { Rig } from './rig.ts'

const MiB = 1024 * 1024
const TAKE = 'blockdev-snapshot-internal-sync'
const DROP = 'blockdev-snapshot-delete-internal-sync'

let rig: Rig
let dir: string
beforeEach(() => {
  rig = new Rig()
  dir = fs.mkdtempSync(join(tmpdir(), 'blockstep-'))
})
afterEach(async () => {
  await rig.close()
  fs.rmSync(dir, { recursive: true, force: true })
})

const path = (name: string): string => join(dir, name)

async function image(name: string, more: Partial<Qcow2CreateOptions> = {}): Promise<JsonObject> {
  await createQcow2(path(name), { size: 4 * MiB, ...more })
  return { driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename: path(name) } }
}

async function added(name: string, more: Partial<Qcow2CreateOptions> = {}): Promise<void> {
  await rig.run('blockdev-add', await image(name, more))
}

async function written(name: string, value: number): Promise<void> {
  const node = rig.graph.lookup(name)
  const perm = PERM.CONSISTENT_READ | PERM.WRITE
  const disk = await BlockBackend.create(rig.graph, node, { perm, shared: PERM.ALL })
  await disk.pwrite(0, new Uint8Array(MiB).fill(value))
  await disk.close()
}

async function shownBy(name: string): Promise<JsonObject> {
  const nodes = (await rig.run('query-named-block-nodes')) as JsonObject[]
  const node = nodes.find((one) => one['node-name'] === name)
  return node?.image as JsonObject
}

async function names(name: string): Promise<string[]> {
  const list = ((await shownBy(name)).snapshots ?? []) as JsonObject[]
  return list.map((one) => `${String(one.id)} ${String(one.name)}`)
}

/** The image has nothing wrong. */
async function sound(name: string): Promise<void> {
  const node = rig.graph.lookup(name)
  // What the first flush gives up is written by the second.
  for (let i = 0; i < 2; i++) await node.driver?.flush?.(true)
  const file = node.child('file')
  if (file === undefined) throw new Error('no file')
  expect((await checkQcow2(file)).messages).toEqual([])
}

const transact = (...actions: [string, JsonObject][]): Promise<JsonValue> =>
  rig.run('transaction', { actions: actions.map(([type, data]) => ({ type, data })) })

describe('qmp / internal snapshots', () => {
  test('qmp / internal snapshots / taken, listed, dropped by name, id or both', async () => {
    await added('a')
    await written('a', 1)
    for (const name of ['one', '1', 'é']) await rig.run(TAKE, { device: 'a', name })
    await written('a', 2)
    expect(await names('a')).toEqual(['1 one', '2 1', '3 é'])
    expect((await shownBy('a')).snapshots).toMatchObject([
      { id: '1', name: 'one', 'vm-state-size': 0, 'vm-clock-sec': 0 },
      {},
      {},
    ])
    expect(await rig.run(DROP, { device: 'a', id: '1', name: 'one' })).toMatchObject({
      id: '1',
      name: 'one',
    })
    expect(await rig.run(DROP, { device: 'a', name: '1' })).toMatchObject({ id: '2' })
    await rig.run(TAKE, { device: 'a', name: 'again' })
    expect(await names('a')).toEqual(['3 é', '4 again'])
    await rig.run(DROP, { device: 'a', id: '3' })
    await rig.run(DROP, { device: 'a', id: '4' })
    expect((await shownBy('a')).snapshots).toBeUndefined()
    expect((await shownBy('a'))['dirty-flag']).toBe(false)
    await sound('a')
  })

  test('qmp / internal snapshots / a name is cut off where the format ends it', async () => {
    await added('a')
    await rig.run(TAKE, { device: 'a', name: 'y'.repeat(70_000) })
    expect(await names('a')).toEqual([`1 ${'y'.repeat(255)}`])
  })

  test('qmp / internal snapshots / what is wrong with an order is said', async () => {
    await added('a')
    const take = (device: string, name: string): Promise<string> =>
      rig.refused(TAKE, { device, name })
    const drop = (device: string, more: JsonObject): Promise<string> =>
      rig.refused(DROP, { device, ...more })
    expect(await take('zz', 's')).toBe("Cannot find device='zz' nor node-name='zz'")
    expect(await take('a', '')).toBe('Name is empty')
    await rig.run(TAKE, { device: 'a', name: 's' })
    expect(await take('a', 's')).toBe("Snapshot with name 's' already exists on device 'a'")
    expect(await drop('a', {})).toBe('Name or id must be provided')
    expect(await drop('a', { id: '7' })).toBe(
      "Snapshot with id '7' and name 'null' does not exist on device 'a'",
    )
    expect(await drop('a', { id: '1', name: 'x' })).toBe(
      "Snapshot with id '1' and name 'x' does not exist on device 'a'",
    )
    expect(await drop('a', { name: '' })).toContain("id 'null' and name ''")
    await rig.run('blockdev-add', { ...(await image('ro')), 'read-only': true })
    expect(await take('ro', '')).toBe("Device 'ro' is read only")
    await rig.run('blockdev-add', { driver: 'null-co', 'node-name': 'n' })
    expect(await take('n', '')).toBe(
      "Block format 'null-co' used by device 'n' does not support internal snapshots",
    )
    expect(await drop('n', { id: '1' })).toBe(
      'Failed to get a snapshot list: Operation not supported',
    )
  })

  test('qmp / internal snapshots / a read-only image keeps its snapshots', async () => {
    const options = await image('a')
    await rig.run('blockdev-add', options)
    await rig.run(TAKE, { device: 'a', name: 's' })
    await rig.run('blockdev-del', { 'node-name': 'a' })
    await rig.run('blockdev-add', { ...options, 'read-only': true })
    expect(await rig.refused(DROP, { device: 'a', name: 's' })).toBe(
      'Failed to remove snapshot from snapshot list: Operation not permitted',
    )
    expect(await names('a')).toEqual(['1 s'])
  })

  test('qmp / internal snapshots / only of what no other node uses', async () => {
    await added('a')
    await rig.run('blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'a' })
    expect(await rig.refused(TAKE, { device: 'a', name: 's' })).toBe('Need a root block node')
    expect(await rig.refused(DROP, { device: 'a' })).toBe('Need a root block node')
    await rig.run(TAKE, { device: 'r', name: 's' })
    expect(await names('a')).toEqual(['1 s'])
    expect(await names('r')).toEqual(['1 s'])
    await rig.run(DROP, { device: 'r', name: 's' })
    expect(await names('r')).toEqual([])
  })

  test('qmp / internal snapshots / counters without room refuse and leave no trace', async () => {
    await added('a', { refcountBits: 1 })
    await written('a', 1)
    const words = "Failed to create snapshot 's' on device 'a': Invalid argument"
    expect(await rig.refused(TAKE, { device: 'a', name: 's' })).toBe(words)
    expect(await names('a')).toEqual([])
    await sound('a')
    await written('a', 2)
    await sound('a')
  })

  test('qmp / internal snapshots / an image with its data elsewhere has none', async () => {
    fs.writeFileSync(path('data'), '')
    await added('a', { dataFile: path('data') })
    expect(await rig.refused(TAKE, { device: 'a', name: 's' })).toBe(
      'Failed to get a snapshot list: Operation not supported',
    )
  })

  test('qmp / internal snapshots / a failed transaction takes them back', async () => {
    await added('a')
    await added('b')
    await written('a', 1)
    await transact([TAKE, { device: 'a', name: 't1' }], [TAKE, { device: 'b', name: 't1' }])
    await expect(transact([TAKE, { device: 'a', name: 't2' }], ['abort', {}])).rejects.toThrow(
      'Transaction aborted',
    )
    await expect(
      transact([TAKE, { device: 'a', name: 't3' }], [TAKE, { device: 'b', name: 't1' }]),
    ).rejects.toThrow("Snapshot with name 't1' already exists on device 'b'")
    await expect(
      transact([TAKE, { device: 'a', name: 't4' }], [TAKE, { device: 'a', name: 't4' }]),
    ).rejects.toThrow("Snapshot with name 't4' already exists on device 'a'")
    expect(await names('a')).toEqual(['1 t1'])
    expect(await names('b')).toEqual(['1 t1'])
    await sound('a')
  })

  test('qmp / internal snapshots / version 2 keeps its size while it has any', async () => {
    await added('a', { version: 2 })
    await rig.run(TAKE, { device: 'a', name: 's' })
    const resize = { 'node-name': 'a', size: 8 * MiB }
    expect(await rig.refused('block_resize', resize)).toBe(
      "Can't resize a v2 image which has snapshots",
    )
    await rig.run(DROP, { device: 'a', name: 's' })
    await rig.run('block_resize', resize)
    await sound('a')
  })

  test('qmp / internal snapshots / with lazy refcounts the dirty mark stays as it was', async () => {
    await added('a', { lazyRefcounts: true })
    await rig.run(TAKE, { device: 'a', name: 's' })
    expect((await shownBy('a'))['dirty-flag']).toBe(false)
    await written('a', 1)
    expect((await shownBy('a'))['dirty-flag']).toBe(true)
    await rig.run(DROP, { device: 'a', name: 's' })
    expect((await shownBy('a'))['dirty-flag']).toBe(true)
  })

  for (const event of ['refblock_load', 'l2_load', 'l2_update', 'cluster_alloc'])
    test(`qmp / internal snapshots / an error at ${event} leaves no trace`, async () => {
      await createQcow2(path('a'), { size: 4 * MiB })
      const file = { driver: 'file', filename: path('a') }
      await rig.run('blockdev-add', { driver: 'qcow2', 'node-name': 'w', file })
      await written('w', 1)
      await rig.run('blockdev-del', { 'node-name': 'w' })
      const failing = { driver: 'blkdebug', image: file, 'inject-error': [{ event, once: true }] }
      await rig.run('blockdev-add', { driver: 'qcow2', 'node-name': 'a', file: failing })
      const words = "Failed to create snapshot 's' on device 'a': Input/output error"
      expect(await rig.refused(TAKE, { device: 'a', name: 's' })).toBe(words)
      expect(await names('a')).toEqual([])
      await sound('a')
      await rig.run(TAKE, { device: 'a', name: 's' })
      await written('a', 2)
      await sound('a')
    })
})
