import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { createQcow2 } from '../../../src/drivers/qcow2/create.ts'
import type { JsonObject, JsonValue } from '../../../src/qmp/json.ts'
import { memory, Rig } from './rig.ts'

let rig: Rig
let dir: string
const users: BlockBackend[] = []

beforeEach(() => {
  rig = new Rig()
  dir = fs.mkdtempSync(join(tmpdir(), 'blockstep-'))
})

afterEach(async () => {
  for (const user of users.splice(0)) await user.close()
  await rig.close()
  fs.rmSync(dir, { recursive: true })
})

const run = (name: string, args?: JsonObject): Promise<JsonValue> => rig.run(name, args)
const refused = (name: string, args?: JsonObject): Promise<string> => rig.refused(name, args)
const node = (name: string): BlockNode => rig.graph.lookup(undefined, name)
const action = (type: string, data: JsonObject): JsonObject => ({ type, data })
const count = (name: string): number => node('a').bitmaps.need(name).bits.count

async function guest(name: string): Promise<BlockBackend> {
  const perm = PERM.CONSISTENT_READ | PERM.WRITE
  const user = await BlockBackend.create(rig.graph, node(name), { perm, shared: PERM.ALL })
  users.push(user)
  return user
}

async function image(name: string, more: JsonObject = {}): Promise<void> {
  await createQcow2(join(dir, name), { size: 1024 * 1024 })
  const file = { driver: 'file', filename: join(dir, name) }
  await run('blockdev-add', { driver: 'qcow2', 'node-name': name, file, ...more })
}

const backup = (id: string, more: JsonObject = {}): JsonObject =>
  action('blockdev-backup', { 'job-id': id, device: 'a', target: 'b', sync: 'full', ...more })

/** Statuses that a job went through. */
const statuses = (id: string): string[] =>
  rig.calls.flatMap((call) => {
    const found = /^JOB_STATUS_CHANGE (.*)$/.exec(call)?.[1]
    const data = found === undefined ? undefined : (JSON.parse(found) as JsonObject)
    return data?.id === id ? [String(data.status)] : []
  })

describe('qmp / transaction', () => {
  test('qmp / transaction / bitmaps are as before when a later action fails', async () => {
    await run('blockdev-add', memory('a'))
    for (const name of ['x', 'y', 'z'])
      await run('block-dirty-bitmap-add', { node: 'a', name, granularity: 4096 })
    await (await guest('a')).pwrite(0, new Uint8Array(4096))
    await run('block-dirty-bitmap-disable', { node: 'a', name: 'z' })
    const of = (name: string) => ({ node: 'a', name })
    const actions = [
      action('block-dirty-bitmap-clear', of('x')),
      action('block-dirty-bitmap-disable', of('y')),
      action('block-dirty-bitmap-enable', of('z')),
      action('block-dirty-bitmap-add', { ...of('n'), granularity: 4096 }),
      action('block-dirty-bitmap-merge', { node: 'a', target: 'n', bitmaps: ['y'] }),
      action('block-dirty-bitmap-remove', of('y')),
    ]
    const shown = () =>
      ['x', 'y', 'z', 'n'].map((name) => {
        const bitmap = node('a').bitmaps.get(name)
        return bitmap === undefined ? undefined : [bitmap.enabled, bitmap.bits.count]
      })
    const before = shown()
    const failing = [...actions, action('abort', {})]
    expect(await refused('transaction', { actions: failing })).toBe(
      'Transaction aborted using Abort action',
    )
    expect(shown()).toEqual(before)
    await run('transaction', { actions })
    expect([count('x'), count('n'), node('a').bitmaps.get('y')]).toEqual([0, 1, undefined])
    expect(node('a').bitmaps.need('z').enabled).toBe(true)
  })

  test('qmp / transaction / arguments are checked before anything happens', async () => {
    await run('blockdev-add', memory('a'))
    const add = action('block-dirty-bitmap-add', { node: 'a', name: 'x' })
    const no = (one: JsonObject) => refused('transaction', { actions: [add, one] })
    expect(await no({ type: 'zz', data: {} })).toBe("Parameter 'type' does not accept value 'zz'")
    expect(await no({ type: 'abort' })).toBe("Parameter 'actions[1].data' is missing")
    expect(await no(action('block-dirty-bitmap-clear', { node: 'a' }))).toBe(
      "Parameter 'actions[1].data.name' is missing",
    )
    expect(node('a').bitmaps.list()).toEqual([])
    await run('transaction', { actions: [] })
    const grouped = { properties: { 'completion-mode': 'grouped' } }
    expect(await refused('transaction', { actions: [add], ...grouped })).toBe(
      "Action 'block-dirty-bitmap-add' does not support Transaction property " +
        'completion-mode = grouped',
    )
  })

  test('qmp / transaction / a job of a failed one never runs and leaves nothing', async () => {
    for (const name of ['a', 'b']) await run('blockdev-add', memory(name))
    const nodes = rig.graph.nodes().length
    for (const bad of [action('abort', {}), backup('k', { target: 'nope' }), backup('j')]) {
      rig.calls.length = 0
      expect(await refused('transaction', { actions: [backup('j'), bad] })).not.toBe('accepted')
      expect(statuses('j')).toEqual(['created', 'aborting', 'concluded', 'null'])
      expect([await run('query-jobs'), rig.graph.nodes().length]).toEqual([[], nodes])
      expect(node('a').gate.quiesceCount).toBe(0)
    }
  })

  test('qmp / transaction / a backup holds the moment at which a bitmap was cleared', async () => {
    for (const name of ['a', 'b']) await run('blockdev-add', memory(name))
    await run('block-dirty-bitmap-add', { node: 'a', name: 'x', granularity: 4096 })
    const user = await guest('a')
    await user.pwrite(0, new Uint8Array(4096).fill(1))
    const clear = action('block-dirty-bitmap-clear', { node: 'a', name: 'x' })
    const done = run('transaction', { actions: [clear, backup('j')] })
    const wrote = user.pwrite(8192, new Uint8Array(4096).fill(2))
    await Promise.all([done, wrote])
    await rig.jobs.find('j')?.done
    const got = new Uint8Array(16384)
    await (await guest('b')).pread(0, got)
    // The write came before or after the transaction, for the bitmap and the backup alike.
    expect([got[0], got[8192]]).toEqual([1, count('x') === 0 ? 2 : 0])
  })

  test('qmp / transaction / a backup and an overlay of several disks, or nothing', async () => {
    for (const name of ['a', 'b', 'c']) await image(name)
    await image('o', { backing: null })
    const users = [await guest('a'), await guest('c')]
    const snap = action('blockdev-snapshot', { node: 'c', overlay: 'o' })
    const actions = [backup('j'), snap]
    await refused('transaction', { actions: [...actions, action('abort', {})] })
    expect([users[1]?.node.name, node('o').child('backing')]).toEqual(['c', undefined])
    await run('transaction', { actions })
    await rig.jobs.find('j')?.done
    expect(users[1]?.node.name).toBe('o')
    expect(node('o').child('backing')?.node.name).toBe('c')
  })
})

