/** The graph scenarios, by their number. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { type DriverDefinition, PERM } from '../../../src/block/driver.ts'
import type { BlockGraph } from '../../../src/block/graph.ts'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { fill, guest, HeldDriver, memoryGraph } from '../../support/graph.ts'
import { counts, memory, Probes, probe, stepJob } from './probe.ts'
import { MiB, Scenario } from './scenario-rig.ts'

const EXCLUSIVE = PERM.ALL & ~PERM.WRITE

/** A node that must be the only writer of its child, whoever uses it. */
const greedy = (name: string, kind: 'filter' | 'format'): DriverDefinition => ({
  ...new Probes().definition,
  name,
  kind,
  open: async (node, options, opener) => {
    const edge = await opener.open('file', options.file as string, 'filtered')
    const inner = await new Probes().definition.open(node, { driver: name }, opener)
    return { ...inner, length: () => edge.length() }
  },
  childPermissions: () => ({ perm: PERM.WRITE, shared: EXCLUSIVE }),
})

const edges = (graph: BlockGraph): string[] =>
  graph
    .nodes()
    .flatMap((n) => [...n.parents].map((e) => `${e.name}>${n.name} ${e.perm}/${e.shared}`))
    .sort()

describe('scenario / graph / permissions', () => {
  it('scenario / graph / G01 a filter that is a user already cannot take the exclusive writer over', async () => {
    const graph = memoryGraph(new HeldDriver().definition)
    const node = await graph.add(memory('node'))
    const root = await BlockBackend.create(graph, node, { perm: PERM.WRITE, shared: EXCLUSIVE })
    const filter = await graph.add({ driver: 'held', 'node-name': 'filter', file: 'node' })
    node.refs++
    await graph.attach(filter, node, 'again', 'filtered')
    const before = edges(graph)
    await expect(graph.replace(node, filter)).rejects.toThrow("Permission conflict on node 'node'")
    expect(edges(graph)).toEqual(before)
    expect([root.node, counts(graph)]).toEqual([node, { node: 0, filter: 0 }])
  })

  it('scenario / graph / G03 the permissions of a node that goes do not count', async () => {
    const graph = memoryGraph(new HeldDriver().definition, greedy('greedy', 'format'))
    await graph.add(memory('base'))
    const fl1 = await graph.add({ driver: 'held', 'node-name': 'fl1', file: 'base' })
    const fl2 = await graph.add({ driver: 'held', 'node-name': 'fl2', file: 'base' })
    const top = await graph.add({ driver: 'greedy', 'node-name': 'top', file: 'fl1' })
    await graph.replace(fl1, fl2)
    expect(top.child('file')?.node).toBe(fl2)
    expect([fl1.child('file')?.perm, fl2.child('file')?.perm]).toEqual([0, PERM.WRITE])
  })

  it('scenario / graph / G05 a filter that wants to be the only writer comes between such a writer and its disk', async () => {
    const graph = memoryGraph(greedy('greedy', 'format'), greedy('between', 'filter'))
    const base = await graph.add(memory('base'))
    const top = await graph.add({ driver: 'greedy', 'node-name': 'top', file: 'base' })
    const filter = await graph.insertFilter({ driver: 'between', file: 'base' }, base)
    expect(top.child('file')?.node).toBe(filter)
    expect([...base.parents].map((e) => [e.owner, e.perm])).toEqual([[filter, PERM.WRITE]])
    await expect(
      graph.open({ driver: 'between', 'node-name': 'second', file: 'base' }),
    ).rejects.toMatchObject({ code: 'EPERM' })
  })
})

