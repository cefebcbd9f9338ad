import fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { PERM } from '../../../src/block/driver.ts'
import { createQcow2 } from '../../../src/drivers/qcow2/create.ts'
import { makeThrottleDriver, ThrottleGroups } from '../../../src/drivers/throttle.ts'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { Rig } from './rig.ts'

const MiB = 1024 * 1024
const UNMAP =
  'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap'

let rig: Rig
let dir: string

beforeEach(() => {
  rig = new Rig()
  dir = fs.mkdtempSync(join(tmpdir(), 'blockstep-graph-'))
})
afterEach(async () => {
  await rig.close()
  fs.rmSync(dir, { recursive: true, force: true })
})

const nothing = (name: string, more: JsonObject = {}): JsonObject => ({
  driver: 'null-co',
  'node-name': name,
  size: MiB,
  ...more,
})
const add = (options: JsonObject): Promise<string> => rig.refused('blockdev-add', options)
const reopen = (...options: JsonObject[]): Promise<string> =>
  rig.refused('blockdev-reopen', { options })

async function added(...all: JsonObject[]): Promise<void> {
  for (const options of all) await rig.run('blockdev-add', options)
}

async function image(name: string, more: JsonObject = {}): Promise<JsonObject> {
  const filename = join(dir, name)
  await createQcow2(filename, { size: MiB, clusterSize: 65536, ...more })
  return { driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename } }
}

/** Groups for the driver of that name, which comes with them. */
function throttling(): ThrottleGroups {
  const groups = new ThrottleGroups(rig.graph.ctx)
  rig.graph.drivers.set('throttle', makeThrottleDriver(groups))
  return groups
}

async function serve(): Promise<void> {
  const addr = { type: 'unix', data: { path: join(dir, 'nbd.sock') } }
  await rig.run('nbd-server-start', { addr })
}

const exported = (node: string, writable = false): Promise<string> =>
  rig.refused('block-export-add', { type: 'nbd', id: `e-${node}`, 'node-name': node, writable })

async function shown(node: string): Promise<JsonObject> {
  const all = (await rig.run('query-named-block-nodes')) as JsonObject[]
  return all.find((one) => one['node-name'] === node) ?? {}
}