describe('qmp / snapshots', () => {
  const sync = (more: JsonObject) =>
    refused('blockdev-snapshot-sync', {
      'node-name': 'a',
      'snapshot-file': join(dir, 's'),
      'snapshot-node-name': 's',
      ...more,
    })

  test('qmp / snapshots / an overlay is made, and takes the writes from then on', async () => {
    await image('a')
    const user = await guest('a')
    await user.pwrite(0, new Uint8Array(512).fill(1))
    expect(await sync({})).toBe('accepted')
    await user.pwrite(512, new Uint8Array(512).fill(2))
    const got = new Uint8Array(1024)
    await user.pread(0, got)
    expect([user.node.name, got[0], got[512], node('a').readOnly]).toEqual(['s', 1, 2, true])
    expect(await run('query-named-block-nodes', { flat: true })).toContainEqual(
      expect.objectContaining({
        'node-name': 's',
        image: expect.objectContaining({
          'backing-filename': join(dir, 'a'),
          'backing-filename-format': 'qcow2',
        }),
      }),
    )
    expect(await sync({ 'snapshot-node-name': 't' })).toBe(
      "Node 'a' is busy: node is used as backing hd of 's'",
    )
  })

  test('qmp / snapshots / without a user the overlay is gone at once', async () => {
    await image('a')
    expect(await sync({})).toBe('accepted')
    expect(rig.graph.find('s')).toBeUndefined()
    expect(fs.readdirSync(dir)).toEqual(['a', 's'])
    await run('blockdev-del', { 'node-name': 'a' })
    expect(rig.graph.nodes()).toEqual([])
  })

  test('qmp / snapshots / a name that may not be is found out after the file was made', async () => {
    await image('a')
    expect(await sync({ 'snapshot-node-name': '5s' })).toBe("Invalid node-name: '5s'")
    expect(fs.readdirSync(dir)).toEqual(['a', 's'])
  })

  test('qmp / snapshots / wrong arguments make no file', async () => {
    await image('a')
    const noName = { 'node-name': 'a', 'snapshot-file': join(dir, 's') }
    expect(await refused('blockdev-snapshot-sync', noName)).toBe('New overlay node-name missing')
    expect(await sync({ 'snapshot-node-name': 'a' })).toBe('New overlay node-name already in use')
    expect(await sync({ format: 'zz' })).toBe("Unknown file format 'zz'")
    expect(await sync({ format: 'raw' })).toBe("Backing file not supported for file format 'raw'")
    expect(await sync({ format: 'file' })).toBe("Backing file not supported for file format 'file'")
    expect(await sync({ format: 'quorum' })).toBe(
      "Format driver 'quorum' does not support image creation",
    )
    expect(await sync({ 'node-name': 'zz' })).toBe("Cannot find device='' nor node-name='zz'")
    expect(await sync({ 'snapshot-file': join(dir, 'a') })).toBe(
      'Error: Trying to create an image with the same filename as the backing file',
    )
    expect(await sync({ 'snapshot-file': '/nonexistent/s' })).toBe(
      "Could not create '/nonexistent/s': No such file or directory",
    )
    expect(await sync({ mode: 'existing' })).toMatch(/^Could not open .*No such file/)
    expect(fs.readdirSync(dir)).toEqual(['a'])
    expect(rig.graph.nodes().map(({ name }) => name)).toContain('a')
  })

  test('qmp / snapshots / the name of a backing image changes in the image', async () => {
    await image('a')
    await guest('a')
    await sync({})
    const change = (more: JsonObject) =>
      refused('change-backing-file', {
        device: 's',
        'image-node-name': 's',
        'backing-file': '/x/y.img',
        ...more,
      })
    expect(await change({})).toBe('accepted')
    expect(fs.readFileSync(join(dir, 's')).includes('/x/y.img')).toBe(true)
    expect(await change({ 'image-node-name': 'a' })).toBe(
      'not allowing backing file change on an image without a backing file',
    )
    expect(await change({ device: 'a' })).toBe('Need a root block node')
    expect(await change({ 'image-node-name': 'q' })).toBe("Cannot find device='' nor node-name='q'")
  })
})
