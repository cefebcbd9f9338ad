import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { BlockGraph } from '../../../src/block/graph.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { type MemoryDescription, MemoryStore } from '../../../src/drivers/memory-store.ts'
import { builtinDrivers } from '../../../src/runtime/drivers.ts'
import type { DirtyBitmap } from '../../../src/sync/dirty-bitmap.ts'
import { RangeLock } from '../../../src/sync/range-lock.ts'
import { stepJob } from './probe.ts'

const CLUSTER = 4096
const CLUSTERS = 4
const SIZE = CLUSTER * CLUSTERS

interface Message {
  readonly ready?: boolean
  readonly counted?: number
  readonly first?: number
}

let graph: BlockGraph
let ctx: AioContext
const workers: Worker[] = []

beforeEach(() => {
  ctx = new AioContext()
  graph = new BlockGraph({ ctx, drivers: builtinDrivers() })
})

afterEach(async () => {
  for (const worker of workers.splice(0)) await worker.terminate()
  await graph.close()
  await ctx.close()
})

const dist = (path: string): string => new URL(`../../../dist/src/${path}`, import.meta.url).href

/** The next message of a thread that has a member. */
function next(worker: Worker, member: keyof Message): Promise<Message> {
  return new Promise((resolve, reject) => {
    worker.once('error', reject)
    const heard = (message: Message): void => {
      if (message[member] === undefined) return
      worker.off('message', heard)
      resolve(message)
    }
    worker.on('message', heard)
  })
}

interface Shared {
  readonly gateWords: Int32Array
  readonly ranges: Int32Array
  readonly dirty: DirtyBitmap
  readonly stop: Int32Array
}

async function start(node: BlockNode, shared: Shared, me: number): Promise<Worker> {
  const { words, size, granularity } = shared.dirty
  const worker = new Worker(fileURLToPath(new URL('node-worker.mjs', import.meta.url)), {
    workerData: {
      storeUrl: dist('drivers/memory-store.js'),
      gateUrl: dist('sync/gate.js'),
      rangeUrl: dist('sync/range-lock.js'),
      bitmapUrl: dist('sync/dirty-bitmap.js'),
      disk: node.definition.name === 'memory' ? node.driver?.describe?.() : undefined,
      gateWords: shared.gateWords,
      ranges: shared.ranges,
      dirty: { words, size, granularity },
      stop: shared.stop,
      clusters: CLUSTERS,
      me,
    },
  })
  workers.push(worker)
  await next(worker, 'ready')
  return worker
}

async function memoryWorld(): Promise<{ node: BlockNode; shared: Shared; store: MemoryStore }> {
  const node = await graph.add({
    driver: 'memory',
    'node-name': 'disk',
    size: SIZE,
    'cluster-size': CLUSTER,
  })
  const shared: Shared = {
    gateWords: node.gate.words,
    ranges: RangeLock.create(1).words,
    dirty: node.bitmaps.add({ name: 'b', granularity: CLUSTER }).bits,
    stop: new Int32Array(new SharedArrayBuffer(4)),
  }
  const store = MemoryStore.attach(node.driver?.describe?.() as MemoryDescription)
  return { node, shared, store }
}

/** What the threads have counted, over all clusters. */
function total(store: MemoryStore): number {
  let sum = 0
  const buf = new Uint8Array(CLUSTER)
  for (let cluster = 0; cluster < CLUSTERS; cluster++) {
    store.read(cluster * CLUSTER, buf)
    sum += new Uint32Array(buf.buffer)[0] ?? 0
  }
  return sum
}