describe('graph / answers / opening', () => {
  test('graph / answers / opening / the file comes before everything else of a node', async () => {
    const file = { driver: 'file', filename: join(dir, 'none') }
    const missing = `Could not open '${file.filename}': No such file or directory`
    expect(await add({ driver: 'raw', 'node-name': '5x', file })).toBe(missing)
    const zeroes = { 'detect-zeroes': 'unmap' }
    expect(await add({ driver: 'raw', 'node-name': 'x', ...zeroes, file })).toBe(missing)
    throttling()
    const group = { driver: 'throttle', 'throttle-group': 'none', 'node-name': 'x' }
    expect(await add({ ...group, file })).toBe(missing)
    expect(await add({ ...group, file: nothing('x') })).toBe("Duplicate nodes with node-name='x'")
    expect(rig.graph.nodes()).toEqual([])
  })

  test('graph / answers / opening / sharing by force, then zeroes, then the name', async () => {
    const raw = { driver: 'raw', 'node-name': '5x', file: nothing('a') }
    const zeroes = { ...raw, 'detect-zeroes': 'unmap' }
    const forced = 'force-share=on can only be used with read-only images'
    expect(await add({ ...zeroes, 'force-share': true })).toBe(forced)
    expect(await add(zeroes)).toBe(UNMAP)
    expect(await add(raw)).toBe("Invalid node-name: '5x'")
    expect(rig.graph.nodes()).toEqual([])
  })

  test('graph / answers / opening / a node that is its own child is a circle', async () => {
    const circle = (child: string): string =>
      `Making 'x' a ${child} child of 'x' would create a cycle`
    const self = { 'node-name': 'x' }
    expect(await add({ driver: 'blkdebug', ...self, image: 'x' })).toBe(circle('image'))
    expect(await add({ driver: 'quorum', ...self, 'vote-threshold': 1, children: ['x'] })).toBe(
      circle('children.0'),
    )
    expect(await add({ ...(await image('a')), ...self, backing: 'x' })).toBe(circle('backing'))
  })

  test('graph / answers / opening / a backing image may unmap what it finds to be zero', async () => {
    const backing = nothing('b', { 'detect-zeroes': 'unmap' })
    expect(await add({ ...(await image('a')), backing })).toBe('accepted')
  })

  test('graph / answers / opening / a folder that opens is no regular file', async () => {
    const file = { driver: 'file', 'node-name': 'f', filename: dir }
    expect(await add(file)).toBe(`Could not open '${dir}': Is a directory`)
    expect(await add({ ...file, 'read-only': true })).toBe(
      `'file' driver requires '${dir}' to be a regular file`,
    )
  })

  test('graph / answers / opening / limits of blkdebug fit those of what is below', async () => {
    await added({ driver: 'blkdebug', 'node-name': 'low', image: nothing('a'), align: 4096 })
    const high = { driver: 'blkdebug', 'node-name': 'high', image: 'low' }
    expect(await add({ ...high, 'opt-discard': 512 })).toBe(
      'Cannot meet constraints with opt-discard 512',
    )
    expect(await add({ ...high, 'opt-discard': 4096 })).toBe('accepted')
  })

  test('graph / answers / opening / what compresses passes it on through some filters', async () => {
    await added(await image('a'))
    const through = (file: JsonObject): JsonObject => ({
      driver: 'compress',
      'node-name': 'c',
      file,
    })
    expect(await add(through({ driver: 'blkdebug', image: 'a' }))).toBe(
      'Compression is not supported for underlying format: blkdebug',
    )
    expect(await add(through({ driver: 'copy-on-read', file: 'a' }))).toBe('accepted')
  })
})

describe('graph / answers / permissions', () => {
  test('graph / answers / permissions / copy-on-read writes also when it is read-only', async () => {
    await added(nothing('a', { 'read-only': true }), nothing('b'))
    const filter = { driver: 'copy-on-read', 'node-name': 'c', 'read-only': true }
    expect(await add({ ...filter, file: 'a' })).toBe('Block node is read-only')
    expect(await add({ ...filter, file: 'b' })).toBe('accepted')
  })

  test('graph / answers / permissions / copy-on-read lets others write beside it', async () => {
    await serve()
    await added(nothing('a'), { driver: 'copy-on-read', 'node-name': 'c', file: 'a' })
    expect(await exported('a', true)).toBe('accepted')
    expect(await exported('c', true)).toBe('accepted')
  })

  test('graph / answers / permissions / a window forbids its file another length', async () => {
    await added(nothing('a'), { driver: 'raw', 'node-name': 'w', file: 'a', offset: 512 })
    expect(await rig.refused('block_resize', { 'node-name': 'a', size: 512 })).toBe(
      "Permission conflict on node 'a': permissions 'resize' are both required by an unnamed " +
        "block device (uses node 'a' as 'root' child) and unshared by node 'w' (uses node 'a' " +
        "as 'file' child).",
    )
  })

  test('graph / answers / permissions / a quorum that repairs writes, one that does not vote never', async () => {
    await added(nothing('a', { 'read-only': true }))
    const quorum = { driver: 'quorum', 'node-name': 'q', 'vote-threshold': 1, children: ['a'] }
    const repairs = { ...quorum, 'rewrite-corrupted': true, 'read-only': true }
    expect(await add(repairs)).toBe('Block node is read-only')
    expect(await add({ ...repairs, 'read-pattern': 'fifo' })).toBe('accepted')
  })

  test('graph / answers / permissions / a disk under test grows with its writers only', async () => {
    await serve()
    await added(nothing('a'), nothing('b'))
    await added({ driver: 'blkverify', 'node-name': 'v', raw: 'a', test: 'b' })
    const perms = (): (number | undefined)[] =>
      ['raw', 'test'].map((name) => rig.graph.lookup('v').child(name)?.perm)
    expect(perms()).toEqual([0, 0])
    expect(await exported('v', true)).toBe('accepted')
    expect(perms()).toEqual([
      PERM.CONSISTENT_READ | PERM.WRITE,
      PERM.CONSISTENT_READ | PERM.WRITE | PERM.RESIZE,
    ])
  })

  test('graph / answers / permissions / preallocate takes what its users take', async () => {
    await serve()
    await added(nothing('a'), { driver: 'preallocate', 'node-name': 'p', file: 'a' })
    expect(await exported('a', true)).toBe('accepted')
    expect(await exported('p', true)).toBe('accepted')
  })
})

