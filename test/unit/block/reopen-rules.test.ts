/** What a reopen promises as one transaction over several nodes, one rule a test. */
import { describe, expect, it } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { type BlockdevOptions, type DriverDefinition, PERM } from '../../../src/block/driver.ts'
import type { BlockGraph } from '../../../src/block/graph.ts'
import { BlockError, ioError } from '../../../src/util/errors.ts'
import { fill, guest, memoryGraph, patternOf } from '../../support/graph.ts'
import { TestDisk } from '../../support/test-disk.ts'
import { counts, memory, Probes, probe, SIZE } from './probe.ts'

/** Everything that a refused reopen must leave as it was. */
const snapshot = (graph: BlockGraph): unknown =>
  graph.nodes().map((n) => ({
    name: n.name,
    readOnly: n.readOnly,
    options: n.options,
    given: n.given,
    refs: n.refs,
    quiesced: n.gate.quiesceCount,
    blocked: n.blockers.reason('resize')?.message,
    children: [...n.children.values()].map(
      (e) => `${e.name}>${e.node.name} ${e.perm}/${e.shared} ${e.quiescedParent}`,
    ),
  }))

/** A disk that notes the steps of its reopens; `refuse` names nodes that do not prepare. */
function steps(): { definition: DriverDefinition; log: string[]; refuse: Set<string> } {
  const log: string[] = []
  const refuse = new Set<string>()
  const base = new Probes().definition
  const definition: DriverDefinition = {
    ...base,
    name: 'steps',
    open: async (node, options, opener) => ({
      ...(await base.open(node, options, opener)),
      flush: () => void log.push(`flush ${node.name}`),
      reopenPrepare: ({ readOnly }) => {
        if (refuse.has(node.name)) throw new BlockError('EINVAL', `${node.name} says no`)
        log.push(`prepare ${node.name} ${readOnly} ${node.gate.quiesceCount}`)
        return {
          commit: () => void log.push(`commit ${node.name} ${node.gate.quiesceCount}`),
          abort: () => void log.push(`abort ${node.name}`),
          afterCommit: () => void log.push(`after ${node.name}`),
        }
      },
    }),
  }
  return { definition, log, refuse }
}

const entry = (graph: BlockGraph, name: string, change: Partial<BlockdevOptions> = {}) => {
  const node = graph.lookup(name)
  return { node, options: { ...node.options, ...change } }
}

