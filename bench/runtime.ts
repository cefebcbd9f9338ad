/**
 * What the runtime costs, against plain async functions in the same run.
 *
 * Invariants:
 * - Every way does the same work: it adds to one counter, through the same depth of calls.
 */
import { Worker } from 'node:worker_threads'
import { AioContext } from '../src/aio/aio-context.ts'
import { CoMutex } from '../src/coroutine/co-mutex.ts'
import type { Coroutine, Pending } from '../src/coroutine/coroutine.ts'
import { run } from '../src/coroutine/inline.ts'
import { Gate } from '../src/sync/gate.ts'
import { type BenchRow, percentile, perOp } from './measure.ts'

/** What the measured operations do, so that none can be dropped. */
export let counter = 0

async function plainAsync(): Promise<void> {
  counter++
}
async function* oneStep(): Coroutine<void> {
  counter++
}

/** A stack of five drivers, whose leaf finishes inline or waits for the next turn. */
function stack(leaf: () => Pending): () => Pending {
  let op = leaf
  for (let i = 0; i < 5; i++) {
    const below = op
    op = () => {
      const pending = below()
      return pending
    }
  }
  return op
}

function promiseStack(leaf: () => Promise<void>): () => Promise<void> {
  let op = leaf
  for (let i = 0; i < 5; i++) {
    const below = op
    op = () => below()
  }
  return op
}

const inlineLeaf = stack(() => {
  counter++
  return undefined
})
const suspended = (): Promise<void> => new Promise((resolve) => queueMicrotask(resolve))
const waitingLeaf = stack(suspended)
const waitingPromise = promiseStack(suspended)

const resolved = Promise.resolve()

async function coroutineRows(): Promise<BenchRow[]> {
  const ctx = new AioContext({ trace: false })
  const mutex = new CoMutex()
  const ns = await perOp(
    {
      async: async (n) => {
        for (let i = 0; i < n; i++) await plainAsync()
      },
      spawn: async (n) => {
        for (let i = 0; i < n; i++) await ctx.spawn(oneStep).join()
      },
      inline: (n) =>
        ctx
          .spawn(async function* (): Coroutine<void> {
            for (let i = 0; i < n; i++) {
              const op = inlineLeaf()
              if (op !== undefined) yield* run(op)
            }
          })
          .join(),
      waiting: (n) =>
        ctx
          .spawn(async function* (): Coroutine<void> {
            for (let i = 0; i < n; i++) {
              const op = waitingLeaf()
              if (op !== undefined) await op
            }
          })
          .join(),
      promises: async (n) => {
        for (let i = 0; i < n; i++) await waitingPromise()
      },
      resolved: async (n) => {
        for (let i = 0; i < n; i++) await resolved
      },
      mutex: async (n) => {
        for (let i = 0; i < n; i++) {
          const wait = mutex.lock()
          if (wait !== undefined) await wait
          mutex.unlock()
        }
      },
    },
    200_000,
  )
  const row = (what: string, a: string, b: string, goal: string): BenchRow => ({
    what,
    ratio: (ns[a] ?? 0) / (ns[b] ?? 1),
    goal,
    detail: `${(ns[a] ?? 0).toFixed(0)} ns / ${(ns[b] ?? 0).toFixed(0)} ns`,
  })
  return [
    row(
      'spawn and finish a coroutine / call and await an async function',
      'spawn',
      'async',
      '<= 3',
    ),
    row(
      'coroutine op, inline through five drivers / one awaited async function',
      'inline',
      'async',
      '<= 1.2',
    ),
    row(
      'one suspension under five drivers / the same as promise functions',
      'waiting',
      'promises',
      '<= 1.5',
    ),
    row('lock and unlock a free mutex / await a resolved promise', 'mutex', 'resolved', '<= 0.2'),
  ]
}

/** A worker that enters and leaves a gate, and one that answers bare notifies. */
const WORKER = `
const { workerData } = require('node:worker_threads')
import(workerData.gateUrl).then(({ Gate }) => {
  const gate = new Gate(workerData.gate)
  const ping = workerData.ping
  for (;;) {
    if (Atomics.load(ping, 2) !== 0) return
    if (Atomics.load(ping, 3) === 1) {
      Atomics.wait(ping, 0, Atomics.load(ping, 1))
      const seen = Atomics.load(ping, 0)
      if (seen !== Atomics.load(ping, 1)) { Atomics.store(ping, 1, seen); Atomics.notify(ping, 1) }
      continue
    }
    gate.enterBlocking()
    for (let i = 0; i < 200; i++) Atomics.load(ping, 4)
    gate.end()
  }
})`

async function drainRow(): Promise<BenchRow> {
  const gate = Gate.create()
  const ping = new Int32Array(new SharedArrayBuffer(32))
  const gateUrl = new URL('../src/sync/gate.js', import.meta.url).href
  const worker = new Worker(WORKER, { eval: true, workerData: { gate: gate.words, ping, gateUrl } })
  await new Promise((resolve) => worker.once('online', resolve))
  const keep = setInterval(() => undefined, 1000)
  while (gate.inFlight === 0) await new Promise((resolve) => setImmediate(resolve))
  const drains: number[] = []
  for (let i = 0; i < 2000; i++) {
    const start = process.hrtime.bigint()
    gate.quiesce()
    await gate.whenIdle()
    drains.push(Number(process.hrtime.bigint() - start))
    gate.unquiesce()
    await new Promise((resolve) => setImmediate(resolve))
  }
  Atomics.store(ping, 3, 1)
  const trips: number[] = []
  for (let i = 0; i < 2000; i++) {
    const start = process.hrtime.bigint()
    const next = Atomics.load(ping, 0) + 1
    Atomics.store(ping, 0, next)
    Atomics.notify(ping, 0)
    const wait = Atomics.waitAsync(ping, 1, next - 1)
    if (wait.async) await wait.value
    trips.push(Number(process.hrtime.bigint() - start))
  }
  Atomics.store(ping, 2, 1)
  Atomics.add(ping, 0, 1)
  Atomics.notify(ping, 0)
  clearInterval(keep)
  await worker.terminate()
  const ours = percentile(drains, 0.5)
  const theirs = percentile(trips, 0.5)
  return {
    what: 'cross-thread drain begun to acknowledged / bare notify and waitAsync round trip (medians)',
    ratio: ours / theirs,
    goal: '<= 1.5',
    detail: `${(ours / 1000).toFixed(1)} us / ${(theirs / 1000).toFixed(1)} us`,
  }
}

/** The rows of this benchmark. */
export async function bench(): Promise<BenchRow[]> {
  return [...(await coroutineRows()), await drainRow()]
}
