import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { describe, expect, it } from 'vitest'
import type { BlockBackend } from '../../src/block/backend.ts'
import type { BlockGraph } from '../../src/block/graph.ts'
import type { BlockNode } from '../../src/block/node.ts'
import type { Coroutine } from '../../src/coroutine/coroutine.ts'
import { type MemoryDescription, MemoryStore } from '../../src/drivers/memory-store.ts'
import { hostSeed, Random } from '../../src/util/random.ts'
import { guest, HeldDriver, latch, memoryGraph } from '../support/graph.ts'

const SECTOR = 512
const SECTORS = 512
const WRITERS = 6
const CLUSTER = 4096
const SIZE = SECTORS * SECTOR + 64 * CLUSTER
/** Where the worker threads write: behind what the coroutines use. */
const WORKER_FROM = (SECTORS * SECTOR) / CLUSTER
const seed = Number(process.env.STRESS_SEED ?? hostSeed())
const seconds = Number(process.env.STRESS_SECONDS ?? 3)

/** What each sector may show: the tags written since the last one that was acknowledged. */
class SectorModel {
  readonly #allowed: number[][] = Array.from({ length: SECTORS }, () => [0])
  /** The reads under way, a list each of what they may still find. */
  readonly #readers: Set<number[]>[] = Array.from({ length: SECTORS }, () => new Set())
  #tag = 1

  /** A write begins; a zero write shows as tag 0. Answers what it shows. */
  begin(sector: number, zero: boolean): number {
    const tag = zero ? 0 : this.#tag++
    this.#allowed[sector]?.push(tag)
    for (const reader of this.#readers[sector] ?? []) reader.push(tag)
    return tag
  }

  /** A read begins; the list grows with the writes that begin while it lasts. */
  beginRead(sector: number): number[] {
    const reader = [...this.allowed(sector)]
    this.#readers[sector]?.add(reader)
    return reader
  }

  endRead(sector: number, reader: number[]): void {
    this.#readers[sector]?.delete(reader)
  }

  /** From now on nothing older than `tag` may show. */
  acknowledge(sector: number, tag: number): void {
    const list = this.#allowed[sector] ?? []
    list.splice(0, list.lastIndexOf(tag))
  }

  allowed(sector: number): readonly number[] {
    return this.#allowed[sector] ?? []
  }
}

/** The one tag in a sector; fails on a torn one. */
function tagOf(buf: Uint8Array): number {
  const words = new Uint32Array(buf.buffer, buf.byteOffset, buf.length / 4)
  const tag = words[0] ?? 0
  if (!words.every((w) => w === tag)) throw new Error(`torn sector, tag ${tag}`)
  return tag
}

class Load {
  readonly model = new SectorModel()
  readonly complaints: string[] = []
  stopped = false
  requests = 0
  readonly #user: BlockBackend
  readonly #random: Random

  constructor(user: BlockBackend, random: Random) {
    this.#user = user
    this.#random = random
  }

  /** One guest: writes its own sectors, reads anybody's. */
  async *coGuest(index: number): Coroutine<void> {
    while (!this.stopped) {
      // A sector has one writer, so that what it may show follows from that writer's order alone.
      const own = this.#random.int(Math.floor(SECTORS / WRITERS)) * WRITERS + index
      const any = this.#random.int(SECTORS)
      const choice = this.#random.int(10)
      if (choice < 5) yield* this.#coWrite(own)
      else if (choice < 9) yield* this.#coRead(any)
      else yield* this.#user.coFlush()
      this.requests++
      yield
    }
  }

  async *#coWrite(sector: number): Coroutine<void> {
    const zero = this.#random.int(8) === 0
    const tag = this.model.begin(sector, zero)
    const buf = new Uint8Array(SECTOR)
    new Uint32Array(buf.buffer).fill(tag)
    if (zero) yield* this.#user.coPwriteZeroes(sector * SECTOR, SECTOR)
    else yield* this.#user.coPwrite(sector * SECTOR, buf)
    this.model.acknowledge(sector, tag)
  }

  async *#coRead(sector: number): Coroutine<void> {
    const may = this.model.beginRead(sector)
    const buf = new Uint8Array(SECTOR)
    yield* this.#user.coPread(sector * SECTOR, buf)
    this.model.endRead(sector, may)
    const tag = tagOf(buf)
    if (!may.includes(tag))
      this.complaints.push(`sector ${sector} shows ${tag}, may show ${may.join()}`)
  }

  check(): void {
    for (let sector = 0; sector < SECTORS; sector++) {
      const buf = new Uint8Array(SECTOR)
      if (this.#user.pread(sector * SECTOR, buf) !== undefined) throw new Error('not inline')
      const tag = tagOf(buf)
      if (!this.model.allowed(sector).includes(tag))
        this.complaints.push(`at the end sector ${sector} shows ${tag}`)
    }
  }
}

/** Drains, reopens, and puts filters in and out while the load runs. */
class Disturber {
  readonly done: Record<string, number> = {}
  readonly #graph: BlockGraph
  readonly #disk: BlockNode
  readonly #held: HeldDriver
  readonly #random: Random
  readonly #filters: BlockNode[] = []
  readonly #store: MemoryStore

  /** How many worker threads got past the gate, counted by themselves. */
  readonly #inside: Int32Array

  constructor(
    graph: BlockGraph,
    disk: BlockNode,
    { held, random, inside }: { held: HeldDriver; random: Random; inside: Int32Array },
  ) {
    this.#inside = inside
    this.#graph = graph
    this.#disk = disk
    this.#held = held
    this.#random = random
    this.#store = MemoryStore.attach(disk.driver?.describe?.() as MemoryDescription)
  }