describe('block / threads', () => {
  it('block / threads / a drained section keeps threads out, nested too, and they go on after it', async () => {
    const { node, shared, store } = await memoryWorld()
    const worker = await start(node, shared, 2)
    const counted = next(worker, 'counted')
    for (let round = 0; round < 20; round++) {
      await graph.drainedBegin(node)
      const before = total(store)
      await graph.withDrained(node, () => undefined)
      for (let n = 0; n < 3; n++) await new Promise((resolve) => setImmediate(resolve))
      expect(total(store)).toBe(before)
      graph.drainedEnd(node)
    }
    const before = total(store)
    while (total(store) === before) await new Promise((resolve) => setImmediate(resolve))
    Atomics.store(shared.stop, 0, 1)
    expect((await counted).counted).toBe(total(store))
    expect(node.gate.inFlight).toBe(0)
  })

  it('block / threads / what threads do under a range lock is never lost', async () => {
    const { node, shared, store } = await memoryWorld()
    const started = [await start(node, shared, 2), await start(node, shared, 3)]
    const counted = started.map((worker) => next(worker, 'counted'))
    while (total(store) < 2000) await new Promise((resolve) => setImmediate(resolve))
    Atomics.store(shared.stop, 0, 1)
    const sum = (await Promise.all(counted)).reduce((all, { counted: n }) => all + (n ?? 0), 0)
    expect(total(store)).toBe(sum)
    expect(new RangeLock(shared.ranges, 0, 1).held).toBe(0)
  })

  it('block / threads / a bitmap of the node misses no write of a thread', async () => {
    const { node, shared, store } = await memoryWorld()
    const worker = await start(node, shared, 2)
    const counted = next(worker, 'counted')
    const copy = new Uint8Array(SIZE)
    const pass = (): void => {
      for (let at = 0; ; ) {
        const range = shared.dirty.nextDirty(at)
        if (range === undefined) return
        shared.dirty.clearRange(range.offset, range.bytes)
        store.read(range.offset, copy.subarray(range.offset, range.offset + range.bytes))
        at = range.offset + range.bytes
      }
    }
    for (let round = 0; round < 200; round++) {
      pass()
      await new Promise((resolve) => setImmediate(resolve))
    }
    Atomics.store(shared.stop, 0, 1)
    await counted
    pass()
    const disk = new Uint8Array(SIZE)
    store.read(0, disk)
    expect(Buffer.compare(copy, disk)).toBe(0)
    expect(shared.dirty.count).toBe(0)
  })

  it('block / threads / after a reopen a thread attaches what the node shows now', async () => {
    const dir = fs.mkdtempSync(join(tmpdir(), 'blockstep-'))
    const filename = join(dir, 'f')
    fs.writeFileSync(filename, Buffer.concat([Buffer.alloc(SIZE, 1), Buffer.alloc(SIZE, 2)]))
    const file = { driver: 'file', 'node-name': 'f', filename }
    const options = { driver: 'raw', 'node-name': 'r', 'read-only': true, file }
    const node = await graph.add({ ...options, offset: 0, size: SIZE })
    const { shared } = await memoryWorld()
    const worker = await start(node, shared, 2)
    const first = async (): Promise<number | undefined> => {
      const answer = next(worker, 'first')
      worker.postMessage({ view: node.driver?.describe?.() })
      return (await answer).first
    }
    expect(await first()).toBe(1)
    await graph.reopen([{ node, options: { ...options, offset: SIZE, size: SIZE } }])
    expect(await first()).toBe(2)
    fs.rmSync(dir, { recursive: true })
  })

  it('block / threads / where the data of a node lie does not change under a job', async () => {
    const inner = { driver: 'null-co', 'node-name': 'n', size: SIZE }
    const options = { driver: 'raw', 'node-name': 'r', file: inner }
    const node = await graph.add(options)
    await graph.add({ ...inner, 'node-name': 'm' })
    const { job, finish } = await stepJob(graph, [node])
    const moved = [{ node, options: { ...options, offset: 512 } }]
    await expect(graph.reopen(moved)).rejects.toThrow("Cannot move the window of 'r' under a job")
    await expect(graph.reopen([{ node, options: { ...options, file: 'm' } }])).rejects.toThrow(
      "Cannot change 'file' link of 'r' under a job",
    )
    finish()
    await job.done
    await graph.reopen(moved)
    expect(node.length()).toBe(SIZE - 512)
  })
})