describe('graph / answers / reopening', () => {
  test('graph / answers / reopening / a node given twice gets the last of each option', async () => {
    await added(nothing('a'))
    expect(await reopen(nothing('a', { 'read-only': true }), nothing('a', { size: 512 }))).toBe(
      "Cannot change the option 'size'",
    )
    expect(await reopen(nothing('a', { size: 512, 'read-only': true }), nothing('a'))).toBe(
      'accepted',
    )
    expect(rig.graph.lookup('a').readOnly).toBe(true)
  })

  test('graph / answers / reopening / zeroes, the driver, its options, the children', async () => {
    await added(nothing('a'), { driver: 'copy-on-read', 'node-name': 'c', file: 'a' })
    const filter = { driver: 'copy-on-read', 'node-name': 'c' }
    expect(await reopen({ ...filter, file: 'nope', 'detect-zeroes': 'unmap' })).toBe(UNMAP)
    expect(await reopen({ ...filter, file: 'c' })).toBe(
      "Block format 'copy-on-read' used by node 'c' does not support reopening files",
    )
    expect(await reopen({ driver: 'null-co', 'node-name': 'a', 'detect-zeroes': 'unmap' })).toBe(
      UNMAP,
    )
    throttling().add('tg')
    const throttle = { driver: 'throttle', 'node-name': 't', 'throttle-group': 'tg' }
    await added({ ...throttle, file: 'a' })
    expect(await reopen({ ...throttle, 'throttle-group': 'nope', file: 'nope' })).toBe(
      "Throttle group 'nope' does not exist",
    )
    expect(await reopen({ ...throttle, file: 'nope' })).toBe(
      "Cannot find device='' nor node-name='nope'",
    )
  })

  test('graph / answers / reopening / preallocate moves, and keeps its sizes given', async () => {
    const filter = { driver: 'preallocate', 'node-name': 'p', file: 'a', 'prealloc-align': 512 }
    await added(nothing('a'), nothing('b'), filter)
    expect(await reopen({ ...filter, file: 'b', 'prealloc-align': 1024 })).toBe('accepted')
    expect(rig.graph.lookup('p').child('file')?.node.name).toBe('b')
    expect(await reopen({ driver: 'preallocate', 'node-name': 'p', file: 'a' })).toBe(
      "Option 'prealloc-align' cannot be reset to its default value",
    )
  })

  test('graph / answers / reopening / the backing image is looked at before the file', async () => {
    await added(nothing('b'), { ...(await image('a')), backing: 'b' })
    expect(await reopen({ driver: 'qcow2', 'node-name': 'a', file: 'a' })).toBe(
      "backing is missing for 'a'",
    )
  })
})