describe('scenario / graph / context', () => {
  it('scenario / graph / G14 all nodes of a tree are of one context, also where two ways lead to one', async () => {
    const graph = memoryGraph(new Probes().definition)
    await graph.add(memory('base'))
    await graph.add(probe('left', 'base'))
    await graph.add(probe('right', 'base'))
    const top = await graph.add(probe('top', 'left', 'right'))
    await guest(graph, top)
    expect(graph.nodes().every((node) => node.graph.ctx === graph.ctx)).toBe(true)
    await graph.withDrained(graph.lookup('base'), () =>
      expect(counts(graph)).toEqual({ base: 1, left: 1, right: 1, top: 2 }),
    )
    expect(counts(graph)).toEqual({ base: 0, left: 0, right: 0, top: 0 })
  })

  it('scenario / graph / G16 a node that comes, goes and comes again serves its user, and a job on it, each time', async () => {
    const graph = memoryGraph(new Probes().definition)
    const node = await graph.add(memory('node'))
    for (let round = 0; round < 3; round++) {
      const user = await guest(graph, node)
      const above = await graph.add(probe('above', 'node'))
      const { job, finish } = await stepJob(graph, [above])
      await fill(user, round, 0, 512)
      await graph.withDrained(node, () => expect(job.busy).toBe(false))
      finish()
      await job.done
      await user.close()
      await graph.remove('above')
    }
    expect([node.refs, node.parents.size, counts(graph)]).toEqual([1, 0, { node: 0 }])
  })
})

