/** The drain scenarios that need the library: one behaviour a test, by their number. */
import { Worker } from 'node:worker_threads'
import { describe, expect, it } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import type { BlockGraph } from '../../../src/block/graph.ts'
import type { Coroutine } from '../../../src/coroutine/coroutine.ts'
import { fill, guest, latch, memoryGraph } from '../../support/graph.ts'
import { TestDisk } from '../../support/test-disk.ts'
import {
  counts,
  memory,
  Probes,
  probe,
  readOne,
  readThatSwaps,
  settles,
  stepJob,
  turns,
} from './probe.ts'

function world(): { graph: BlockGraph; probes: Probes } {
  const probes = new Probes()
  return { graph: memoryGraph(probes.definition), probes }
}

/** Runs a step as a coroutine of the graph's context and waits for it. */
async function inCoroutine(graph: BlockGraph, step: () => Promise<void>): Promise<void> {
  async function* body(): Coroutine<void> {
    yield
    await step()
  }
  await graph.ctx.spawn(body()).join()
}

describe('scenario / drain / callbacks', () => {
  it.each(['main', 'coroutine'] as const)(
    'scenario / drain / D01 from %s: the node hears of its drain, the backing image only of drain-all, reads have ended',
    async (from) => {
      const { graph, probes } = world()
      await graph.add(probe('backing'))
      const node = await graph.add(probe('node', 'backing'))
      const user = await guest(graph, node)
      const seen: number[][] = []
      const note = (): void => {
        const [top, below] = [probes.of('node'), probes.of('backing')]
        seen.push([top.begin - top.end, below.begin - below.end, node.gate.inFlight])
      }
      const act = async (): Promise<void> => {
        const held = latch()
        probes.of('node').hold = held
        const read = readOne(user)
        const section = graph.withDrained(node, note)
        held.open()
        await Promise.all([section, read])
        probes.of('node').hold = undefined
        await graph.drainAllBegin()
        note()
        graph.drainAllEnd()
        note()
      }
      if (from === 'main') await act()
      else await inCoroutine(graph, act)
      expect(seen).toEqual([
        [1, 0, 0],
        [1, 1, 0],
        [0, 0, 0],
      ])
    },
  )

  it('scenario / drain / D02 the counters of node and backing image in a drain and in drain-all', async () => {
    const { graph } = world()
    await graph.add(memory('backing'))
    const node = await graph.add(memory('node', 'backing'))
    await guest(graph, node)
    await graph.withDrained(node, () => expect(counts(graph)).toEqual({ backing: 0, node: 1 }))
    await graph.drainAllBegin()
    expect(counts(graph)).toEqual({ backing: 1, node: 2 })
    graph.drainAllEnd()
    expect(counts(graph)).toEqual({ backing: 0, node: 0 })
  })

  it('scenario / drain / D04 a node made and one deleted inside drain-all', async () => {
    const { graph } = world()
    const a = await guest(graph, await graph.add(memory('a')))
    await graph.drainAllBegin()
    const b = await graph.add(memory('b'))
    const user = await guest(graph, b)
    const write = fill(user, 1, 0, 512)
    expect([b.gate.quiesceCount, user.queued]).toEqual([1, 1])
    await a.close()
    await graph.remove('a')
    graph.drainAllEnd()
    await write
    expect(counts(graph)).toEqual({ b: 0 })
  })

  it('scenario / drain / D05 a drain from a coroutine waits for a read that goes through two threads, a flush is queued', async () => {
    const code =
      "const { parentPort: p } = require('node:worker_threads'); p.on('message', (m) => p.postMessage(m))"
    const threads = [0, 1].map(() => new Worker(code, { eval: true }))
    const { graph, probes } = world()
    const node = await graph.add(probe('n'))
    const user = await guest(graph, node)
    await fill(user, 1, 0, 512)
    let hops = 0
    probes.of('n').afterRead = async () => {
      for (const thread of threads) {
        await new Promise<void>((resolve) => {
          thread.once('message', () => resolve())
          thread.postMessage(0)
        })
        hops++
      }
    }
    const read = readOne(user)
    const flush = Promise.resolve(user.flush())
    await inCoroutine(graph, async () => {
      await graph.drainedBegin(node)
      expect([hops, node.gate.inFlight, user.inFlight]).toEqual([2, 0, 0])
      graph.drainedEnd(node)
    })
    await Promise.all([read, flush])
    for (const thread of threads) await thread.terminate()
  })

  it('scenario / drain / D06 a job on a node is paused by drains of it, its backing image and its target, twice by drain-all', async () => {
    const { graph } = world()
    const backing = await graph.add(memory('backing'))
    const src = await graph.add(memory('src', 'backing'))
    await graph.add(memory('overlay', 'src'))
    const target = await graph.add(memory('target'))
    const { job, finish } = await stepJob(graph, [src, target])
    for (const node of [src, backing, target])
      await graph.withDrained(node, () => expect([job.pauseCount, job.busy]).toEqual([1, false]))
    await graph.drainAllBegin()
    expect([job.pauseCount, job.busy]).toEqual([2, false])
    graph.drainAllEnd()
    await turns()
    expect([job.pauseCount, job.busy]).toEqual([0, true])
    finish()
    await job.done
    expect(job.error).toBeUndefined()
  })
})