describe('graph / answers / overlays', () => {
  const over = (node: string, overlay: string): Promise<string> =>
    rig.refused('blockdev-snapshot', { node, overlay })

  test('graph / answers / overlays / nodes may use an overlay, a server may not', async () => {
    await serve()
    await added(nothing('a'), await image('o'), { driver: 'raw', 'node-name': 'r', file: 'o' })
    expect(await over('a', 'o')).toBe('accepted')
    await added(nothing('b'), await image('p'))
    expect(await exported('p')).toBe('accepted')
    expect(await over('b', 'p')).toBe('The overlay is already in use')
  })

  test('graph / answers / overlays / one over a read-only disk is read-only', async () => {
    await serve()
    await added(nothing('a', { 'read-only': true }))
    expect(await exported('a')).toBe('accepted')
    await rig.run('blockdev-snapshot-sync', {
      'node-name': 'a',
      'snapshot-file': join(dir, 's'),
      'snapshot-node-name': 's',
    })
    expect(rig.graph.lookup('s').readOnly).toBe(true)
  })

  test('graph / answers / overlays / a filter is none, nor does it stand on itself', async () => {
    await added(nothing('a'), { driver: 'copy-on-read', 'node-name': 'c', file: 'a' })
    expect(await over('a', 'c')).toBe('Filters cannot be used as overlays')
    await added(await image('o'))
    expect(await over('o', 'o')).toBe("Making 'o' a backing child of 'o' would create a cycle")
  })

  test('graph / answers / overlays / renaming the backing image: the root, the image, the chain', async () => {
    await added(nothing('a'), { ...(await image('o')), backing: 'a' }, await image('lone'), {
      driver: 'copy-on-read',
      'node-name': 'c',
      file: 'o',
    })
    const rename = (device: string, name: string): Promise<string> =>
      rig.refused('change-backing-file', {
        device,
        'image-node-name': name,
        'backing-file': 'x',
      })
    expect(await rename('o', 'nope')).toBe('Need a root block node')
    expect(await rename('c', 'lone')).toBe(
      'not allowing backing file change on an image without a backing file',
    )
    expect(await rename('lone', 'o')).toBe("'lone' and image file are not in the same chain")
    expect(await rename('c', 'c')).toBe(
      "Could not change backing file to 'x': Operation not supported",
    )
    expect(await rename('c', 'o')).toBe('accepted')
  })
})

describe('graph / answers / lengths and names', () => {
  test('graph / answers / lengths and names / the driver says what a length must be', async () => {
    await serve()
    const file = { driver: 'file', filename: join(dir, 'f') }
    fs.writeFileSync(file.filename, '')
    const resize = (node: string, size: number): Promise<string> =>
      rig.refused('block_resize', { 'node-name': node, size })
    await added({ ...file, 'node-name': 'f' }, await image('i'), nothing('n'))
    expect(await resize('f', 1000)).toBe('accepted')
    expect(await resize('i', 1000)).toBe('The new size must be a multiple of 512')
    expect(await resize('n', 1000)).toBe('Image format driver does not support resize')
    await rig.run('blockdev-reopen', {
      options: [{ ...file, 'node-name': 'f', 'read-only': true }],
    })
    await added({ driver: 'raw', 'node-name': 'r', file: 'f' })
    expect(await resize('r', 2048)).toBe('Image is read-only')
  })

  test('graph / answers / lengths and names / a filter has no plain name', async () => {
    const filter = (driver: string): JsonObject => ({ driver, 'node-name': driver, file: 'f' })
    const file = { driver: 'file', filename: join(dir, 'f') }
    fs.writeFileSync(file.filename, 'x')
    await added({ ...file, 'node-name': 'f' }, filter('preallocate'), filter('raw'))
    expect((await shown('raw')).file).toBe(file.filename)
    expect(String((await shown('preallocate')).file)).toMatch(/^json:/)
  })

  test('graph / answers / lengths and names / a filter names no backing image of its own', async () => {
    const backingFile = join(dir, 'base')
    await added({ ...(await image('o', { backingFile, backingFormat: 'raw' })), backing: null })
    await added({ driver: 'blkdebug', 'node-name': 'b', image: 'o' })
    expect((await shown('o')).image).toMatchObject({ 'backing-filename': backingFile })
    expect((await shown('b')).image).not.toHaveProperty('backing-filename')
  })
})

