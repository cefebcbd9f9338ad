import { describe, expect, it } from 'vitest'
import { BlockBackend } from '../../src/block/backend.ts'
import { type DriverDefinition, PERM } from '../../src/block/driver.ts'
import type { BlockGraph } from '../../src/block/graph.ts'
import type { BlockNode } from '../../src/block/node.ts'
import { hostSeed, Random } from '../../src/util/random.ts'
import { guest, HeldDriver, latch, memoryGraph } from '../support/graph.ts'
import { Disturber, type FlippedDisk, KINDS } from './block-disturber.ts'
import {
  CLUSTER,
  GUEST_CLUSTERS,
  GUESTS,
  Load,
  SIZE,
  type Users,
  WORKER_CLUSTERS,
  Workers,
} from './block-load.ts'

const seed = Number(process.env.SEED ?? process.env.STRESS_SEED ?? hostSeed())
const seconds = Number(process.env.STRESS_SECONDS ?? 3)

const options = (name: string) => ({
  driver: 'memory',
  'node-name': name,
  size: SIZE,
  'cluster-size': CLUSTER,
  discard: 'unmap' as const,
})

/** Lets a load run in the coroutines of its graph; answers the end of all of them. */
const run = (graph: BlockGraph, load: Load): Promise<unknown> =>
  Promise.all(Array.from({ length: GUESTS }, (_, i) => graph.ctx.spawn(load.coGuest(i)).join()))

/** A disk whose guests have to wait while it is read-only. */
class Flipped implements FlippedDisk, Users {
  flips = 0
  readonly reader: BlockBackend
  readonly #graph: BlockGraph
  readonly #node: BlockNode
  #writer: BlockBackend | undefined
  #back = latch()

  private constructor(graph: BlockGraph, node: BlockNode, reader: BlockBackend) {
    this.#graph = graph
    this.#node = node
    this.reader = reader
  }

  static async create(graph: BlockGraph): Promise<Flipped> {
    const node = await graph.add(options('flipped'))
    const perm = PERM.CONSISTENT_READ
    const reader = await BlockBackend.create(graph, node, { perm, shared: PERM.ALL })
    const flipped = new Flipped(graph, node, reader)
    flipped.#writer = await guest(graph, node)
    return flipped
  }

  writer(): BlockBackend | Promise<BlockBackend> {
    return this.#writer ?? this.#back.promise.then(() => this.writer())
  }

  async flip(): Promise<void> {
    const { graph, writer, node } = { graph: this.#graph, writer: this.#writer, node: this.#node }
    const refused = await graph.setReadOnly(node, true).catch((error: unknown) => error)
    if (refused === undefined) throw new Error('read-only under a writer')
    this.#writer = undefined
    await this.#rest(writer)
    await graph.setReadOnly(node, true)
    const before = this.#bytes()
    const second = await guest(graph, node).catch((error: unknown) => error)
    if (second instanceof BlockBackend) throw new Error('a writer on a read-only disk')
    for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve))
    if (Buffer.compare(before, this.#bytes()) !== 0) throw new Error('a read-only disk changed')
    await graph.setReadOnly(node, false)
    this.#writer = await guest(graph, node)
    const back = this.#back
    this.#back = latch()
    back.open()
    this.flips++
  }

  async close(): Promise<void> {
    await this.#writer?.close()
    await this.reader.close()
  }

  /** Guests that have the writer at hand have begun their request: its close waits for them. */
  async #rest(writer: BlockBackend | undefined): Promise<void> {
    // A guest asks for the writer one step before it uses it.
    for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setImmediate(resolve))
    await writer?.close()
  }

  #bytes(): Uint8Array {
    const buf = new Uint8Array(SIZE)
    if (this.reader.pread(0, buf) !== undefined) throw new Error('a memory disk answers at once')
    return buf
  }
}

/** Every counter of every node is where it was before anything happened. */
function expectRest(graph: BlockGraph): void {
  for (const node of graph.nodes()) {
    const { gate, tracked } = node
    const counters = [gate.inFlight, gate.quiesceCount, tracked.size, tracked.serialising]
    expect(counters, node.name).toEqual([0, 0, 0, 0])
  }
}

