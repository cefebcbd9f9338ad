/** What the graph promises of edges, permissions, blockers and lives, one rule a test. */
import { describe, expect, it } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import type { BlockGraph } from '../../../src/block/graph.ts'
import { chainContains, isBelow } from '../../../src/block/replace.ts'
import { makeThrottleDriver, ThrottleGroups } from '../../../src/drivers/throttle.ts'
import { fill, guest, HeldDriver, latch, memoryGraph } from '../../support/graph.ts'
import { TestDisk } from '../../support/test-disk.ts'
import { counts, memory, Probes, probe, SIZE, settles, stepJob } from './probe.ts'

function world(): { graph: BlockGraph; probes: Probes } {
  const probes = new Probes()
  return { graph: memoryGraph(probes.definition, new HeldDriver().definition), probes }
}

const refs = (graph: BlockGraph): Record<string, number> =>
  Object.fromEntries(graph.nodes().map((n) => [n.name, n.refs]))

const edges = (graph: BlockGraph): string[] =>
  graph
    .nodes()
    .flatMap((n) =>
      [...n.parents].map(
        (e) => `${e.owner.ownerDescription}.${e.name}>${n.name} ${e.perm}/${e.shared}`,
      ),
    )
    .sort()

describe('block / graph / changes', () => {
  it('block / graph / changes / an edge moves, goes or is made only while its owner is drained', async () => {
    const { graph } = world()
    const base = await graph.add(memory('base'))
    const other = await graph.add(memory('other'))
    const top = await graph.add(memory('top', 'base'))
    const edge = top.child('backing')
    if (edge === undefined) throw new Error('no edge')
    const before = edges(graph)
    expect(() => graph.moveEdgeNow(edge, other)).toThrow('drained')
    expect(() => graph.detach(edge)).toThrow('drained')
    expect(() => graph.linkNow(other, base, 'backing', 'backing')).toThrow('drained')
    expect(edges(graph)).toEqual(before)
    await graph.withDrained(top, () => graph.detach(edge))
    expect(top.child('backing')).toBeUndefined()
  })

  it('block / graph / changes / a user cannot be cut off its node while it runs', async () => {
    const { graph } = world()
    const user = await guest(graph, await graph.add(memory('a')))
    expect(() => graph.detach(user.root)).toThrow('drained')
  })

  it('block / graph / changes / a graph cannot go to another thread', async () => {
    const { graph } = world()
    const node = await graph.add(memory('a'))
    expect(() => structuredClone(graph)).toThrow('could not be cloned')
    expect(() => structuredClone(node)).toThrow('could not be cloned')
  })

  it('block / graph / changes / an attach that fails drops its reference', async () => {
    const { graph } = world()
    const node = await graph.add({ ...memory('a'), 'read-only': true })
    await expect(guest(graph, node)).rejects.toThrow('Block node is read-only')
    expect(refs(graph)).toEqual({ a: 1 })
    expect(node.parents.size).toBe(0)
  })

  it('block / graph / changes / a filter put over a drained node still limits after the end', async () => {
    const base = memoryGraph()
    const groups = new ThrottleGroups(base.ctx)
    const graph = memoryGraph(makeThrottleDriver(groups))
    const group = groups.add('g', { 'iops-total': 1 })
    const node = await graph.add(memory('a'))
    await graph.drainedBegin(node)
    const filter = await graph.add({
      driver: 'throttle',
      'node-name': 't',
      file: 'a',
      'throttle-group': 'g',
    })
    graph.drainedEnd(node)
    const user = await guest(graph, filter)
    const writes = [1, 2, 3].map((n) => fill(user, n, 0, 512))
    expect(group.waiting).toBeGreaterThan(0)
    await graph.drainedBegin(filter)
    await Promise.all(writes)
    expect(group.waiting).toBe(0)
    graph.drainedEnd(filter)
    await user.close()
    await base.ctx.close()
  })
})