  async step(): Promise<void> {
    const kind = this.#random.pick(['drain', 'nested', 'all', 'reopen', 'insert', 'remove', 'hold'])
    this.done[kind] = (this.done[kind] ?? 0) + 1
    const { name } = this.#disk
    if (kind === 'drain') await this.#graph.withDrained(this.#disk, this.#quiet)
    else if (kind === 'nested') await this.#nested()
    else if (kind === 'all') await this.#all()
    else if (kind === 'reopen')
      await this.#graph.reopen([{ node: this.#disk, options: this.#disk.options }])
    else if (kind === 'insert' && this.#filters.length < 3) {
      const top = this.#filters.at(-1) ?? this.#disk
      this.#filters.push(await this.#graph.insertFilter({ driver: 'held', file: top.name }, top))
    } else if (kind === 'remove') {
      const [filter] = this.#filters.splice(this.#random.int(this.#filters.length), 1)
      if (filter !== undefined) await this.#graph.removeFilter(filter)
    } else if (kind === 'hold') {
      // Requests hang above the disk while it is being drained.
      const held = latch()
      this.#held.hold = held
      const drain = this.#graph.withDrained(this.#disk, this.#quiet)
      this.#held.hold = undefined
      held.open()
      await drain
    }
    if (this.#graph.find(name) === undefined) throw new Error('the disk is gone')
  }

  async #nested(): Promise<void> {
    await this.#graph.drainedBegin(this.#disk)
    const top = this.#filters.at(-1) ?? this.#disk
    await this.#graph.withDrained(top, this.#quiet)
    await this.#quiet()
    this.#graph.drainedEnd(this.#disk)
  }

  async #all(): Promise<void> {
    await this.#graph.drainAllBegin()
    await this.#quiet()
    this.#graph.drainAllEnd()
  }

  /** Inside a drained section nothing moves, in whatever thread. */
  readonly #quiet = async (): Promise<void> => {
    const before = new Uint8Array(SIZE)
    const after = new Uint8Array(SIZE)
    this.#store.read(0, before)
    for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve))
    this.#store.read(0, after)
    if (Buffer.compare(before, after) !== 0) throw new Error('a write inside a drained section')
    // What is in flight right now may be a worker that announced itself, found the gate closed and
    // is about to take it back; so ask who got in.
    const inside = Atomics.load(this.#inside, 0) + this.#disk.tracked.size
    if (inside !== 0) throw new Error(`${inside} requests inside a drained section`)
    await this.#disk.gate.whenIdle()
  }

  async end(): Promise<void> {
    for (const filter of this.#filters.splice(0).reverse()) await this.#graph.removeFilter(filter)
  }
}

function startWorkers(
  disk: BlockNode,
  words: { inside: Int32Array; stop: Int32Array },
): Promise<number>[] {
  const dist = (path: string): string => new URL(`../../dist/src/${path}`, import.meta.url).href
  return [0, 1].map((index) => {
    const worker = new Worker(fileURLToPath(new URL('block-writer.mjs', import.meta.url)), {
      workerData: {
        storeUrl: dist('drivers/memory-store.js'),
        gateUrl: dist('sync/gate.js'),
        disk: disk.driver?.describe?.(),
        gate: disk.gate.words,
        ledger: new Int32Array(new SharedArrayBuffer(4)),
        from: WORKER_FROM + index * 32,
        clusters: 32,
        ...words,
      },
    })
    return new Promise<number>((resolve, reject) => {
      worker.once('message', resolve)
      worker.once('error', reject)
    })
  })
}

describe('stress / block', () => {
  it(`stress / block / writers of every kind through drains, reopens and filters (STRESS_SEED=${seed})`, {
    timeout: seconds * 1000 + 20_000,
  }, async () => {
    const random = new Random(seed)
    const held = new HeldDriver()
    const graph = memoryGraph(held.definition)
    const disk = await graph.add({
      driver: 'memory',
      'node-name': 'disk',
      size: SIZE,
      'cluster-size': CLUSTER,
    })
    const user = await guest(graph, disk)
    const load = new Load(user, random)
    const guests = Array.from({ length: WRITERS }, (_, i) =>
      graph.ctx.spawn(load.coGuest(i)).join(),
    )
    const stop = new Int32Array(new SharedArrayBuffer(4))
    const inside = new Int32Array(new SharedArrayBuffer(4))
    const workers = startWorkers(disk, { inside, stop })
    const disturber = new Disturber(graph, disk, { held, random, inside })
    const { clock } = graph.ctx
    const end = clock.nowMs() + seconds * 1000
    let steps = 0
    while (clock.nowMs() < end) {
      await disturber.step()
      steps++
    }
    load.stopped = true
    await Promise.all(guests)
    await disturber.end()
    Atomics.store(stop, 0, 1)
    const written = await Promise.all(workers)
    load.check()
    expect(load.complaints).toEqual([])
    console.log(
      `stress / block: ${load.requests} guest requests, ${written[0]} + ${written[1]} worker writes, ` +
        `${steps} disturbances`,
    )
    expect(Math.min(load.requests, ...written)).toBeGreaterThan(100)
    expect(Object.keys(disturber.done)).toHaveLength(7)
    for (const node of graph.nodes()) {
      expect(node.gate.inFlight, node.name).toBe(0)
      expect(node.gate.quiesceCount, node.name).toBe(0)
      expect(node.tracked.size, node.name).toBe(0)
    }
    expect([user.inFlight, user.queued]).toEqual([0, 0])
    await user.close()
    await graph.close()
    await graph.ctx.close()
  })
})
