import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Rig } from './rig.ts'

const MiB = 1024 * 1024

let rig: Rig
let folder: string
beforeEach(() => {
  rig = new Rig()
  folder = mkdtempSync(join(tmpdir(), 'shape-'))
})
afterEach(async () => {
  await rig.close()
  rmSync(folder, { recursive: true, force: true })
})

interface Shown {
  readonly 'node-name': string
  readonly file: string
  readonly backing_file_depth: number
  readonly image: Readonly<Record<string, unknown>>
}

async function nodes(flat = false): Promise<Shown[]> {
  return (await rig.run('query-named-block-nodes', { flat })) as unknown as Shown[]
}

async function shown(name: string): Promise<Shown> {
  const found = (await nodes()).find((node) => node['node-name'] === name)
  expect(found).toBeDefined()
  return found as Shown
}

function disk(name: string, bytes = MiB): string {
  const path = join(folder, name)
  writeFileSync(path, '')
  truncateSync(path, bytes)
  return path
}

const nothing = (name: string, more = {}) => ({ driver: 'null-co', 'node-name': name, ...more })

describe('qmp / nodes / filename', () => {
  it('qmp / nodes / filename / options that decide the content make it JSON, others do not', async () => {
    await rig.run('blockdev-add', nothing('plain', { 'latency-ns': 5 }))
    await rig.run('blockdev-add', nothing('sized', { size: MiB }))
    expect((await shown('plain')).file).toBe('null-co://')
    expect((await shown('sized')).file).toBe('json:{"driver": "null-co", "size": 1048576}')
  })

  it('qmp / nodes / filename / an image in a file has the name of the file, a window does not', async () => {
    const path = disk('a')
    const file = { driver: 'file', filename: path, 'node-name': 'f' }
    await rig.run('blockdev-add', { driver: 'raw', 'node-name': 'r', 'read-only': true, file })
    await rig.run('blockdev-add', {
      ...{ driver: 'raw', 'node-name': 'w', 'read-only': true },
      ...{ file: 'f', offset: 512 },
    })
    expect((await shown('r')).file).toBe(path)
    expect(JSON.parse((await shown('w')).file.slice('json:'.length))).toEqual({
      driver: 'raw',
      offset: 512,
      file: { driver: 'file', filename: path },
    })
  })

  it('qmp / nodes / filename / a plain blkdebug has its short form, children of a quorum are a list', async () => {
    const path = disk('a')
    const file = { driver: 'file', filename: path, 'node-name': 'f', 'read-only': true }
    await rig.run('blockdev-add', file)
    await rig.run('blockdev-add', {
      ...{ driver: 'blkdebug', 'node-name': 'd', 'read-only': true, image: 'f' },
    })
    await rig.run('blockdev-add', {
      ...{ driver: 'quorum', 'node-name': 'q', 'read-only': true },
      ...{ children: ['f'], 'vote-threshold': 1 },
    })
    expect((await shown('d')).file).toBe(`blkdebug::${path}`)
    expect(JSON.parse((await shown('q')).file.slice('json:'.length))).toEqual({
      driver: 'quorum',
      'vote-threshold': 1,
      children: [{ driver: 'file', filename: path }],
    })
  })
})

describe('qmp / nodes / image', () => {
  it('qmp / nodes / image / a filter is a link of the chain that it stands on', async () => {
    await rig.run('blockdev-add', nothing('n', { size: MiB }))
    await rig.run('blockdev-add', { driver: 'preallocate', 'node-name': 'p', file: 'n' })
    const filter = await shown('p')
    expect([filter.backing_file_depth, filter.image['backing-image'] !== undefined]).toEqual([
      1,
      true,
    ])
    expect([filter.image['actual-size'], filter.image['dirty-flag']]).toEqual([0, undefined])
  })

  it('qmp / nodes / image / sizes are whole sectors', async () => {
    await rig.run('blockdev-add', nothing('n', { size: 1000 }))
    await rig.run('blockdev-add', {
      ...{ driver: 'raw', 'node-name': 'r', 'read-only': true },
      ...{ file: nothing('m', { size: 4096 }), offset: 1 },
    })
    const sizes = [await shown('n'), await shown('r')].map((node) => node.image['virtual-size'])
    expect(sizes).toEqual([1024, 4096])
  })

  it('qmp / nodes / list / the newest comes first, an image before its file', async () => {
    await rig.run('blockdev-add', nothing('old'))
    const file = nothing('file', { size: MiB })
    await rig.run('blockdev-add', { driver: 'raw', 'node-name': 'image', file })
    expect((await nodes(true)).map((node) => node['node-name'])).toEqual(['image', 'file', 'old'])
  })
})

describe('qmp / nodes / refusals', () => {
  it('qmp / nodes / refusals / a quorum cannot be its own child', async () => {
    await rig.run('blockdev-add', nothing('a'))
    await rig.run('blockdev-add', {
      ...{ driver: 'quorum', 'node-name': 'q', children: ['a'], 'vote-threshold': 1 },
    })
    await expect(rig.run('x-blockdev-change', { parent: 'q', node: 'q' })).rejects.toMatchObject({
      code: 'EINVAL',
    })
    expect(rig.graph.lookup('q').children.size).toBe(1)
  })

  it('qmp / nodes / refusals / a node that is being opened is no child yet', async () => {
    const loop = { driver: 'raw', 'node-name': 'r', file: 'r' }
    await expect(rig.run('blockdev-add', loop)).rejects.toMatchObject({ code: 'EINVAL' })
    expect(await nodes()).toEqual([])
  })

  it('qmp / replication / a takeover with nothing to take over is no failure', async () => {
    const { BlockError } = await import('../../../src/util/errors.ts')
    rig.failing['stop true'] = new BlockError('EINVAL', 'not running')
    rig.failing['stop false'] = new BlockError('EINVAL', 'not running')
    const stop = (failover: boolean) =>
      rig.run('xen-set-replication', { enable: false, primary: false, failover })
    await stop(true)
    await expect(stop(false)).rejects.toMatchObject({ code: 'EINVAL' })
    rig.failing['stop true'] = new BlockError('EIO', 'no merge')
    await expect(stop(true)).rejects.toMatchObject({ code: 'EIO' })
  })
})