describe('block / graph / replace', () => {
  it('block / graph / replace / a frozen edge stops all of them', async () => {
    const { graph } = world()
    const from = await graph.add(memory('from'))
    const to = await graph.add(memory('to'))
    await graph.add(probe('one', 'from'))
    const two = await graph.add(probe('two', 'from'))
    const edge = two.child('child.0')
    if (edge !== undefined) edge.frozen = true
    const before = [edges(graph), refs(graph)]
    await expect(graph.replace(from, to)).rejects.toThrow("Cannot change 'child.0' link to 'from'")
    expect([edges(graph), refs(graph)]).toEqual(before)
    expect(counts(graph)).toEqual({ from: 0, to: 0, one: 0, two: 0 })
  })

  it('block / graph / replace / job edges stay, and so do those of nodes that the new one stands on', async () => {
    const { graph } = world()
    const base = await graph.add(memory('base'))
    const user = await guest(graph, base)
    const { job, finish } = await stepJob(graph, [base])
    const filter = await graph.add({ driver: 'held', 'node-name': 'f', file: 'base' })
    await graph.replace(base, filter)
    expect(user.node).toBe(filter)
    expect(filter.child('file')?.node).toBe(base)
    expect([...base.parents].map((e) => e.role).sort()).toEqual(['filtered', 'job'])
    finish()
    await job.done
  })

  it('block / graph / replace / one that the permissions forbid changes nothing', async () => {
    const { graph } = world()
    const from = await graph.add(memory('from'))
    const to = await graph.add(memory('to'))
    await guest(graph, from)
    await BlockBackend.create(graph, to, {
      perm: PERM.CONSISTENT_READ,
      shared: PERM.CONSISTENT_READ | PERM.WRITE_UNCHANGED,
    })
    const before = [edges(graph), refs(graph)]
    await expect(graph.replace(from, to)).rejects.toMatchObject({ code: 'EPERM' })
    expect([edges(graph), refs(graph)]).toEqual(before)
    expect(counts(graph)).toEqual({ from: 0, to: 0 })
  })

  it('block / graph / replace / a filter that cannot be put in leaves nothing behind', async () => {
    const { graph } = world()
    const base = await graph.add(memory('base'))
    await guest(graph, base)
    await graph.add({ ...probe('other', 'base') })
    const frozen = graph.lookup('other').child('child.0')
    if (frozen !== undefined) frozen.frozen = true
    const before = [edges(graph), refs(graph)]
    await expect(graph.insertFilter({ driver: 'held', file: 'base' }, base)).rejects.toThrow('link')
    await graph.settled()
    expect([edges(graph), refs(graph)]).toEqual(before)
  })
})

describe('block / permissions / rules', () => {
  it('block / permissions / rules / a child with force-share lets others do everything', async () => {
    const { graph } = world()
    await graph.add({ ...memory('base'), 'read-only': true, 'force-share': true })
    const top = await graph.add(memory('top', 'base'))
    expect(top.child('backing')?.shared).toBe(PERM.ALL)
  })

  it('block / permissions / rules / a disk with half a last block takes no writer that cannot grow it', async () => {
    const disk = new TestDisk(5120, { requestAlignment: 4096 })
    const graph = memoryGraph(disk.definition)
    const node = await graph.add({ driver: 'test', 'node-name': 't' })
    await expect(guest(graph, node)).rejects.toThrow(
      "Cannot get 'write' permission without 'resize': Image size is not a multiple of request " +
        'alignment',
    )
    const perm = PERM.WRITE | PERM.RESIZE
    const user = await BlockBackend.create(graph, node, { perm, shared: PERM.ALL })
    expect(user.length()).toBe(5120)
  })

  it('block / permissions / rules / loosening never fails, the tighter state stays', async () => {
    const { graph } = world()
    const base = await graph.add(memory('base'))
    const top = await graph.add(memory('top', 'base'))
    const user = await guest(graph, top)
    await guest(graph, top)
    const edge = top.child('backing')
    const before = edge?.perm
    // Somebody who does not share what the overlay takes came beside the rules.
    await BlockBackend.create(graph, base, { perm: 0, shared: PERM.ALL })
    const other = [...base.parents].find((e) => e.role === 'root')
    if (other !== undefined) other.shared = PERM.WRITE_UNCHANGED
    await user.close()
    expect(edge?.perm).toBe(before)
  })

  it('block / permissions / rules / in a diamond the lower node sees what the middle becomes', async () => {
    const { graph } = world()
    await graph.add(memory('c'))
    await graph.add(probe('b', 'c'))
    const a = await graph.add(probe('a', 'b', 'c'))
    const user = await guest(graph, a)
    await fill(user, 1, 0, 512)
    expect([...graph.lookup('c').parents].every((e) => (e.perm & PERM.WRITE) !== 0)).toBe(true)
    await user.close()
    expect([...graph.lookup('c').parents].every((e) => (e.perm & PERM.WRITE) === 0)).toBe(true)
  })
})

