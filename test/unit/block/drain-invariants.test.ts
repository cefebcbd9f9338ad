/** The promises of a drained section, one test each, by the number they are known by. */
import { Worker } from 'node:worker_threads'
import { describe, expect, it } from 'vitest'
import { BlockError } from '../../../src/util/errors.ts'
import { fill, guest, HeldDriver, latch, memoryGraph } from '../../support/graph.ts'
import { counts, memory, Probes, probe, readOne, readThatSwaps, settles } from './probe.ts'

function world(): { graph: ReturnType<typeof memoryGraph>; probes: Probes } {
  const probes = new Probes()
  return { graph: memoryGraph(probes.definition), probes }
}

describe('block / drain / requests', () => {
  it('block / drain / D1 begin returns after the pending request, the driver counts one begin', async () => {
    const { graph, probes } = world()
    const node = await graph.add(probe('n'))
    const user = await guest(graph, node)
    const held = latch()
    probes.of('n').hold = held
    const read = readOne(user)
    const section = graph.drainedBegin(node)
    expect(probes.of('n')).toMatchObject({ begin: 1, end: 0 })
    expect(await settles(section)).toBe(false)
    held.open()
    await section
    expect(node.gate.inFlight).toBe(0)
    expect(await settles(read)).toBe(true)
    graph.drainedEnd(node)
    expect(probes.of('n')).toMatchObject({ begin: 1, end: 1 })
  })

  it('block / drain / D16 a woken status request counts from its wake-up, and a new section waits for it', async () => {
    const { graph, probes } = world()
    const node = await graph.add(probe('n'))
    const user = await guest(graph, node)
    await graph.drainedBegin(node)
    const status = Promise.resolve(user.blockStatus(0, 512))
    const held = latch()
    probes.of('n').hold = held
    graph.drainedEnd(node)
    expect(user.inFlight).toBe(1)
    const next = graph.drainedBegin(node)
    // It went back to the queue: nothing is in flight, so the new section begins.
    expect(await settles(next)).toBe(true)
    expect([user.inFlight, user.queued]).toEqual([0, 1])
    held.open()
    graph.drainedEnd(node)
    expect(await status).toMatchObject({ bytes: 512 })
    expect(user.inFlight).toBe(0)
  })

  it.each(['pread', 'pwrite', 'pwriteZeroes', 'pdiscard', 'flush', 'blockStatus'] as const)(
    'block / drain / D17 a %s that fails at once leaves nothing in flight',
    async (kind) => {
      const { graph, probes } = world()
      const node = await graph.add({ ...probe('n'), discard: 'unmap' })
      const user = await guest(graph, node)
      await fill(user, 1, 0, 512)
      probes.of('n').refuse = new BlockError('EIO', 'at once')
      const requests = {
        pread: () => user.pread(0, new Uint8Array(512)),
        pwrite: () => user.pwrite(0, new Uint8Array(512)),
        pwriteZeroes: () => user.pwriteZeroes(0, 512),
        pdiscard: () => user.pdiscard(0, 512),
        flush: () => user.flush(),
        blockStatus: () => user.blockStatus(0, 512),
      }
      await expect(async () => requests[kind]()).rejects.toThrow('at once')
      expect([node.gate.inFlight, node.tracked.size, user.inFlight]).toEqual([0, 0, 0])
      await graph.withDrained(node, () => undefined)
    },
  )

  it('block / drain / D7 a request that needs two other threads ends, and so does the drain', async () => {
    const echo =
      "const { parentPort } = require('node:worker_threads');" +
      "parentPort.on('message', (m) => parentPort.postMessage(m))"
    const threads = [0, 1].map(() => new Worker(echo, { eval: true }))
    const hop = (thread: Worker): Promise<void> =>
      new Promise((resolve) => {
        thread.once('message', () => resolve())
        thread.postMessage(0)
      })
    const { graph, probes } = world()
    const node = await graph.add(probe('n'))
    const user = await guest(graph, node)
    let hops = 0
    probes.of('n').afterRead = async () => {
      for (const thread of threads) {
        await hop(thread)
        hops++
      }
    }
    const read = readOne(user)
    await graph.drainedBegin(node)
    expect([hops, node.gate.inFlight]).toEqual([2, 0])
    graph.drainedEnd(node)
    await read
    for (const thread of threads) await thread.terminate()
  })
})

