import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { BlockError } from '../../../src/util/errors.ts'
import { memory, Rig } from './rig.ts'

let rig: Rig
beforeEach(() => {
  rig = new Rig()
})
afterEach(() => rig.close())

const add = (options: JsonObject) => rig.run('blockdev-add', options)
const ask = () => rig.run('x-debug-query-block-graph') as Promise<JsonObject>
const ALL = ['resize', 'write-unchanged', 'write', 'consistent-read']

/** Edges as `owner -> node name` lines. */
async function edges(): Promise<string[]> {
  const { nodes, edges: list } = await ask()
  const names = new Map((nodes as JsonObject[]).map(({ id, name, type }) => [id, name || type]))
  return (list as JsonObject[]).map(
    ({ parent, child, name }) =>
      `${String(names.get(parent))} -> ${String(names.get(child))} ${String(name)}`,
  )
}

describe('qmp / graph debug', () => {
  test('qmp / graph debug / nothing is an answer', async () => {
    expect(await ask()).toEqual({ nodes: [], edges: [] })
  })

  test('qmp / graph debug / ids follow the walk, lists run against it', async () => {
    await add(memory('base'))
    await add({ ...memory('top'), backing: 'base' })
    await add(memory('other'))
    await rig.exports.startServer({ type: 'inet', host: '127.0.0.1', port: 0 })
    await rig.exports.add({ id: 'e', nodeName: 'top', writable: true })
    expect(await ask()).toEqual({
      nodes: [
        { id: 4, type: 'block-driver', name: 'other' },
        { id: 2, type: 'block-driver', name: 'top' },
        { id: 3, type: 'block-driver', name: 'base' },
        { id: 1, type: 'block-backend', name: '' },
      ],
      edges: [
        {
          parent: 2,
          child: 3,
          name: 'backing',
          perm: ['consistent-read'],
          'shared-perm': ALL,
        },
        {
          parent: 1,
          child: 2,
          name: 'root',
          perm: ['write', 'consistent-read'],
          'shared-perm': ['write-unchanged', 'write', 'consistent-read'],
        },
      ],
    })
  })

  test('qmp / graph debug / the newest child of a node is the last edge of it', async () => {
    for (const name of ['a', 'b', 'c']) await add(memory(name))
    const children = ['a', 'b', 'c']
    await add({ driver: 'quorum', 'node-name': 'q', 'vote-threshold': 1, children })
    expect(await edges()).toEqual(['q -> a children.0', 'q -> b children.1', 'q -> c children.2'])
  })

  test('qmp / graph debug / a job has a name, its nodes, and a filter over a backing image', async () => {
    await add(memory('a'))
    await add(memory('copy'))
    const filter = { 'filter-node-name': 'f', sync: 'none', speed: 1 }
    await rig.run('blockdev-mirror', { 'job-id': 'j', device: 'a', target: 'copy', ...filter })
    const lines = await edges()
    expect(lines[0]).toBe('f -> a backing')
    const ofJob = lines.filter((line) => line.startsWith('j'))
    expect(ofJob).toEqual(['j -> f main node', 'j -> a source', 'j -> copy target'])
    expect((await ask()).nodes).toContainEqual(
      expect.objectContaining({ type: 'block-job', name: 'j' }),
    )
    await rig.run('block-job-cancel', { device: 'j', force: true })
    await rig.jobs.cancelAll()
    expect(await edges()).toEqual([])
  })

  test('qmp / graph debug / a closed backend is gone', async () => {
    await add(memory('a'))
    await rig.exports.startServer({ type: 'inet', host: '127.0.0.1', port: 0 })
    await rig.exports.add({ id: 'e', nodeName: 'a' })
    expect(await edges()).toEqual(['block-backend -> a root'])
    await rig.exports.remove('e', 'hard')
    expect(await edges()).toEqual([])
    expect(rig.graph.backends.size).toBe(0)
  })

  test('qmp / graph debug / a backend that was refused leaves nothing', async () => {
    await add(memory('a'))
    const { graph } = rig
    const node = graph.lookup(undefined, 'a')
    const alone = { perm: PERM.WRITE, shared: PERM.CONSISTENT_READ }
    const first = await BlockBackend.create(graph, node, alone)
    await expect(BlockBackend.create(graph, node, alone)).rejects.toThrow(BlockError)
    const later = { ...alone, perm: PERM.CONSISTENT_READ, sharesAllFirst: true }
    await expect(BlockBackend.create(graph, node, later)).rejects.toThrow(BlockError)
    expect([...graph.backends]).toEqual([first])
    await first.close()
    expect(await ask()).toMatchObject({ nodes: [{ id: 1, name: 'a' }], edges: [] })
  })
})