describe('scenario / drain / changes', () => {
  it('scenario / drain / D09 the reader of a child gives up its parent inside the drain of that child', async () => {
    const { graph, probes } = world()
    for (const name of ['null', 'wait', 'null2']) await graph.add(probe(name))
    const top = await graph.open({ ...probe('top', 'null', 'wait', 'null2'), via: 1 })
    const user = await guest(graph, top)
    const held = latch()
    probes.of('wait').hold = held
    const read = inCoroutine(graph, async () => {
      await readOne(user)
      void user.close()
      graph.unref(top)
    })
    await turns()
    const wait = graph.lookup('wait')
    const section = graph.drainedBegin(wait)
    held.open()
    await Promise.all([section, read])
    await graph.settled()
    expect(graph.find('top')).toBeUndefined()
    graph.drainedEnd(wait)
    expect(counts(graph)).toEqual({ null: 0, wait: 0, null2: 0 })
  })

  it('scenario / drain / D11 a completion swaps a child of the drained node, one poll at the end finds it done', async () => {
    const { graph, probes } = world()
    const [, b, c] = [
      await graph.add(memory('a')),
      await graph.add(memory('b')),
      await graph.add(memory('c')),
    ]
    const { pb, held, read } = await readThatSwaps(graph, probes, c)
    const all = graph.drainAllBegin()
    held.open()
    await Promise.all([all, read])
    expect(graph.nodes().map((n) => [n.name, n.refs])).toEqual([
      ['pb', 1],
      ['pa', 2],
      ['c', 2],
      ['b', 1],
      ['a', 3],
    ])
    expect([...pb.children.values()].map((e) => e.node.name)).toEqual(['a', 'c'])
    // By itself, and through each child.
    expect(counts(graph)).toEqual({ a: 1, b: 1, c: 1, pa: 2, pb: 3 })
    graph.drainAllEnd()
    expect(counts(graph)).toEqual({ a: 0, b: 0, c: 0, pa: 0, pb: 0 })
    expect(b.parents.size).toBe(0)
  })

  it('scenario / drain / D13 an overlay appended to a drained node under its user', async () => {
    const { graph, probes } = world()
    const base = await graph.add(memory('base'))
    const user = await guest(graph, base)
    await graph.drainedBegin(base)
    const top = await graph.add(probe('top', 'base'))
    await graph.replace(base, top)
    expect([user.node, top.gate.inFlight, user.quiesced]).toEqual([top, 0, true])
    expect(counts(graph)).toEqual({ base: 1, top: 1 })
    graph.drainedEnd(base)
    expect(counts(graph)).toEqual({ base: 0, top: 0 })
    expect([probes.of('top').begin, probes.of('top').end]).toEqual([1, 1])
  })

  it('scenario / drain / D15 a job that was told to finish ends only after the drain, and cuts links that were walked', async () => {
    const { graph } = world()
    const child = await graph.add(memory('child'))
    const parents = [0, 1, 2].map((n) => graph.add(probe(`p${n}`, 'child')))
    const [p0, , p2] = await Promise.all(parents)
    const commit = async (): Promise<void> => {
      for (const parent of [p2, p0]) {
        const edge = parent?.child('child.0')
        if (parent !== undefined && edge !== undefined)
          await graph.withDrained(parent, () => graph.detach(edge))
      }
    }
    const { job, finish } = await stepJob(graph, [p2 ?? child], { commit })
    await graph.drainedBegin(child)
    finish()
    await turns()
    expect(job.completed).toBe(false)
    graph.drainedEnd(child)
    await job.done
    expect([...child.parents].map((e) => e.owner.ownerDescription)).toEqual(["node 'p1'"])
    expect(counts(graph)).toEqual({ child: 0, p0: 0, p1: 0, p2: 0 })
  })

  it('scenario / drain / D17 replacing an undrained child drains the parent for it; a stalled read ends at the old child', async () => {
    const { graph, probes } = world()
    const from = await graph.add(probe('old'))
    const to = await graph.add(probe('new'))
    const user = await guest(graph, await graph.add(probe('parent', 'old')))
    const held = latch()
    probes.of('parent').hold = held
    const read = readOne(user)
    const replaced = graph.replace(from, to)
    expect(probes.of('parent')).toMatchObject({ begin: 1, end: 0 })
    held.open()
    await Promise.all([read, replaced])
    expect([probes.of('old').reads, probes.of('new').reads]).toEqual([1, 0])
    expect(probes.of('parent')).toMatchObject({ begin: 1, end: 1 })
    await readOne(user)
    expect(probes.of('new').reads).toBe(1)
  })

  it('scenario / drain / D20 between two drained children the parent is never open, and reads wait for the new one', async () => {
    const { graph, probes } = world()
    const from = await graph.add(probe('old'))
    const to = await graph.add(probe('new'))
    const user = await guest(graph, await graph.add(probe('parent', 'old')))
    const held = latch()
    probes.of('parent').hold = held
    const stalled = readOne(user)
    const both = Promise.all([graph.drainedBegin(from), graph.drainedBegin(to)])
    held.open()
    await Promise.all([both, stalled])
    const late = readOne(user)
    await graph.replace(from, to)
    graph.drainedEnd(from)
    expect(await settles(late)).toBe(false)
    expect(probes.of('parent')).toMatchObject({ begin: 1, end: 0 })
    expect(probes.of('new').reads).toBe(0)
    graph.drainedEnd(to)
    await late
    expect(probes.of('new').reads).toBe(1)
  })

  it('scenario / drain / D21 a user without a node: its flush has failed before the drain returns', async () => {
    const disk = new TestDisk(4096)
    const graph = memoryGraph(disk.definition)
    const node = await graph.add({ driver: 'test', 'node-name': 't' })
    const user = await guest(graph, node)
    await graph.drainedBegin(node)
    const order: string[] = []
    const flush = Promise.resolve(user.flush()).catch((error: unknown) => {
      order.push(error instanceof Error && 'code' in error ? String(error.code) : 'no error')
    })
    const closed = user.close()
    await flush
    graph.drainedEnd(node)
    await closed
    await graph.drainAllBegin()
    order.push('drained')
    graph.drainAllEnd()
    expect(order).toEqual(['ENOMEDIUM', 'drained'])
    expect(() => user.flush()).toThrow(expect.objectContaining({ code: 'ENOMEDIUM' }))
    expect(user).toBeInstanceOf(BlockBackend)
  })
})