describe('block / drain / counters', () => {
  it('block / drain / D2 any nesting of drain and drain-all ends at zero, inner ends release nothing', async () => {
    const { graph } = world()
    await graph.add(memory('base'))
    const node = await graph.add(memory('top', 'base'))
    const base = graph.lookup('base')
    const begins = [
      () => graph.drainedBegin(node),
      () => graph.drainedBegin(base),
      () => graph.drainAllBegin(),
    ]
    const ends = [
      () => graph.drainedEnd(node),
      () => graph.drainedEnd(base),
      () => graph.drainAllEnd(),
    ]
    const orders = [0, 1, 2].flatMap((a) =>
      [0, 1, 2].flatMap((b) => [0, 1, 2].map((c) => [a, b, c])),
    )
    for (const order of orders) {
      for (const kind of order) await begins[kind]?.()
      for (const kind of order) {
        expect(node.gate.quiesceCount).toBeGreaterThan(0)
        ends[kind]?.()
      }
      expect(counts(graph)).toEqual({ base: 0, top: 0 })
    }
  })

  it('block / drain / D3 a drain leaves the children of the node alone, drain-all does not', async () => {
    const { graph } = world()
    await graph.add(memory('base'))
    const node = await graph.add(memory('top', 'base'))
    await graph.withDrained(node, () => expect(counts(graph)).toEqual({ base: 0, top: 1 }))
    await graph.drainAllBegin()
    // Once by itself, once through its child.
    expect(counts(graph)).toEqual({ base: 1, top: 2 })
    graph.drainAllEnd()
  })

  it('block / drain / D4 a drain of a shared child stops both its parents, one of a parent not the other', async () => {
    const { graph } = world()
    const base = await graph.add({ ...memory('base'), 'read-only': true })
    const one = await graph.add(memory('one', 'base'))
    await graph.add(memory('two', 'base'))
    await graph.withDrained(base, () => expect(counts(graph)).toEqual({ base: 1, one: 1, two: 1 }))
    await graph.withDrained(one, () => expect(counts(graph)).toEqual({ base: 0, one: 1, two: 0 }))
  })

  it('block / drain / D5 what a child adds to its parent goes and comes with the edge, whatever is drained', async () => {
    const { graph } = world()
    const child = await graph.add(memory('child'))
    const parent = await graph.add(memory('parent', 'child'))
    for (let n = 0; n < 3; n++) await graph.drainedBegin(parent)
    for (let n = 0; n < 2; n++) await graph.drainedBegin(child)
    expect(counts(graph)).toEqual({ child: 2, parent: 4 })
    const edge = parent.child('backing')
    if (edge !== undefined) graph.detach(edge)
    expect(counts(graph)).toEqual({ child: 2, parent: 3 })
    child.refs++
    await graph.attach(parent, child, 'backing', 'backing')
    expect(counts(graph)).toEqual({ child: 2, parent: 4 })
    for (let n = 0; n < 3; n++) graph.drainedEnd(parent)
    for (let n = 0; n < 2; n++) graph.drainedEnd(child)
    expect(counts(graph)).toEqual({ child: 0, parent: 0 })
  })

  it('block / drain / D6 a node born in drain-all is drained, one deleted ends its share, later ones are free', async () => {
    const { graph, probes } = world()
    await graph.add(probe('a'))
    await graph.drainAllBegin()
    await graph.drainAllBegin()
    const born = await graph.add(probe('b'))
    expect(born.gate.quiesceCount).toBe(2)
    expect(probes.of('b')).toMatchObject({ begin: 1, end: 0 })
    await graph.remove('a')
    graph.drainAllEnd()
    graph.drainAllEnd()
    expect(probes.of('b')).toMatchObject({ begin: 1, end: 1 })
    expect(counts(graph)).toEqual({ b: 0 })
    await fill(await guest(graph, born), 1, 0, 512)
    expect((await graph.add(probe('c'))).gate.quiesceCount).toBe(0)
  })

  it('block / drain / D6 a node that is just opening when drain-all begins is drained once', async () => {
    const opened = latch()
    const probes = new Probes()
    const slow = { ...probes.definition, name: 'slow' }
    const graph = memoryGraph({
      ...slow,
      open: async (node, options, opener) => {
        await opened.promise
        return slow.open(node, options, opener)
      },
    })
    const opening = graph.add({ driver: 'slow', 'node-name': 'n' })
    await graph.drainAllBegin()
    opened.open()
    const node = await opening
    expect(node.gate.quiesceCount).toBe(1)
    expect(probes.of('n')).toMatchObject({ begin: 1, end: 0 })
    graph.drainAllEnd()
    expect(node.gate.quiesceCount).toBe(0)
    expect(probes.of('n')).toMatchObject({ begin: 1, end: 1 })
  })

  it('block / drain / D11 an overlay on a drained base has its count, and both end with the base', async () => {
    const { graph, probes } = world()
    const base = await graph.add(memory('base'))
    await graph.drainedBegin(base)
    await graph.add(probe('top', 'base'))
    expect(counts(graph)).toEqual({ base: 1, top: 1 })
    expect(probes.of('top')).toMatchObject({ begin: 1, end: 0 })
    graph.drainedEnd(base)
    expect(counts(graph)).toEqual({ base: 0, top: 0 })
    expect(probes.of('top')).toMatchObject({ begin: 1, end: 1 })
  })

  it('block / drain / D12 a user that goes from one drained tree to another stays drained until the last end', async () => {
    const { graph } = world()
    const a = await graph.add(memory('a'))
    const b = await graph.add(memory('b'))
    const user = await guest(graph, a)
    await graph.drainedBegin(a)
    await graph.drainedBegin(b)
    await graph.replace(a, b)
    graph.drainedEnd(a)
    const write = fill(user, 1, 0, 512)
    expect(await settles(write)).toBe(false)
    graph.drainedEnd(b)
    await write
    expect(a.graph.ctx).toBe(b.graph.ctx)
  })
})

