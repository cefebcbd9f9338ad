import { describe, expect, it } from 'vitest'
import type { BlockGraph } from '../../../src/block/graph.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { fill, guest, HeldDriver, latch, memoryGraph, patternOf } from '../../support/graph.ts'

const memory = (name: string, backing?: string) => ({
  driver: 'memory',
  'node-name': name,
  size: 65536,
  ...(backing === undefined ? {} : { backing }),
})

async function heldOver(): Promise<{
  held: HeldDriver
  graph: BlockGraph
  node: BlockNode
}> {
  const held = new HeldDriver()
  const graph = memoryGraph(held.definition)
  await graph.add(memory('base'))
  const node = await graph.add({ driver: 'held', 'node-name': 'h', file: 'base' })
  return { held, graph, node }
}

const counts = (graph: BlockGraph) =>
  Object.fromEntries(graph.nodes().map((n) => [n.name, n.gate.quiesceCount]))

describe('block / drain / nesting', () => {
  it('block / drain / nesting / counters return to zero whatever was nested in what', async () => {
    const { graph, node } = await heldOver()
    const base = graph.lookup('base')
    await graph.drainedBegin(node)
    await graph.drainAllBegin()
    await graph.drainedBegin(base)
    await graph.drainedBegin(node)
    graph.drainedEnd(base)
    graph.drainedEnd(node)
    graph.drainAllEnd()
    expect(node.gate.quiesceCount).toBe(1)
    graph.drainedEnd(node)
    expect(counts(graph)).toEqual({ base: 0, h: 0 })
  })

  it('block / drain / nesting / an inner end does not release the outer section', async () => {
    const { graph, node } = await heldOver()
    const user = await guest(graph, node)
    await graph.drainedBegin(node)
    await graph.withDrained(node, () => undefined)
    const write = fill(user, 1, 0, 512)
    expect(user.queued).toBe(1)
    graph.drainedEnd(node)
    await write
  })

  it('block / drain / nesting / the driver hears of the first begin and the last end only', async () => {
    const { graph, node, held } = await heldOver()
    await graph.drainedBegin(node)
    await graph.drainedBegin(node)
    graph.drainedEnd(node)
    expect(held.counts).toMatchObject({ begin: 1, end: 0 })
    graph.drainedEnd(node)
    expect(held.counts).toMatchObject({ begin: 1, end: 1 })
  })
})

describe('block / drain / reach', () => {
  it('block / drain / reach / a drain stops what is above, not what is below', async () => {
    const { graph, node } = await heldOver()
    await graph.drainedBegin(node)
    expect(counts(graph)).toEqual({ base: 0, h: 1 })
    graph.drainedEnd(node)
    await graph.drainedBegin(graph.lookup('base'))
    expect(counts(graph)).toEqual({ base: 1, h: 1 })
    graph.drainedEnd(graph.lookup('base'))
    expect(counts(graph)).toEqual({ base: 0, h: 0 })
  })

  it('block / drain / reach / a section below waits for a request that is still above', async () => {
    const { graph, node, held } = await heldOver()
    const user = await guest(graph, node)
    held.hold = latch()
    const write = fill(user, 1, 0, 512)
    let drained = false
    const section = graph.drainedBegin(graph.lookup('base')).then(() => {
      drained = true
    })
    await Promise.resolve()
    expect(drained).toBe(false)
    held.hold.open()
    await Promise.all([write, section])
    graph.drainedEnd(graph.lookup('base'))
  })

  it('block / drain / reach / two parents of one node are both stopped, each once', async () => {
    const graph = memoryGraph()
    const base = await graph.add({ ...memory('base'), 'read-only': true })
    await graph.add(memory('one', 'base'))
    await graph.add(memory('two', 'base'))
    await graph.drainedBegin(base)
    expect(counts(graph)).toEqual({ base: 1, one: 1, two: 1 })
    graph.drainedEnd(base)
    expect(counts(graph)).toEqual({ base: 0, one: 0, two: 0 })
  })
})

