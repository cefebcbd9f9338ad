/** A worker that is terminated while it holds shared words: who gives them back, who hears of it. */
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { MessageChannel, Worker } from 'node:worker_threads'
import { afterEach, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { WorkerPool } from '../../../src/job/pool.ts'
import { ContextLock } from '../../../src/sync/context-lock.ts'
import { CopyMap } from '../../../src/sync/copy-map.ts'
import { Doorbell } from '../../../src/sync/doorbell.ts'
import { Gate } from '../../../src/sync/gate.ts'
import { Holdings } from '../../../src/sync/holdings.ts'
import { JobWords } from '../../../src/sync/job-words.ts'
import { pendingWaits } from '../../../src/sync/keep-alive.ts'
import { RangeLock } from '../../../src/sync/range-lock.ts'
import { Ring } from '../../../src/sync/ring.ts'
import type { BlockError } from '../../../src/util/errors.ts'
import { hostSeed } from '../../../src/util/random.ts'

/** The number of the worker's thread in every lock. */
const WORKER = 77
const LANE = 2

let worker: Worker | undefined

afterEach(async () => {
  await worker?.terminate()
  worker = undefined
  expect(pendingWaits()).toBe(0)
})

const HOLDER = `
const { workerData: data, parentPort } = require('node:worker_threads')
const sync = (file) => import(data.dist + file + '.js')
;(async () => {
  const { Gate } = await sync('gate')
  const { ContextLock } = await sync('context-lock')
  const { RangeLock } = await sync('range-lock')
  const { CopyMap } = await sync('copy-map')
  const { JobWords } = await sync('job-words')
  const { Ring } = await sync('ring')
  new Gate(data.gate, 0, ${LANE}).enterBlocking()
  const lock = new ContextLock(data.lock, 0, ${WORKER})
  lock.acquireBlocking()
  lock.acquireBlocking()
  new RangeLock(data.ranges, 0, ${WORKER}).lockBlocking(0, 4096, true)
  new CopyMap(data.map).claim(3)
  new JobWords(data.job).addDone(8192)
  new Ring(data.ring).push([42])
  parentPort.postMessage('holds')
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
})()`

/** Everything there is, all held by a worker that waits for ever. */
async function held() {
  const parts = {
    gate: Gate.create(),
    lock: ContextLock.create(1, 'shared'),
    ranges: RangeLock.create(1),
    map: CopyMap.create(8),
    job: JobWords.create(),
    ring: Ring.create(4, 1),
    bell: Doorbell.create(),
  }
  const { gate, lock, ranges, map, job, ring } = parts
  const workerData = {
    dist: new URL('../../../dist/src/sync/', import.meta.url).href,
    gate: gate.words,
    lock: lock.words,
    ranges: ranges.words,
    map: map.words,
    job: job.words,
    ring: ring.description,
  }
  const thread = new Worker(HOLDER, { eval: true, workerData })
  worker = thread
  await new Promise((resolve, reject) => thread.once('message', resolve).once('error', reject))
  return { ...parts, thread }
}

test('sync / death / what a terminated worker held is given back, and who waits for it goes on', async () => {
  const { gate, lock, ranges, map, job, ring, bell, thread } = await held()
  const holdings = new Holdings(WORKER)
  holdings.gate(gate, LANE).lock(lock).ranges(ranges).ring(ring).bell(bell)
  holdings.releaseAtEndOf(thread)
  expect([lock.owner, lock.depth, gate.inFlight, ranges.held]).toEqual([WORKER, 2, 1, 1])
  gate.quiesce()
  const drained = gate.whenIdle()
  const acquired = lock.acquire()?.catch((error: unknown) => error)
  const locked = ranges.lock(100, 10, false)
  const rung = bell.whenRung(0)
  const record = new Float64Array(1)
  expect(ring.pop(record)).toBe(true)
  const readable = ring.whenReadable()
  for (const wait of [drained, acquired, locked, rung, readable])
    expect(wait).toBeInstanceOf(Promise)
  await thread.terminate()
  await Promise.all([drained, rung, readable])
  const error = (await acquired) as BlockError
  expect([error.code, error.message]).toEqual(['EIO', "The thread that held 'shared' died"])
  ranges.unlock(await locked)
  expect([lock.owner, lock.depth, gate.inFlight, ranges.held, ring.closed]).toEqual([
    0,
    0,
    0,
    0,
    true,
  ])
  // Its claims are void in the drained section that follows.
  expect([map.state(3), map.claims]).toEqual(['claimed', 1])
  const settled = map.whenSettled(3)
  map.rearm()
  await settled
  expect([map.state(3), map.claims]).toEqual(['untouched', 0])
  expect(gate.unquiesce()).toBe(0)
  // What it did stays counted; a body that is gone holds nothing of these words.
  expect(job.done).toBe(8192)
  holdings.release()
  expect(lock.tryAcquire()).toBe(true)
  lock.release()
})

const WAITER = `
const { workerData: data, parentPort } = require('node:worker_threads')
import(data.dist + 'context-lock.js').then(({ ContextLock }) => {
  parentPort.postMessage('wants it')
  new ContextLock(data.words, 0, ${WORKER}).acquireBlocking()
})`

test('sync / death / a worker that dies while it waits for the lock is passed over', async () => {
  const lock = ContextLock.create(1)
  const late = new ContextLock(lock.words, 0, 2)
  lock.acquireBlocking()
  const dist = new URL('../../../dist/src/sync/', import.meta.url).href
  const thread = new Worker(WAITER, { eval: true, workerData: { dist, words: lock.words } })
  worker = thread
  // The first two words are the next ticket and the one that is served.
  while ((lock.words[0] ?? 0) < 2) await new Promise((resolve) => setImmediate(resolve))
  const waiting = late.acquire()
  await thread.terminate()
  lock.releaseDead(WORKER)
  lock.release()
  // It held nothing, so nobody gets an error.
  await waiting
  expect(lock.owner).toBe(2)
  late.release()
  expect(lock.tryAcquire()).toBe(true)
  lock.release()
})

test('sync / death / the pool gives the words of a thread back before it tells of its death', async () => {
  const pool = new WorkerPool({ size: 1 })
  const ctx = new AioContext({ name: 'of the pool' })
  try {
    const [control, proxy] = [new MessageChannel(), new MessageChannel()]
    const run = pool.run(
      {
        port: control.port2,
        proxyPort: proxy.port2,
        words: JobWords.create().words,
        source: { kind: 'proxy', index: 0, length: 0 },
        target: { kind: 'proxy', index: 1, length: 0 },
        dirty: undefined,
        clusters: undefined,
        buffer: new SharedArrayBuffer(4096),
        skipUnallocated: false,
      },
      new Holdings(WORKER).lock(ctx.lock),
    )
    const ended = run.ended.then(
      () => 'finished',
      () => ctx.lock.owner,
    )
    new ContextLock(ctx.lock.words, 0, WORKER).acquireBlocking()
    const waiting = ctx.acquire().catch((error: unknown) => error)
    await pool.close()
    expect(await ended).toBe(0)
    expect(((await waiting) as BlockError).message).toBe("The thread that held 'of the pool' died")
    control.port1.close()
    proxy.port1.close()
  } finally {
    await ctx.close()
  }
})

/** `KILL_ROUNDS=100` searches longer. */
const ROUNDS = process.env.KILL_ROUNDS ?? '8'
const SCRIPT = fileURLToPath(new URL('victims.mjs', import.meta.url))
/** Unoptimised code has far more places where a thread can end. */
const FLAGS = ['--no-opt', '--no-sparkplug']

for (const primitive of ['gate', 'context-lock', 'range-lock']) {
  const seed = hostSeed()
  test(`sync / death / ${primitive}: threads ended at random moments leave nothing behind (seed ${seed})`, {
    timeout: 60_000,
  }, async () => {
    const args = [...FLAGS, SCRIPT, primitive, ROUNDS, String(seed)]
    const out = await new Promise<string>((resolve, reject) => {
      execFile(process.execPath, args, (error, stdout) => {
        if (error === null) resolve(stdout.trim())
        else reject(error)
      })
    })
    expect(out).toBe('ok')
  })
}
