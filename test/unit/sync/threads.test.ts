import { Worker } from 'node:worker_threads'
import { afterEach, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { ContextLock } from '../../../src/sync/context-lock.ts'
import { Gate } from '../../../src/sync/gate.ts'
import { pendingWaits } from '../../../src/sync/keep-alive.ts'
import { Ring } from '../../../src/sync/ring.ts'
import { BlockError } from '../../../src/util/errors.ts'

/** The compiled primitives: a worker cannot load the sources. */
const DIST = new URL('../../../dist/src/sync/', import.meta.url).href

const workers: Worker[] = []

afterEach(async () => {
  for (const worker of workers.splice(0)) await worker.terminate()
  expect(pendingWaits()).toBe(0)
})

/** A worker that runs `body` with `sync(file)` and `data`; resolves when it says it is up. */
async function start(body: string, data: Record<string, unknown>): Promise<Worker> {
  const code = `
    const { workerData: data, parentPort } = require('node:worker_threads')
    const sync = (file) => import(data.dist + file + '.js')
    ;(async () => { ${body} })()`
  const worker = new Worker(code, { eval: true, workerData: { ...data, dist: DIST } })
  workers.push(worker)
  await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
  return worker
}

test('sync / ring / records keep their order to a worker and back, through many wraps', async () => {
  const there = Ring.create(4, 2)
  const back = Ring.create(4, 2)
  const worker = await start(
    `
    const { Ring } = await sync('ring')
    const input = new Ring(data.there)
    const output = new Ring(data.back)
    const record = new Float64Array(2)
    parentPort.postMessage('up')
    while (input.popBlocking(record)) output.pushBlocking([record[0] * 2, record[1]])
    output.close()`,
    { there: there.description, back: back.description },
  )
  const exit = new Promise((resolve) => worker.once('exit', resolve))
  const record = new Float64Array(2)
  const total = 500
  let received = 0
  for (let sent = 0; received < total; ) {
    while (sent < total && there.push([sent, 2 ** 50 + sent])) sent += 1
    if (sent === total) there.close()
    const wait = back.whenReadable()
    if (wait !== undefined) await wait
    while (back.pop(record)) {
      expect([...record]).toEqual([received * 2, 2 ** 50 + received])
      received += 1
    }
  }
  await exit
  expect(back.closed).toBe(true)
  expect(there.push([0, 0])).toBe(false)
})

test('sync / context lock / main waits for a worker without blocking, then hands over', async () => {
  const lock = ContextLock.create(1)
  const state = new Int32Array(new SharedArrayBuffer(8))
  const worker = await start(
    `
    const { ContextLock } = await sync('context-lock')
    const lock = new ContextLock(data.words, 0, 2)
    lock.acquireBlocking()
    parentPort.postMessage('up')
    Atomics.wait(data.state, 0, 0)
    lock.release()
    lock.acquireBlocking()
    Atomics.store(data.state, 1, 1)
    lock.release()`,
    { words: lock.words, state },
  )
  expect(lock.owner).toBe(2)
  const exit = new Promise((resolve) => worker.once('exit', resolve))
  const first = lock.acquire()
  const second = lock.acquire()
  expect(first).toBeInstanceOf(Promise)
  Atomics.store(state, 0, 1)
  Atomics.notify(state, 0)
  await Promise.all([first, second])
  expect([lock.owner, lock.depth]).toEqual([1, 2])
  expect(Atomics.load(state, 1)).toBe(0)
  lock.release()
  lock.release()
  await exit
  expect([lock.owner, lock.depth, Atomics.load(state, 1)]).toEqual([0, 0, 1])
})

test('sync / context lock / a worker that dies holding it: an error for who waits, then free', async () => {
  const ctx = new AioContext({ name: 'shared' })
  const worker = await start(
    `
    const { ContextLock } = await sync('context-lock')
    new ContextLock(data.words, 0, 77).acquireBlocking()
    parentPort.postMessage('up')
    setInterval(() => {}, 1000)`,
    { words: ctx.lock.words },
  )
  const waiting = ctx.acquire().catch((error: unknown) => error)
  await worker.terminate()
  ctx.lock.releaseDead(77)
  const error = await waiting
  expect(error).toBeInstanceOf(BlockError)
  expect((error as BlockError).message).toContain("held 'shared' died")
  expect(ctx.lock.owner).toBe(0)
  {
    await using _held = await ctx.acquire()
    expect(ctx.lock.held).toBe(true)
  }
  await ctx.close()
})

test('sync / keep alive / a process that only waits for a shared word does not end', async () => {
  // The worker has nothing but one wait; without the keep-alive it would exit before the notify.
  const { words } = Gate.create()
  const worker = await start(
    `
    const { Gate } = await sync('gate')
    const gate = new Gate(data.words)
    gate.begin()
    parentPort.postMessage('up')
    await gate.whenIdle()
    parentPort.postMessage('idle')`,
    { words },
  )
  const idle = new Promise((resolve, reject) => {
    worker.once('message', resolve)
    worker.once('exit', () => reject(new Error('the worker ended while it waited')))
  })
  await new Promise((resolve) => setImmediate(resolve))
  new Gate(words).end()
  expect(await idle).toBe('idle')
})

test('sync / context lock / threads with high numbers are told apart', () => {
  const lock = ContextLock.create(1)
  const high = new ContextLock(lock.words, 0, 40_000)
  const higher = new ContextLock(lock.words, 0, 40_001)
  high.acquireBlocking()
  expect([lock.held, high.held, higher.held, higher.tryAcquire()]).toEqual([
    false,
    true,
    false,
    false,
  ])
  lock.releaseDead(40_001)
  expect(high.held).toBe(true)
  lock.releaseDead(40_000)
  expect(higher.tryAcquire()).toBe(true)
  higher.release()
})

test('sync / context lock / tickets and rounds wrap', () => {
  const lock = ContextLock.create(1)
  const other = new ContextLock(lock.words, 0, 2)
  // Right before the last ticket of 32 bits: every slot stands in the round that fits it.
  const first = -70
  for (let ticket = first; ticket < first + 64; ticket += 1)
    lock.words[5 + (ticket & 63)] = ((ticket >>> 6) * 0x1_0000) | 0
  lock.words[0] = first
  lock.words[1] = first
  for (let i = 0; i < 200; i += 1) {
    lock.acquireBlocking()
    expect(other.tryAcquire()).toBe(false)
    lock.release()
    expect(other.tryAcquire()).toBe(true)
    other.release()
  }
  expect([...lock.words.subarray(0, 5)]).toEqual([first + 400, first + 400, 0, 0, 0])
})
