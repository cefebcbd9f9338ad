import { Worker } from 'node:worker_threads'
import { expect, test } from 'vitest'
import { RemoteContext } from '../../../src/aio/remote-calls.ts'
import { hostSeed, Random } from '../../../src/util/random.ts'

const THREADS = 5
const WAKES = 2000

/**
 * One loop: its coroutine parks in the mailbox, sleeps, and when it is woken wakes one at random.
 * `state`: [0] stop, [1] wake-ups, [2] coroutines that ended; then one mailbox a thread.
 */
const LOOP = `
const { workerData: data, parentPort } = require('node:worker_threads')
;(async () => {
  const { AioContext } = await import(data.dist + 'aio/aio-context.js')
  const { RemoteContext } = await import(data.dist + 'aio/remote-calls.js')
  const { Random } = await import(data.dist + 'util/random.js')
  const random = new Random(data.seed + data.me)
  const ctx = new AioContext({ name: 'loop ' + data.me })
  const calls = ctx.remoteCalls()
  const { state } = data
  parentPort.postMessage(calls.words)
  const all = await new Promise((resolve) => parentPort.once('message', resolve))
  const homes = all.map((words) => new RemoteContext(words))
  let woken = 0
  async function* work() {
    while (Atomics.load(state, 0) === 0) {
      const other = random.int(homes.length)
      const call = Atomics.exchange(state, 3 + other, 0)
      if (call !== 0) homes[other].coSchedule(call - 1)
      const parked = calls.park()
      Atomics.store(state, 3 + data.me, parked.call + 1)
      yield parked.woken
      if (Atomics.load(state, 3 + data.me) !== 0) throw new Error('woken with its number still out')
      woken += 1
      Atomics.add(state, 1, 1)
    }
  }
  await ctx.spawn(work(), { name: 'work' }).join()
  await ctx.close()
  Atomics.add(state, 2, 1)
  parentPort.postMessage(woken)
})()`

interface Loop {
  readonly words: Int32Array
  readonly worker: Worker
  readonly ended: Promise<number>
}

async function start(me: number, state: Int32Array, seed: number): Promise<Loop> {
  const dist = new URL('../../../dist/src/', import.meta.url).href
  const worker = new Worker(LOOP, { eval: true, workerData: { dist, me, state, seed } })
  const failed = new Promise<never>((_, reject) => {
    worker.once('error', reject)
    worker.once('exit', () => reject(new Error(`loop ${me} ended early, seed ${seed}`)))
  })
  failed.catch(() => undefined)
  const next = <T>(): Promise<T> =>
    Promise.race([new Promise<T>((resolve) => worker.once('message', resolve)), failed])
  const words = await next<Int32Array>()
  return { worker, words, ended: next<number>() }
}

test('aio / C16 / five loops: coroutines wake each other at random, every one ends, none is lost', async () => {
  const seed = hostSeed()
  const random = new Random(seed)
  const state = new Int32Array(new SharedArrayBuffer((3 + THREADS) * 4))
  const loops = await Promise.all(
    Array.from({ length: THREADS }, (_, me) => start(me, state, seed)),
  )
  const homes = loops.map(({ words }) => new RemoteContext(words))
  for (const { worker } of loops) worker.postMessage(loops.map(({ words }) => words))
  const end = performance.now() + 15_000
  while (Atomics.load(state, 2) < THREADS) {
    if (Atomics.load(state, 1) >= WAKES) Atomics.store(state, 0, 1)
    const other = random.int(THREADS)
    const call = Atomics.exchange(state, 3 + other, 0)
    if (call !== 0) homes[other]?.coSchedule(call - 1)
    await new Promise((resolve) => setImmediate(resolve))
    expect(performance.now(), `hangs, seed ${seed}, state ${state.join()}`).toBeLessThan(end)
  }
  const woken = await Promise.all(loops.map(({ ended }) => ended))
  expect(woken.reduce((sum, n) => sum + n, 0)).toBe(Atomics.load(state, 1))
  expect(
    woken.every((count) => count > 0),
    `seed ${seed}`,
  ).toBe(true)
})
