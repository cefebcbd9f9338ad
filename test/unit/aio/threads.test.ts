import { Worker } from 'node:worker_threads'
import { expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { Doorbell } from '../../../src/sync/doorbell.ts'
import { pendingWaits } from '../../../src/sync/keep-alive.ts'
import { hostSeed } from '../../../src/util/random.ts'

test('aio / shared bottom half / many rings are one run, none is lost', async () => {
  const ctx = new AioContext()
  const bell = Doorbell.create()
  let runs = 0
  bell.ring()
  const shared = ctx.listen(bell.words, () => {
    runs += 1
  })
  await new Promise((resolve) => setImmediate(resolve))
  expect(runs).toBe(1)
  bell.ring()
  bell.ring()
  while (runs < 2) await new Promise((resolve) => setImmediate(resolve))
  expect(runs).toBe(2)
  shared.close()
  bell.ring()
  await new Promise((resolve) => setImmediate(resolve))
  expect(runs).toBe(2)
  expect(pendingWaits()).toBe(0)
  await ctx.close()
})

/**
 * Each thread has a context with coroutines that pass tokens to random threads. `table`: [0] passes
 * left, then one token count a thread. A lost wake-up leaves a token where nobody looks.
 */
const THREAD = `
const { workerData: data, parentPort } = require('node:worker_threads')
;(async () => {
  const { AioContext } = await import(data.dist + 'aio/aio-context.js')
  const { CoQueue } = await import(data.dist + 'coroutine/co-queue.js')
  const { Doorbell } = await import(data.dist + 'sync/doorbell.js')
  const { Random } = await import(data.dist + 'util/random.js')
  const random = new Random(data.seed + data.me)
  const ctx = new AioContext({ name: 'thread ' + data.me })
  const bells = data.bells.map((words) => new Doorbell(words))
  const queue = new CoQueue()
  const { table } = data
  const shared = ctx.listen(data.bells[data.me], () => queue.restartAll())
  let passed = 0
  async function* pass() {
    while (Atomics.load(table, 0) > 0) {
      const had = Atomics.load(table, 1 + data.me)
      if (had === 0) { yield queue.wait(); continue }
      if (Atomics.compareExchange(table, 1 + data.me, had, had - 1) !== had) continue
      const to = random.int(bells.length)
      Atomics.add(table, 1 + to, 1)
      passed += 1
      if (Atomics.sub(table, 0, 1) <= 1) for (const bell of bells) bell.ring()
      else bells[to].ring()
      yield
    }
  }
  const all = Array.from({ length: 3 }, () => ctx.spawn(pass()).join())
  await Promise.all(all)
  shared.close()
  await ctx.close()
  parentPort.postMessage(passed)
})()`

test('aio / threads / coroutines of three contexts wake each other and all end', async () => {
  const threads = 3
  const seed = hostSeed()
  const word = (): Int32Array => new Int32Array(new SharedArrayBuffer(4))
  const bells = Array.from({ length: threads }, word)
  const table = new Int32Array(new SharedArrayBuffer((threads + 1) * 4))
  table[0] = 600
  table[1] = 2
  const dist = new URL('../../../dist/src/', import.meta.url).href
  const passed = await Promise.all(
    bells.map((_, me) => {
      const workerData = { dist, bells, table, me, seed }
      const worker = new Worker(THREAD, { eval: true, workerData })
      return new Promise<number>((resolve, reject) => {
        worker.once('message', resolve)
        worker.once('error', reject)
        worker.once('exit', () => reject(new Error(`thread ${me} ended early, seed ${seed}`)))
      })
    }),
  )
  const tokens = table.slice(1).reduce((sum, n) => sum + n, 0)
  expect(tokens, `seed ${seed}`).toBe(2)
  expect(passed.reduce((sum, n) => sum + n, 0)).toBeGreaterThanOrEqual(600)
})