describe('block / reopen / transaction', () => {
  it('block / reopen / transaction / all flush, then prepare in order, commit in reverse, then finish', async () => {
    const { definition, log } = steps()
    const graph = memoryGraph(definition)
    for (const name of ['a', 'b']) {
      const node = await graph.add({ driver: 'steps', 'node-name': name })
      const user = await guest(graph, node)
      await fill(user, 1, 0, 512)
      await user.close()
    }
    await graph.reopen([
      entry(graph, 'a', { 'read-only': true }),
      entry(graph, 'b', { 'read-only': true }),
    ])
    expect(log).toEqual([
      ...['flush a', 'flush b', 'prepare a true 1', 'prepare b true 1'],
      ...['commit b 1', 'commit a 1', 'after a', 'after b'],
    ])
    expect(counts(graph)).toEqual({ a: 0, b: 0 })
  })

  it('block / reopen / transaction / one that does not prepare aborts those before it, nothing changed', async () => {
    const { definition, log, refuse } = steps()
    const graph = memoryGraph(definition)
    for (const name of ['a', 'b', 'c']) await graph.add({ driver: 'steps', 'node-name': name })
    refuse.add('c')
    const before = snapshot(graph)
    const all = ['a', 'b', 'c'].map((name) => entry(graph, name, { 'read-only': true }))
    await expect(graph.reopen(all)).rejects.toThrow('c says no')
    expect(log.filter((line) => !line.startsWith('prepare'))).toEqual(['abort b', 'abort a'])
    expect(snapshot(graph)).toEqual(before)
  })

  it('block / reopen / transaction / a flush that fails stops it before anything is prepared', async () => {
    const disk = new TestDisk(SIZE)
    const graph = memoryGraph({
      ...disk.definition,
      open: async (node, options, opener) => {
        const driver = await disk.definition.open(node, options, opener)
        return Object.assign(driver, {
          reopenPrepare: () => ({ commit: () => undefined, abort: () => undefined }),
        })
      },
    })
    const user = await guest(graph, await graph.add({ driver: 'test', 'node-name': 't' }))
    await fill(user, 1, 0, 512)
    disk.failNext.set('flush', ioError('EIO'))
    const before = snapshot(graph)
    await expect(graph.reopen([entry(graph, 't', { 'detect-zeroes': 'on' })])).rejects.toThrow(
      'Error flushing drive',
    )
    expect(snapshot(graph)).toEqual(before)
  })

  it('block / reopen / transaction / permissions are checked against the flags that will be', async () => {
    const { definition } = steps()
    const graph = memoryGraph(definition)
    await graph.add({ driver: 'steps', 'node-name': 'base', 'read-only': true })
    const top = await graph.add({ driver: 'steps', 'node-name': 'top', children: ['base'] })
    await expect(guest(graph, top)).rejects.toThrow('read-only')
    // Both turn in one step: neither order alone would do.
    await graph.reopen([
      entry(graph, 'top', { children: ['base'] }),
      entry(graph, 'base', { 'read-only': false }),
    ])
    const user = await guest(graph, top)
    const before = snapshot(graph)
    await expect(graph.reopen([entry(graph, 'base', { 'read-only': true })])).rejects.toThrow(
      "Read-only block node 'base' cannot support read-write users",
    )
    expect(snapshot(graph)).toEqual(before)
    await user.close()
    await graph.reopen([entry(graph, 'base', { 'read-only': true })])
    expect(graph.lookup('base').readOnly).toBe(true)
  })

  it('block / reopen / transaction / a driver without reopen and fixed options have their texts', async () => {
    const disk = new TestDisk(SIZE)
    const graph = memoryGraph(disk.definition, steps().definition)
    await graph.add({ driver: 'test', 'node-name': 't' })
    await graph.add({ driver: 'steps', 'node-name': 's' })
    await expect(graph.reopen([entry(graph, 't')])).rejects.toThrow(
      "Block format 'test' used by node 't' does not support reopening files",
    )
    await expect(graph.reopen([entry(graph, 's', { driver: 'memory' })])).rejects.toThrow(
      "Cannot change the option 'driver'",
    )
    await expect(graph.reopen([entry(graph, 's', { 'node-name': 'x' })])).rejects.toThrow(
      "Cannot change the option 'node-name'",
    )
  })

  it('block / reopen / transaction / waits for the writers of the node, and they go on after it', async () => {
    const { definition, log } = steps()
    const graph = memoryGraph(definition)
    const user = await guest(graph, await graph.add({ driver: 'steps', 'node-name': 'a' }))
    const writes = [0, 1, 2].map((n) => fill(user, n, n * 512, 512))
    const reopened = graph.reopen([entry(graph, 'a', { 'detect-zeroes': 'on' })])
    const late = fill(user, 1, 4096, 512)
    await Promise.all([reopened, late, ...writes])
    expect(log.filter((line) => line.startsWith('commit'))).toEqual(['commit a 1'])
    expect(graph.lookup('a').gate.inFlight).toBe(0)
  })
})