describe('block / blockers', () => {
  it('block / blockers / the newest reason is told, and only its owner takes it away', async () => {
    const { graph } = world()
    const { blockers } = await graph.add(memory('a'))
    const [one, two] = [{ message: 'same' }, { message: 'same' }]
    const three = { message: 'newest' }
    for (const reason of [one, two, three]) blockers.blockAll(reason, ['dataplane'])
    expect(() => blockers.check('resize', 'a')).toThrow("Node 'a' is busy: newest")
    expect(blockers.reason('dataplane')).toBeUndefined()
    blockers.unblockAll(three)
    blockers.unblockAll({ message: 'same' })
    blockers.unblockAll(one)
    expect(blockers.reason('resize')).toBe(two)
    blockers.unblockAll(two)
    expect(blockers.empty).toBe(true)
  })

  it('block / blockers / a backing image can be committed to, streamed and backed up, nothing else', async () => {
    const { graph } = world()
    const base = await graph.add(memory('base'))
    await graph.add(memory('top', 'base'))
    const free = (op: 'commit-target' | 'stream' | 'backup-source' | 'backup-target' | 'resize') =>
      base.blockers.reason(op) === undefined
    expect(
      (['commit-target', 'stream', 'backup-source', 'backup-target'] as const).every(free),
    ).toBe(true)
    expect(() => base.blockers.check('resize', 'base')).toThrow(
      "Node 'base' is busy: node is used as backing hd of 'top'",
    )
    await graph.remove('top')
    expect(base.blockers.empty).toBe(true)
  })
})

describe('block / graph / lives', () => {
  it('block / graph / lives / predicates tell who uses a node and what lies below it', async () => {
    const { graph } = world()
    const base = await graph.add(memory('base'))
    const top = await graph.add(memory('top', 'base'))
    expect([base.isRootNode, top.isRootNode, top.hasBackend]).toEqual([false, true, false])
    const user = await guest(graph, top)
    expect([top.isRootNode, top.hasBackend]).toEqual([true, true])
    const { job, finish } = await stepJob(graph, [top])
    expect(top.isRootNode).toBe(false)
    finish()
    await job.done
    expect([chainContains(top, base), chainContains(base, top)]).toEqual([true, false])
    expect([isBelow(top, base), isBelow(base, top), isBelow(base, base)]).toEqual([
      true,
      false,
      true,
    ])
    await user.close()
  })

  it('block / graph / lives / a name is free before its node has closed', async () => {
    const closing = latch()
    const { definition } = new TestDisk(SIZE)
    const graph = memoryGraph({
      ...definition,
      open: async (node, options, opener) => ({
        ...(await definition.open(node, options, opener)),
        length: () => SIZE,
        limits: { ...(await definition.open(node, options, opener)).limits },
        close: () => closing.promise,
      }),
    })
    await graph.add({ driver: 'test', 'node-name': 't' })
    const removed = graph.remove('t')
    expect(graph.find('t')).toBeUndefined()
    expect(await settles(removed)).toBe(false)
    await graph.add(memory('t'))
    closing.open()
    await removed
  })

  it('block / graph / lives / a driver that closes may still turn another node read-only', async () => {
    const { definition } = new Probes()
    const graph = memoryGraph({
      ...definition,
      open: async (node, options, opener) => ({
        ...(await definition.open(node, options, opener)),
        close: () => graph.setReadOnly(graph.lookup('other'), true),
      }),
    })
    const other = await graph.add(memory('other'))
    await graph.add(probe('closing'))
    await graph.remove('closing')
    expect(other.readOnly).toBe(true)
  })

  it('block / graph / lives / inline children go with the last who uses them', async () => {
    const { graph } = world()
    await graph.add({
      ...memory('top'),
      backing: { driver: 'memory', 'node-name': 'inner', size: SIZE },
    })
    const user = await guest(graph, graph.lookup('inner'))
      .then(() => undefined)
      .catch((error: unknown) => error)
    expect(user).toMatchObject({ code: 'EPERM' })
    await graph.remove('top')
    expect(graph.nodes()).toEqual([])
  })

  it('block / graph / lives / names of devices and nodes are one space, and lookups say what they missed', async () => {
    const { graph } = world()
    graph.reservedNames.add('dev')
    await expect(graph.add(memory('dev'))).rejects.toThrow(
      'node-name=dev is conflicting with a device id',
    )
    expect(() => graph.lookup('x', 'y')).toThrow("Cannot find device='x' nor node-name='y'")
    expect(() => graph.lookup(undefined, undefined)).toThrow(
      "Cannot find device='' nor node-name=''",
    )
    await graph.add(memory('ok-1.a_b'))
    expect((await graph.open({ driver: 'memory', size: SIZE })).name).toMatch(/^#block\d+$/)
  })
})