describe('graph / answers / exports', () => {
  test('graph / answers / exports / id, node, permissions, then the server', async () => {
    await added(nothing('a'), nothing('r', { 'read-only': true }))
    const start = { type: 'nbd', id: '5bad', 'node-name': 'nope' }
    expect(await rig.refused('block-export-add', start)).toBe('Invalid block export id')
    expect(await exported('nope')).toBe("Cannot find device='' nor node-name='nope'")
    expect(await exported('r', true)).toBe('Cannot export read-only node as writable')
    await added({ driver: 'raw', 'node-name': 'rr', file: 'r' })
    expect(await exported('rr', true)).toBe('Block node is read-only')
    expect(await exported('a', true)).toBe('NBD server not running')
    const device = (more: JsonObject): Promise<string> => rig.refused('nbd-server-add', more)
    expect(await device({ device: 'nope' })).toBe("Cannot find device='nope' nor node-name='nope'")
    expect(await device({ device: 'a', name: '' })).toBe('Invalid block export id')
    expect(await device({ device: 'a' })).toBe('NBD server not running')
  })

  test('graph / answers / exports / what others may do to the length is asked after the server', async () => {
    await added(nothing('a'), {
      driver: 'blkdebug',
      'node-name': 'd',
      image: 'a',
      'take-child-perms': ['resize'],
    })
    expect(await exported('a')).toBe('NBD server not running')
    await serve()
    expect(await exported('a')).toMatch(/^Permission conflict on node 'a': permissions 'resize'/)
    expect(rig.graph.lookup('a').hasBackend).toBe(false)
  })

  test('graph / answers / exports / the name is looked at before the bitmaps', async () => {
    await serve()
    await added(nothing('a'))
    expect(await exported('a')).toBe('accepted')
    const again = { type: 'nbd', id: 'x', 'node-name': 'a', bitmaps: ['none'] }
    expect(await rig.refused('block-export-add', again)).toBe(
      "NBD server already has export named 'a'",
    )
  })
})

describe('graph / answers / bitmaps', () => {
  const bitmap = (node: string, more: JsonObject = {}): Promise<string> =>
    rig.refused('block-dirty-bitmap-add', { node, name: 'm', ...more })

  test('graph / answers / bitmaps / their grain is that of the image below', async () => {
    await added(await image('i', { clusterSize: 4096 }))
    await added({ driver: 'blkdebug', 'node-name': 'b', image: 'i' })
    await added({ driver: 'raw', 'node-name': 'r', file: 'b' })
    expect(await bitmap('r')).toBe('accepted')
    expect(rig.graph.lookup('r').bitmaps.need('m').granularity).toBe(4096)
  })

  test('graph / answers / bitmaps / grain, place, name', async () => {
    await added(nothing('a'))
    expect(await bitmap('a')).toBe('accepted')
    expect(await bitmap('a', { granularity: 1000 })).toBe(
      'Granularity must be power of 2 and at least 512',
    )
    expect(await bitmap('a', { persistent: true })).toBe(
      "Can't store persistent bitmaps to a: Operation not supported",
    )
    expect(await bitmap('a')).toBe('Bitmap already exists: m')
    expect(await bitmap('nope', { name: '' })).toBe('Bitmap name cannot be empty')
    const long = 'x'.repeat(1024)
    expect(await bitmap('a', { name: long })).toBe(`Bitmap name too long: ${long}`)
    expect(await bitmap('a', { name: long, granularity: 3 })).toMatch(/^Granularity must/)
  })

  test('graph / answers / bitmaps / an image no longer shows one that was removed', async () => {
    const options = await image('i')
    await added(options)
    expect(await bitmap('i', { persistent: true })).toBe('accepted')
    await rig.run('blockdev-del', { 'node-name': 'i' })
    await added(options)
    const listed = async (): Promise<string> => JSON.stringify((await shown('i')).image)
    expect(await listed()).toContain('"name":"m"')
    await rig.run('block-dirty-bitmap-remove', { node: 'i', name: 'm' })
    expect(await listed()).not.toContain('"name":"m"')
  })
})
