import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { isAllocatedAbove } from '../../../src/block/status.ts'
import { createQcow2 } from '../../../src/drivers/qcow2/create.ts'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { Rig } from './rig.ts'

const KiB = 1024
const MiB = 1024 * KiB

let rig: Rig
let dir: string
beforeEach(() => {
  rig = new Rig()
  dir = mkdtempSync(join(tmpdir(), 'chains-'))
})
afterEach(async () => {
  await rig.close()
  rmSync(dir, { recursive: true, force: true })
})

const path = (name: string) => join(dir, name)
const file = (name: string) => ({ driver: 'file', filename: path(name) })
const qcow2 = (name: string, more: JsonObject = {}) => ({
  driver: 'qcow2',
  'node-name': name,
  file: file(name),
  ...more,
})
const add = (node: JsonObject) => rig.run('blockdev-add', node)
const find = (name: string) => rig.graph.lookup(name, name)

interface ImageOptions {
  readonly size: number
  readonly backingFile?: string
  readonly backingFormat?: string
}

function image(name: string, options: ImageOptions): Promise<void> {
  return createQcow2(path(name), options)
}

async function write(name: string, offset: number, bytes: number, byte: number): Promise<void> {
  const options = { perm: PERM.WRITE, shared: PERM.ALL }
  await using user = await BlockBackend.create(rig.graph, find(name), options)
  await user.pwrite(offset, new Uint8Array(bytes).fill(byte))
}

async function byteAt(name: string, offset: number): Promise<number | undefined> {
  const options = { perm: PERM.CONSISTENT_READ, shared: PERM.ALL }
  await using user = await BlockBackend.create(rig.graph, find(name), options)
  const one = new Uint8Array(1)
  await user.pread(offset, one)
  return one[0]
}

/** Runs of a layer as `bytes` held or `-bytes` not held by it. */
async function held(name: string): Promise<number[]> {
  const node = find(name)
  const runs: number[] = []
  for (let at = 0; at < node.length(); ) {
    const { allocated, bytes } = await isAllocatedAbove(
      node,
      node.chainNext,
      at,
      node.length() - at,
    )
    const run = allocated ? bytes : -bytes
    const last = runs.at(-1)
    if (last !== undefined && last > 0 === run > 0) runs[runs.length - 1] = last + run
    else runs.push(run)
    at += bytes
  }
  return runs
}

async function imageOf(name: string): Promise<JsonObject> {
  const nodes = (await rig.run('query-named-block-nodes', { flat: true })) as JsonObject[]
  return nodes.find((node) => node['node-name'] === name)?.image as JsonObject
}

const events = (name: string) => rig.calls.filter((call) => call.startsWith(name))
const told = (call: string | undefined) =>
  JSON.parse(call?.slice(call.indexOf(' ')) ?? '{}') as JsonObject

async function until(done: () => boolean): Promise<void> {
  while (!done()) await rig.graph.ctx.breathe()
}

const gone = () => until(() => rig.jobs.list().length === 0)
const status = (name: string) => until(() => rig.jobs.list()[0]?.status === name)
const stream = (more: JsonObject = {}) =>
  rig.run('block-stream', { 'job-id': 'j', device: 'top', ...more })
const commit = (more: JsonObject = {}) =>
  rig.run('block-commit', { 'job-id': 'j', device: 'top', ...more })
const completed = () => told(events('BLOCK_JOB_COMPLETED')[0])

/** base <- mid <- top, with data in base and mid. */
async function threeImages(): Promise<void> {
  await image('base', { size: MiB })
  await image('mid', { size: MiB, backingFile: path('base'), backingFormat: 'qcow2' })
  await image('top', { size: MiB, backingFile: path('mid'), backingFormat: 'qcow2' })
  await add(qcow2('base', {}))
  await write('base', 0, 64 * KiB, 1)
  await add(qcow2('mid', { backing: 'base' }))
  await write('mid', 512 * KiB, 64 * KiB, 2)
  await add(qcow2('top', { backing: 'mid' }))
}