describe('block / drain / edits', () => {
  it('block / drain / D9 a completion inside the wait may give up the node above the drained one', async () => {
    const { graph, probes } = world()
    const child = await graph.add(memory('child'))
    const top = await graph.add(probe('top', 'child'))
    const user = await guest(graph, top)
    const held = latch()
    probes.of('top').hold = held
    const read = readOne(user).then(() => {
      void user.close()
      top.monitorOwned = false
      graph.unref(top)
    })
    const section = graph.drainedBegin(child)
    held.open()
    await Promise.all([section, read])
    await graph.settled()
    expect(graph.find('top')).toBeUndefined()
    graph.drainedEnd(child)
    expect(counts(graph)).toEqual({ child: 0 })
  })

  it('block / drain / D10 children swapped by a completion during begin count as they should', async () => {
    const { graph, probes } = world()
    const [a, b, c] = [
      await graph.add(memory('a')),
      await graph.add(memory('b')),
      await graph.add(memory('c')),
    ]
    const { held, read } = await readThatSwaps(graph, probes, c)
    await graph.drainedBegin(b)
    await graph.drainedBegin(c)
    const section = graph.drainedBegin(a)
    held.open()
    await Promise.all([section, read])
    expect(counts(graph)).toEqual({ a: 1, b: 1, c: 1, pa: 1, pb: 2 })
    graph.drainedEnd(b)
    expect(counts(graph)).toMatchObject({ b: 0, pb: 2 })
    graph.drainedEnd(c)
    graph.drainedEnd(a)
    expect(counts(graph)).toEqual({ a: 0, b: 0, c: 0, pa: 0, pb: 0 })
  })

  it('block / drain / D10 an edge whose child stops being drained while it is made holds nobody', async () => {
    const { graph, probes } = world()
    const node = await graph.add(memory('node'))
    const parent = await graph.add(probe('parent'))
    const user = await guest(graph, parent)
    const held = latch()
    probes.of('parent').hold = held
    const read = readOne(user)
    await graph.drainedBegin(node)
    node.refs++
    const attached = graph.attach(parent, node, 'child.0', 'data')
    expect(await settles(attached)).toBe(false)
    graph.drainedEnd(node)
    held.open()
    await Promise.all([attached, read])
    expect(counts(graph)).toEqual({ node: 0, parent: 0 })
  })

  it('block / drain / D15 a parent between two drained children is not undrained for a moment', async () => {
    const { graph, probes } = world()
    const from = await graph.add(memory('from'))
    const to = await graph.add(memory('to'))
    await graph.add(probe('parent', 'from'))
    await graph.drainedBegin(from)
    await graph.drainedBegin(to)
    await graph.replace(from, to)
    expect(probes.of('parent')).toMatchObject({ begin: 1, end: 0 })
    graph.drainedEnd(from)
    expect(probes.of('parent')).toMatchObject({ begin: 1, end: 0 })
    graph.drainedEnd(to)
    expect(probes.of('parent')).toMatchObject({ begin: 1, end: 1 })
  })

  it('block / drain / D15 no request reaches a child that is drained when it becomes one', async () => {
    const { graph, probes } = world()
    const from = await graph.add(memory('from'))
    const to = await graph.add(probe('to'))
    const user = await guest(graph, await graph.add(probe('parent', 'from')))
    const held = latch()
    probes.of('parent').hold = held
    const stalled = readOne(user)
    await graph.drainedBegin(to)
    const replaced = graph.replace(from, to)
    const late = readOne(user)
    held.open()
    await Promise.all([replaced, stalled])
    expect(probes.of('to').reads).toBe(0)
    graph.drainedEnd(to)
    await late
    expect(probes.of('to').reads).toBe(1)
  })

  it('block / drain / D18 a node changes sides between read-only and writable only while it is drained', async () => {
    const seen: number[][] = []
    const held = new HeldDriver()
    const graph = memoryGraph({
      ...held.definition,
      open: async (node, options, opener) => ({
        ...(await held.definition.open(node, options, opener)),
        reopenPrepare: () => ({
          commit: () => void seen.push([node.gate.quiesceCount, node.gate.inFlight]),
          abort: () => undefined,
        }),
      }),
    })
    await graph.add(memory('base'))
    const node = await graph.add({ driver: 'held', 'node-name': 'n', file: 'base' })
    await graph.setReadOnly(node, true)
    await graph.setReadOnly(node, false)
    expect(seen).toEqual([
      [1, 0],
      [1, 0],
    ])
  })
})