async function wholeDisk(user: BlockBackend): Promise<Uint8Array> {
  const buf = new Uint8Array(SIZE)
  await user.pread(0, buf)
  return buf
}

describe('stress / block', () => {
  it(`stress / block / threads and coroutines of every kind through drains, reopens, filters and replacements (SEED=${seed})`, {
    timeout: seconds * 1000 + 30_000,
  }, async () => {
    const random = new Random(seed)
    const held = new HeldDriver()
    const graph = memoryGraph(held.definition)
    const disk = await graph.add(options('disk'))
    const user = await guest(graph, disk)
    const flipped = await Flipped.create(graph)
    const load = new Load({ reader: user, writer: () => user }, random)
    const other = new Load(flipped, random)
    const guests = [run(graph, load), run(graph, other)]
    const workers = new Workers(disk, user, seed)
    const { inside } = workers
    const disturber = new Disturber({ graph, disk, held, random, inside, flipped })
    const { clock } = graph.ctx
    const end = clock.nowMs() + seconds * 1000
    while (clock.nowMs() < end || Object.keys(disturber.done).length < KINDS.length)
      await disturber.step()
    load.stopped = true
    other.stopped = true
    await Promise.all(guests)
    const reports = await workers.end()
    await disturber.end()

    load.judge(await wholeDisk(user))
    other.judge(await wholeDisk(flipped.reader))
    expect([...load.history.complaints, ...other.history.complaints]).toEqual([])
    for (const [index, { complaints, last }] of reports.entries()) {
      expect(complaints).toEqual([])
      const bytes = await wholeDisk(user)
      const words = new Uint32Array(bytes.buffer)
      for (const [cluster, tags] of last.entries()) {
        const at = ((GUEST_CLUSTERS + index * WORKER_CLUSTERS + cluster) * CLUSTER) / 4
        expect(tags, `cluster ${cluster}`).toContain(words[at])
        expect(words[at + CLUSTER / 4 - 1], `cluster ${cluster}`).toBe(words[at])
      }
    }
    const told = { guests: load.counts, flipped: other.counts, disturber: disturber.done }
    console.log(
      `stress / block: ${JSON.stringify({ ...told, workers: reports.map((r) => r.done) })}`,
    )
    for (const counts of [load.counts, other.counts, ...reports.map((r) => r.done)])
      expect(Math.min(...Object.values(counts)), JSON.stringify(counts)).toBeGreaterThan(0)
    expect(Object.keys(disturber.done).sort()).toEqual([...KINDS].sort())
    expect(flipped.flips).toBe(disturber.done.flip)
    expectRest(graph)
    expect([user.inFlight, user.queued, Atomics.load(inside, 0)]).toEqual([0, 0, 0])
    await user.close()
    await flipped.close()
    expect(graph.nodes().map((node) => [node.name, node.refs])).toEqual([
      ['flipped', 1],
      ['disk', 1],
    ])
    await graph.close()
    await graph.ctx.close()
  })

  it(`stress / block / a disk that now and then forgets a write is caught (SEED=${seed})`, async () => {
    const random = new Random(seed)
    const held = new HeldDriver()
    /** Every hundredth write is acknowledged and lost. */
    let writes = 0
    const liar: DriverDefinition = {
      ...held.definition,
      name: 'liar',
      open: async (node, opts, opener) => {
        const driver = await held.definition.open(node, opts, opener)
        const { pwrite } = driver
        return {
          ...driver,
          pwrite: (offset, buf, flags) =>
            ++writes % 100 === 0 ? undefined : pwrite.call(driver, offset, buf, flags),
        }
      },
    }
    const graph = memoryGraph(liar)
    await graph.add(options('disk'))
    const top = await graph.add({ driver: 'liar', 'node-name': 'top', file: 'disk' })
    const user = await guest(graph, top)
    const load = new Load({ reader: user, writer: () => user }, random)
    const guests = run(graph, load)
    while (writes < 1000) await new Promise((resolve) => setImmediate(resolve))
    load.stopped = true
    await guests
    load.judge(await wholeDisk(user))
    expect(load.history.complaints.length).toBeGreaterThan(0)
    expectRest(graph)
    await user.close()
    await graph.close()
    await graph.ctx.close()
  })
})