describe('scenario / jobs', () => {
  test('J18 a stream of an intermediate image leaves the top on it', async () => {
    await threeImages()
    await stream({ device: 'mid' })
    await gone()
    expect(find('mid').child('backing')).toBeUndefined()
    expect(find('top').child('backing')?.node.name).toBe('mid')
    expect([await byteAt('top', 0), await byteAt('top', 512 * KiB)]).toEqual([1, 2])
    expect((await imageOf('mid'))['backing-filename']).toBeUndefined()
  })

  test('J18 while an intermediate image is streamed its filter is a link with its name', async () => {
    await threeImages()
    await stream({ device: 'mid', 'auto-finalize': false })
    await status('pending')
    const nodes = (await rig.run('query-named-block-nodes')) as JsonObject[]
    expect(nodes.find((node) => node['node-name'] === 'top')).toMatchObject({
      file: path('top'),
      backing_file: path('mid'),
      backing_file_depth: 3,
    })
  })

  test('J19 a stream down to the backing image copies nothing', async () => {
    await threeImages()
    for (const base of [{ 'base-node': 'mid' }, { base: path('mid') }, { bottom: 'top' }]) {
      await stream(base)
      await gone()
      expect(await held('top')).toEqual([-MiB])
      expect((await imageOf('top'))['backing-filename']).toBe(path('mid'))
    }
  })

  test('J19 a base under a filter becomes the backing image itself', async () => {
    await threeImages()
    await rig.run('blockdev-del', { 'node-name': 'top' })
    await add({ driver: 'copy-on-read', 'node-name': 'over', file: 'mid' })
    await add(qcow2('top', { backing: 'over' }))
    await stream({ 'base-node': 'mid' })
    await gone()
    expect(find('top').child('backing')?.node.name).toBe('mid')
    expect((await imageOf('top'))['backing-filename']).toBe(path('mid'))
  })

  for (const size of [MiB, MiB + KiB, 64 * KiB]) {
    test(`J29 a backing image of ${size / KiB} KiB below one of 2 MiB is streamed`, async () => {
      await image('base', { size })
      await image('top', { size: 2 * MiB, backingFile: path('base'), backingFormat: 'qcow2' })
      await add(qcow2('base'))
      await write('base', 0, 64 * KiB, 3)
      await add(qcow2('top', { backing: 'base' }))
      await stream()
      await gone()
      expect(completed()).toMatchObject({ len: 2 * MiB, offset: 2 * MiB })
      expect([await byteAt('top', 0), await byteAt('top', 2 * MiB - 1)]).toEqual([3, 0])
      expect((await held('top'))[0]).toBe(64 * KiB)
    })
  }

  /** One read of the base fails at 512 KiB. */
  async function failing(errno: number): Promise<void> {
    writeFileSync(path('base'), Buffer.alloc(2 * MiB, 1))
    await image('top', { size: 2 * MiB })
    const event = { event: 'read_aio', state: 1, errno, immediately: false, once: true }
    const debug = { driver: 'blkdebug', image: file('base') }
    const inject = { ...debug, 'inject-error': [{ ...event, sector: 1024 }] }
    await add(qcow2('top', { backing: { driver: 'raw', file: inject } }))
  }

  test('J31 an ignored read error ends the stream at full length, with the error', async () => {
    await failing(5)
    await stream({ 'on-error': 'ignore' })
    await gone()
    expect(told(events('BLOCK_JOB_ERROR')[0])).toMatchObject({
      operation: 'read',
      action: 'ignore',
    })
    expect(events('JOB_STATUS_CHANGE').join()).not.toContain('paused')
    expect(completed()).toMatchObject({ offset: 2 * MiB, error: 'Input/output error' })
    expect(find('top').child('backing')).toBeDefined()
  })

  for (const [id, policy, errno, ioStatus] of [
    ['J32', 'stop', 5, 'failed'],
    ['J34', 'enospc', 28, 'nospace'],
  ] as const) {
    test(`${id} with on-error=${policy} a stream stops at the error and goes on when resumed`, async () => {
      await failing(errno)
      await stream({ 'on-error': policy })
      await status('paused')
      expect(told(events('BLOCK_JOB_ERROR')[0])).toMatchObject({ action: 'stop' })
      const stopped = { offset: 512 * KiB, 'io-status': ioStatus, paused: true }
      expect(await rig.run('query-block-jobs')).toMatchObject([stopped])
      await rig.run('block-job-resume', { device: 'j' })
      expect(rig.jobs.list()[0]?.ioStatus ?? 'ok').toBe('ok')
      await gone()
      expect(completed().error).toBeUndefined()
      expect(completed().offset).toBe(2 * MiB)
      expect([await byteAt('top', 512 * KiB), await byteAt('top', 2 * MiB - 1)]).toEqual([1, 1])
    })
  }

  test('J39 an active commit moves its user onto the base', async () => {
    await threeImages()
    const options = { perm: PERM.WRITE | PERM.CONSISTENT_READ, shared: PERM.ALL }
    await using guest = await BlockBackend.create(rig.graph, find('top'), options)
    await commit()
    await status('ready')
    await guest.pwrite(128 * KiB, new Uint8Array(64 * KiB).fill(9))
    await rig.run('job-complete', { id: 'j' })
    await gone()
    expect(guest.root.node.name).toBe('base')
    await guest.pwrite(256 * KiB, new Uint8Array(512).fill(8))
    const places = [0, 128 * KiB, 256 * KiB, 512 * KiB]
    expect(await Promise.all(places.map((at) => byteAt('base', at)))).toEqual([1, 9, 8, 2])
  })

  test('J39 what lies under a filter is committed as the image in use', async () => {
    await threeImages()
    await add({ driver: 'copy-on-read', 'node-name': 'over', file: 'top' })
    const refused = (ends: JsonObject) =>
      rig.refused('block-commit', { 'job-id': 'j', device: 'over', ...ends })
    expect(await refused({ 'base-node': 'top' })).toBe("Can't mirror node into itself")
    expect(await refused({ 'top-node': 'top', 'backing-file': 'x' })).toBe(
      "'backing-file' specified, but 'top' is the active layer",
    )
    await commit({ device: 'over', 'top-node': 'top' })
    await status('ready')
    await rig.run('job-complete', { id: 'j' })
    await gone()
    expect(completed().error).toBeUndefined()
    expect(find('over').child('file')?.node.name).toBe('base')
    await write('over', 0, 512, 5)
    expect(await byteAt('base', 0)).toBe(5)
  })

  test('J39 a base under a filter can be committed into', async () => {
    await threeImages()
    for (const name of ['top', 'mid']) await rig.run('blockdev-del', { 'node-name': name })
    await add({ driver: 'copy-on-read', 'node-name': 'over', file: 'base' })
    await add(qcow2('mid', { backing: 'over' }))
    await add(qcow2('top', { backing: 'mid' }))
    expect(
      await rig.refused('block-commit', { 'job-id': 'j', device: 'top', 'top-node': 'over' }),
    ).toBe('Invalid files for merge: top and base are the same')
    await commit()
    await status('ready')
    await rig.run('job-complete', { id: 'j' })
    await gone()
    expect(completed().error).toBeUndefined()
    expect([await byteAt('base', 0), await byteAt('base', 512 * KiB)]).toEqual([1, 2])
  })

  test('J41 images are found by the names that their overlays know them by', async () => {
    for (const name of ['d1', 'd2', 'd2/d3']) mkdirSync(path(name))
    await image('d1/base', { size: MiB })
    await image('d2/mid', { size: MiB, backingFile: '../d1/base', backingFormat: 'qcow2' })
    await image('d2/d3/top', { size: MiB, backingFile: '../mid', backingFormat: 'qcow2' })
    await add({ driver: 'qcow2', 'node-name': 'm', file: file('d2/mid') })
    await write('m', 0, 64 * KiB, 2)
    await rig.run('blockdev-del', { 'node-name': 'm' })
    await add({ driver: 'qcow2', 'node-name': 'top', file: file('d2/d3/top') })
    expect(await imageOf('top')).toMatchObject({
      'backing-filename': '../mid',
      'full-backing-filename': `${path('d2/d3')}/../mid`,
    })
    const unknown = { 'job-id': 'j', device: 'top', top: 'd2/mid' }
    expect(await rig.refused('block-commit', unknown)).toBe('Top image file d2/mid not found')
    await commit({ top: '../mid', base: '../d1/base' })
    await gone()
    expect(completed()).toMatchObject({ len: MiB, offset: MiB })
    expect(await imageOf('top')).toMatchObject({
      'backing-filename': `${path('d2/d3')}/../../d1/base`,
    })
    await add({ driver: 'qcow2', 'node-name': 'b', file: file('d1/base'), 'read-only': true })
    expect(await byteAt('b', 0)).toBe(2)
  })
})