describe('scenario / graph / commands', () => {
  let s: Scenario
  beforeEach(() => {
    s = new Scenario()
  })
  afterEach(() => s.close())

  const del = (name: string): Promise<unknown> => s.run('blockdev-del', { 'node-name': name })
  const delRefused = (name: string): Promise<string> =>
    s.refused('blockdev-del', { 'node-name': name })
  const small = (name: string): JsonObject => ({ driver: 'null-co', 'node-name': name, size: MiB })

  it.each([
    ['G06', 'qcow2', (inner: JsonObject): JsonObject => ({ driver: 'raw', file: inner })],
    ['G07', 'blkdebug', (inner: JsonObject): JsonObject => ({ driver: 'blkdebug', image: inner })],
    [
      'G08',
      'blkverify',
      (inner: JsonObject): JsonObject => ({
        driver: 'blkverify',
        test: inner,
        raw: { driver: 'null-co', size: MiB },
      }),
    ],
    [
      'G09',
      'quorum',
      (inner: JsonObject): JsonObject => ({
        driver: 'quorum',
        'vote-threshold': 1,
        children: [inner],
      }),
    ],
  ])(
    'scenario / graph / %s a child of %s is not the user’s to delete, and goes with its parent',
    async (_id, _what, over) => {
      await s.add({ ...over(small('child')), 'node-name': 'parent' })
      expect(await delRefused('child')).toBe('Node child is not owned by the monitor')
      await del('parent')
      expect(s.names()).toEqual([])
      expect(await delRefused('parent')).toBe("Failed to find node with node-name='parent'")
    },
  )

  it('scenario / graph / G10 a node and the overlay of its snapshot go in their order', async () => {
    await s.add({ driver: 'memory', 'node-name': 'node', size: MiB })
    await s.user('node')
    await s.add({ driver: 'memory', 'node-name': 'overlay', size: MiB })
    await s.run('blockdev-snapshot', { node: 'node', overlay: 'overlay' })
    expect(await delRefused('node')).toContain('is busy')
    expect(await delRefused('overlay')).toBe('Node overlay is in use')
    await s.drop('node')
    await del('overlay')
    await del('node')
    expect(s.names()).toEqual([])
  })

  it('scenario / graph / G12 five mistakes have five sentences', async () => {
    const image = await s.qcow2('f', MiB)
    await s.add(image)
    const sentences = [
      await s.refused('blockdev-add', small('f')),
      await s.refused('blockdev-add', small('0a')),
      await s.refused('blockdev-add', { 'node-name': 'x' }),
      await s.refused('blockdev-add', { driver: 'nope', 'node-name': 'x' }),
      await s.refused('blockdev-add', { ...image, 'node-name': 'x', file: s.file('f', 'g') }),
    ]
    expect(new Set(sentences).size).toBe(5)
    expect(sentences).not.toContain('accepted')
    expect(s.names()).toEqual(['f', 'f-file'])
  })

  it('scenario / graph / G18 a quorum gains and loses children down to its threshold', async () => {
    for (const name of ['a', 'b', 'c']) await s.add(small(name))
    const children = ['a', 'b']
    await s.add({ driver: 'quorum', 'node-name': 'q', 'vote-threshold': 1, children })
    const change = (args: JsonObject): Promise<string> =>
      s.refused('x-blockdev-change', { parent: 'q', ...args })
    expect(await change({ node: 'c' })).toBe('accepted')
    expect(await change({ child: 'children.2' })).toBe('accepted')
    expect(await change({ child: 'children.7' })).not.toBe('accepted')
    expect(await change({ child: 'children.1' })).toBe('accepted')
    expect(await change({ child: 'children.0' })).toContain('vote threshold 1')
  })

  it('scenario / graph / G19 a vote finds the odd child, repairs it when asked, and fails without a majority', async () => {
    for (const name of ['a', 'b', 'c']) s.raw(name, 7)
    const children = ['a', 'b', 'c'].map((name) => s.file(name, name))
    const quorum = { driver: 'quorum', 'vote-threshold': 2, children }
    await s.add({ ...quorum, 'node-name': 'q' })
    s.raw('c', 8)
    expect(await s.shows('q')).toEqual([7])
    expect(s.rig.calls.some((call) => call.startsWith('QUORUM_REPORT_BAD'))).toBe(true)
    await s.drop('q')
    await del('q')
    await s.add({ ...quorum, 'node-name': 'q', 'rewrite-corrupted': true })
    expect(await s.shows('q')).toEqual([7])
    await s.drop('q')
    await del('q')
    await s.add(s.file('c', 'alone'))
    expect(await s.shows('alone')).toEqual([7])
    await s.drop('alone')
    await del('alone')
    await s.add({ ...quorum, 'node-name': 'q' })
    s.raw('b', 9)
    s.raw('c', 10)
    await expect(s.shows('q')).rejects.toMatchObject({ code: 'EIO' })
    expect(s.rig.calls.some((call) => call.startsWith('QUORUM_FAILURE'))).toBe(true)
  })

  it.each([0, 4])(
    'scenario / graph / G20 a threshold of %d for three children is refused',
    async (threshold) => {
      const children = ['a', 'b', 'c'].map(small)
      const quorum = { driver: 'quorum', 'node-name': 'q', 'vote-threshold': threshold, children }
      expect(await s.refused('blockdev-add', quorum)).not.toBe('accepted')
      expect(s.names()).toEqual([])
    },
  )

  it('scenario / graph / G21 children inline, by name and inline again work together', async () => {
    for (const name of ['a', 'b', 'c']) s.raw(name, 5)
    await s.add(s.file('b', 'b'))
    const children = [s.file('a', 'a'), 'b', s.file('c', 'c')]
    await s.add({ driver: 'quorum', 'node-name': 'q', 'vote-threshold': 2, children })
    expect(await s.shows('q')).toEqual([5])
  })

  it('scenario / graph / G23 the first of two backups goes back when the second is bad', async () => {
    for (const name of ['a', 'b', 't'])
      await s.add({ driver: 'memory', 'node-name': name, size: MiB })
    const first = {
      type: 'blockdev-backup',
      data: { 'job-id': 'j', device: 'a', target: 't', sync: 'full' },
    }
    for (const data of [
      { device: 'b', target: 'nope', sync: 'full', 'job-id': 'k' },
      { device: 'b', target: 't', sync: 'full', 'job-id': 'j' },
    ]) {
      const actions = [first, { type: 'blockdev-backup', data }]
      expect(await s.refused('transaction', { actions })).not.toBe('accepted')
      await s.jobsEnd()
      expect(s.names().sort()).toEqual(['a', 'b', 't'])
    }
  })
})
