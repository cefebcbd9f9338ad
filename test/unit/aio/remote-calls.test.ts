import { Worker } from 'node:worker_threads'
import { afterEach, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { RemoteContext } from '../../../src/aio/remote-calls.ts'
import type { Coroutine } from '../../../src/coroutine/coroutine.ts'
import { Holdings } from '../../../src/sync/holdings.ts'
import { pendingWaits } from '../../../src/sync/keep-alive.ts'
import { VirtualClock } from '../../../src/util/clock.ts'
import type { BlockError } from '../../../src/util/errors.ts'

const workers: Worker[] = []

afterEach(async () => {
  for (const worker of workers.splice(0)) await worker.terminate()
  expect(pendingWaits()).toBe(0)
})

async function turns(count = 3): Promise<void> {
  for (let i = 0; i < count; i += 1) await new Promise((resolve) => setImmediate(resolve))
}

test('aio / remote / many schedules are one run, cancel takes back, delete is for ever', async () => {
  const ctx = new AioContext()
  const calls = ctx.remoteCalls()
  const other = new RemoteContext(calls.words)
  let runs = 0
  const bh = calls.newBh(() => {
    runs += 1
  })
  other.schedule(bh.call)
  other.schedule(bh.call)
  await turns()
  expect(runs).toBe(1)
  other.schedule(bh.call)
  bh.cancel()
  await turns()
  expect(runs).toBe(1)
  other.schedule(bh.call)
  other.delete(bh.call)
  other.schedule(bh.call)
  await turns()
  expect([runs, calls.size]).toEqual([1, 0])
  bh.delete()
  await ctx.close()
})

test('aio / remote / an idle one waits for other work, at most 10 ms', async () => {
  const clock = new VirtualClock()
  const ctx = new AioContext({ clock })
  const calls = ctx.remoteCalls()
  const other = new RemoteContext(calls.words)
  let runs = 0
  const bh = calls.newBh(() => {
    runs += 1
  })
  other.scheduleIdle(bh.call)
  await turns()
  expect(runs).toBe(0)
  await clock.advance(10)
  expect(runs).toBe(1)
  bh.delete()
  await turns()
  await ctx.close()
})

test('aio / remote / a number is good once: the next in its slot is another', async () => {
  const ctx = new AioContext()
  const calls = ctx.remoteCalls(1)
  const other = new RemoteContext(calls.words)
  const log: string[] = []
  const first = calls.newBh(() => log.push('first'))
  first.delete()
  const second = calls.newBh(() => log.push('second'))
  other.schedule(first.call)
  await turns()
  expect(log).toEqual([])
  other.schedule(second.call)
  await turns()
  expect(log).toEqual(['second'])
  second.delete()
  const parked = calls.park()
  other.coSchedule(parked.call)
  expect(() => other.coSchedule(parked.call)).toThrow('a parked coroutine is scheduled once')
  await parked.woken
  expect(() => other.coSchedule(parked.call)).toThrow('a parked coroutine is scheduled once')
  await turns()
  await ctx.close()
})

test('aio / remote / a coroutine whose waker died gets an error, unless it was woken', async () => {
  const ctx = new AioContext()
  const calls = ctx.remoteCalls()
  const worker = new Worker('setInterval(() => {}, 1000)', { eval: true })
  workers.push(worker)
  const never = calls.park()
  const woken = calls.park()
  new Holdings(worker.threadId + 1).wakes(never).wakes(woken).releaseAtEndOf(worker)
  const handle = ctx.spawn(async function* (): Coroutine<void> {
    yield woken.woken
    yield never.woken
  })
  const ended = handle.join().catch((error: unknown) => error)
  new RemoteContext(calls.words).coSchedule(woken.call)
  await woken.woken
  await worker.terminate()
  const error = (await ended) as BlockError
  expect(error.code).toBe('EIO')
  expect(error.message).toBe('The thread that was to wake the coroutine died')
  expect(calls.size).toBe(0)
  await turns()
  await ctx.close()
})

const PINGER = `
const { workerData: data, parentPort } = require('node:worker_threads')
import(data.dist + 'aio/remote-calls.js').then(({ RemoteContext }) => {
  const home = new RemoteContext(data.words)
  parentPort.on('message', (calls) => {
    if (calls === undefined) return parentPort.close()
    for (const call of calls) home.coSchedule(call)
  })
})`

test('aio / remote / coSchedule wakes coroutines of another thread, first come first served', async () => {
  const ctx = new AioContext()
  const calls = ctx.remoteCalls()
  const dist = new URL('../../../dist/src/', import.meta.url).href
  const worker = new Worker(PINGER, { eval: true, workerData: { dist, words: calls.words } })
  workers.push(worker)
  const failed = new Promise<never>((_, reject) => worker.once('error', reject))
  const order: number[] = []
  const numbers: number[] = []
  async function* sleeper(me: number): Coroutine<void> {
    for (let round = 0; round < 20; round += 1) {
      const parked = calls.park()
      numbers.push(parked.call)
      if (numbers.length === 8) worker.postMessage(numbers.splice(0))
      yield parked.woken
      order.push(me)
    }
  }
  const all = Array.from({ length: 8 }, (_, me) => ctx.spawn(sleeper(me)).join())
  await Promise.race([Promise.all(all), failed])
  const expected = Array.from({ length: 160 }, (_, i) => i % 8)
  expect(order).toEqual(expected)
  worker.postMessage(undefined)
  await new Promise((resolve) => worker.once('exit', resolve))
  expect(calls.size).toBe(0)
  await turns()
  await ctx.close()
})