describe('block / reopen / edges', () => {
  async function three(): Promise<BlockGraph> {
    const graph = memoryGraph(new Probes().definition)
    for (const [index, name] of ['a', 'b'].entries()) {
      const user = await guest(graph, await graph.add(memory(name)))
      await fill(user, index + 1, 0, SIZE)
      await user.close()
    }
    await graph.add({ ...memory('top'), backing: 'a' })
    return graph
  }

  it('block / reopen / edges / the image that was left is free, the new one is held', async () => {
    const graph = await three()
    await graph.reopen([entry(graph, 'top', { backing: 'b' })])
    expect(await patternOf(await guest(graph, graph.lookup('top')), 0, SIZE)).toBe(2)
    await graph.remove('a')
    await expect(graph.remove('b')).rejects.toThrow("node is used as backing hd of 'top'")
    expect(graph.lookup('b').refs).toBe(2)
  })

  it('block / reopen / edges / an inline image that was left closes', async () => {
    const graph = await three()
    await graph.add({ ...memory('over'), backing: memory('inner') })
    await graph.reopen([entry(graph, 'over', { backing: 'b' })])
    expect(graph.find('inner')).toBeUndefined()
  })

  it('block / reopen / edges / one that is cut and made again is the same as before', async () => {
    const graph = await three()
    const before = snapshot(graph)
    await graph.reopen([entry(graph, 'top', { backing: null })])
    expect(graph.lookup('top').child('backing')).toBeUndefined()
    expect(graph.lookup('a').blockers.empty).toBe(true)
    await graph.reopen([entry(graph, 'top', { backing: 'a' })])
    expect(snapshot(graph)).toEqual(before)
  })

  it.each([
    ['moved', 'a'],
    ['new', null],
  ])(
    'block / reopen / edges / a %s link that permissions forbid is refused before the switch',
    async (_what, from) => {
      const graph = await three()
      await graph.reopen([entry(graph, 'top', { backing: from })])
      const user = await guest(graph, graph.lookup('top'))
      const alone = await BlockBackend.create(graph, graph.lookup('b'), {
        perm: 0,
        shared: PERM.WRITE_UNCHANGED,
      })
      const before = snapshot(graph)
      const change = entry(graph, 'top', { backing: 'b', 'detect-zeroes': 'on' })
      await expect(graph.reopen([change])).rejects.toMatchObject({ code: 'EPERM' })
      expect(snapshot(graph)).toEqual(before)
      await alone.close()
      await graph.reopen([change])
      expect(await patternOf(user, 0, SIZE)).toBe(2)
      expect(counts(graph)).toEqual({ a: 0, b: 0, top: 0 })
    },
  )

  it('block / reopen / edges / what was cut off below loses the permissions that it had for it', async () => {
    const graph = await three()
    await guest(graph, graph.lookup('top'))
    await graph.add(memory('under', 'b'))
    await graph.reopen([entry(graph, 'top', { backing: 'under' })])
    expect(graph.lookup('under').child('backing')?.perm).toBe(PERM.CONSISTENT_READ)
    await graph.reopen([entry(graph, 'top', { backing: 'a' })])
    expect(graph.lookup('under').child('backing')?.perm).toBe(0)
  })

  it('block / reopen / edges / missing, unknown, frozen and circular links are refused', async () => {
    const graph = await three()
    const { backing: _left, ...without } = graph.lookup('top').options
    const before = snapshot(graph)
    const node = graph.lookup('top')
    await expect(graph.reopen([{ node, options: without }])).rejects.toThrow(
      "backing is missing for 'top'",
    )
    await expect(graph.reopen([entry(graph, 'top', { backing: 'nope' })])).rejects.toThrow(
      "nor node-name='nope'",
    )
    await expect(graph.reopen([entry(graph, 'top', { backing: 'top' })])).rejects.toThrow(
      "Making 'top' a backing child of 'top' would create a cycle",
    )
    expect(snapshot(graph)).toEqual(before)
    const edge = node.child('backing')
    if (edge !== undefined) edge.frozen = true
    for (const backing of ['b', null])
      await expect(graph.reopen([entry(graph, 'top', { backing })])).rejects.toThrow(
        "Cannot change frozen 'backing' link from 'top' to 'a'",
      )
    expect(snapshot(graph)).toEqual(before)
  })

  it('block / reopen / edges / a filter that a job put over the backing image is not seen, and stays', async () => {
    const graph = await three()
    await graph.add({ ...memory('over'), backing: memory('inner') })
    const inner = graph.lookup('inner')
    const filter = await graph.insertFilter({ ...probe('filter', 'inner') }, inner)
    filter.implicit = true
    Object.defineProperty(filter, 'chainNext', { value: inner })
    const { options } = graph.lookup('over')
    const before = graph.nodes().map((n) => [n.name, n.refs])
    await graph.reopen([entry(graph, 'over', { ...options, 'detect-zeroes': 'on' })])
    await graph.reopen([entry(graph, 'over', { backing: 'inner' })])
    expect(graph.nodes().map((n) => [n.name, n.refs])).toEqual(before)
    await expect(graph.reopen([entry(graph, 'over', { backing: 'b' })])).rejects.toThrow(
      "Cannot change backing link if 'over' has an implicit backing file",
    )
  })

  it('block / reopen / edges / a cycle through a node of several children is refused', async () => {
    const graph = await three()
    await graph.add(probe('many', 'b', 'top'))
    await expect(graph.reopen([entry(graph, 'top', { backing: 'many' })])).rejects.toThrow(
      "Making 'many' a backing child of 'top' would create a cycle",
    )
  })
})