describe('block / drain / graph changes', () => {
  it('block / drain / graph changes / an overlay put on a drained base is drained until its end', async () => {
    const graph = memoryGraph()
    const base = await graph.add(memory('base'))
    await graph.drainedBegin(base)
    await graph.add(memory('top', 'base'))
    expect(counts(graph)).toEqual({ base: 1, top: 1 })
    graph.drainedEnd(base)
    expect(counts(graph)).toEqual({ base: 0, top: 0 })
  })

  it('block / drain / graph changes / a child cut off inside a section lets its parent go on', async () => {
    const graph = memoryGraph()
    const base = await graph.add(memory('base'))
    const top = await graph.add(memory('top', 'base'))
    await graph.drainedBegin(base)
    const edge = top.children.get('backing')
    if (edge !== undefined) graph.detach(edge)
    expect(counts(graph)).toEqual({ base: 1, top: 0 })
    graph.drainedEnd(base)
    expect(counts(graph)).toEqual({ base: 0, top: 0 })
  })

  it.each([
    [false, false],
    [true, false],
    [false, true],
    [true, true],
  ])(
    'block / drain / graph changes / replacing a child: old drained %s, new drained %s',
    async (oldDrained, newDrained) => {
      const graph = memoryGraph()
      const from = await graph.add(memory('from'))
      const to = await graph.add(memory('to'))
      const user = await guest(graph, from)
      if (oldDrained) await graph.drainedBegin(from)
      if (newDrained) await graph.drainedBegin(to)
      await graph.replace(from, to)
      expect(user.node.name).toBe('to')
      expect(user.quiesced).toBe(newDrained)
      if (newDrained) graph.drainedEnd(to)
      if (oldDrained) graph.drainedEnd(from)
      expect(user.quiesced).toBe(false)
      await fill(user, 3, 0, 512)
      expect(await patternOf(await guest(graph, to), 0, 512)).toBe(3)
      expect(counts(graph)).toEqual({ from: 0, to: 0 })
    },
  )

  it('block / drain / graph changes / the drainer survives the end of the node it drains', async () => {
    const { graph, node, held } = await heldOver()
    const user = await guest(graph, node)
    held.hold = latch()
    const write = Promise.resolve(user.pwrite(0, new Uint8Array(512)))
    // The completion gives up everything above the drained node and the node itself.
    const after = write.then(async () => {
      void user.close()
      node.monitorOwned = false
      graph.unref(node)
    })
    const section = graph.drainedBegin(node)
    held.hold.open()
    await section
    await after
    graph.drainedEnd(node)
    await graph.settled()
    expect(graph.find('h')).toBeUndefined()
    expect(counts(graph)).toEqual({ base: 0 })
  })
})

describe('block / drain / queue', () => {
  it('block / drain / queue / held requests run in their order and count from their wake-up', async () => {
    const { graph, node, held } = await heldOver()
    const user = await guest(graph, node)
    await graph.drainedBegin(node)
    const order: number[] = []
    const writes = [1, 2, 3].map((n) => fill(user, n, 0, 512).then(() => order.push(n)))
    held.hold = latch()
    graph.drainedEnd(node)
    expect(user.inFlight).toBe(3)
    let drained = false
    const next = graph.drainedBegin(node).then(() => {
      drained = true
    })
    await Promise.resolve()
    expect(drained).toBe(false)
    held.hold.open()
    await next
    graph.drainedEnd(node)
    await Promise.all(writes)
    expect(order).toEqual([1, 2, 3])
    expect(user.inFlight).toBe(0)
  })

  it('block / drain / queue / a woken request that meets a new section waits again', async () => {
    const { graph, node, held } = await heldOver()
    const user = await guest(graph, node)
    await graph.drainedBegin(node)
    const write = fill(user, 1, 0, 512)
    graph.drainedEnd(node)
    await graph.drainedBegin(node)
    expect(held.counts.write).toBe(0)
    expect(user.queued).toBe(1)
    graph.drainedEnd(node)
    await write
    expect(held.counts.write).toBe(1)
  })

  it('block / drain / queue / closing a backend fails what it holds back', async () => {
    const { graph, node } = await heldOver()
    const user = await guest(graph, node)
    await graph.drainedBegin(node)
    const write = fill(user, 1, 0, 512)
    const closing = user.close()
    await expect(write).rejects.toMatchObject({ code: 'ENOMEDIUM' })
    graph.drainedEnd(node)
    await closing
  })
})
