/** The event loop scenarios that need disks, threads or limits: C10 with cancel and delete, C13 to C21. */
import { expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import type { Coroutine } from '../../../src/coroutine/coroutine.ts'
import { TaskPool } from '../../../src/coroutine/task-pool.ts'
import { checkLimits, LeakyBucket } from '../../../src/drivers/throttle-limits.ts'
import { WorkerBody } from '../../../src/job/body.ts'
import { WorkerPool } from '../../../src/job/pool.ts'
import { NbdClient } from '../../../src/nbd/client.ts'
import type { BlockError } from '../../../src/util/errors.ts'
import { fill, guest, memoryGraph, patternOf } from '../../support/graph.ts'
import { serve } from '../nbd/support.ts'

async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i += 1) await new Promise((resolve) => setImmediate(resolve))
}

test('aio / C10 / a bottom half runs once for many schedules, never after cancel or delete', async () => {
  const ctx = new AioContext()
  let runs = 0
  const bh = ctx.newBh(() => {
    runs += 1
  })
  bh.schedule()
  bh.schedule()
  await turns(2)
  expect([runs, bh.scheduled]).toEqual([1, false])
  bh.schedule()
  bh.cancel()
  await turns(2)
  expect(runs).toBe(1)
  bh.schedule()
  bh.delete()
  bh.schedule()
  await turns(2)
  expect(runs).toBe(1)
  expect(ctx.report().queued).toBe(0)
  await ctx.close()
})

for (const sections of [1, 2]) {
  test(`aio / C13 / a guest's request waits for the last of ${sections} drained sections`, async () => {
    const graph = memoryGraph()
    const disk = await graph.add({ driver: 'memory', 'node-name': 'disk', size: 1 << 16 })
    const user = await guest(graph, disk)
    await fill(user, 0x11, 0, 512)
    for (let i = 0; i < sections; i += 1) await graph.drainedBegin(disk)
    let done = false
    const write = Promise.resolve(fill(user, 0x22, 0, 512)).then(() => {
      done = true
    })
    for (let i = 0; i < sections; i += 1) {
      await turns(3)
      expect([done, user.queued]).toEqual([false, 1])
      graph.drainedEnd(disk)
    }
    await write
    expect(await patternOf(user, 0, 512)).toBe(0x22)
    await user.close()
    await graph.close()
    await graph.ctx.close()
  })
}

test('aio / C13 / a network client is not read from before the last section ends', async () => {
  const graph = memoryGraph()
  const disk = await graph.add({ driver: 'memory', 'node-name': 'disk', size: 1 << 16 })
  const user = await guest(graph, disk)
  const served = await serve()
  served.server.addExport({ name: 'disk', backend: user, readOnly: false })
  const { address } = served
  const client = await NbdClient.connect({ ctx: graph.ctx, address, exportName: 'disk' })
  await graph.drainedBegin(disk)
  await graph.drainedBegin(disk)
  let done = false
  const write = Promise.resolve(client.write(0, Buffer.alloc(512, 0x33))).then(() => {
    done = true
  })
  await turns(20)
  graph.drainedEnd(disk)
  await turns(20)
  expect([done, user.queued, user.inFlight]).toEqual([false, 0, 0])
  graph.drainedEnd(disk)
  await write
  expect(await patternOf(user, 0, 512)).toBe(0x33)
  await client.disconnect()
  await served.close()
  await user.close()
  await graph.close()
  await graph.ctx.close()
  await served.ctx.close()
})

test('aio / C18 / tasks of a pool: one, one from a coroutine, a hundred at once', async () => {
  const ctx = new AioContext()
  const pool = new TaskPool(64)
  const runs: number[] = []
  const task = (n: number) => async (): Promise<void> => {
    runs[n] = (runs[n] ?? 0) + 1
    await ctx.sleep(0)
  }
  await pool.start(task(0))
  expect(pool.busy).toBe(1)
  await pool.waitAll()
  expect(runs).toEqual([1])
  const inside = ctx.spawn(async function* (): Coroutine<number> {
    yield pool.start(task(1))
    // Started, and not over before the one who started it goes on.
    const { busy } = pool
    yield pool.waitAll()
    return busy
  })
  expect(await inside.join()).toBe(1)
  for (let n = 2; n < 102; n += 1) await pool.start(task(n))
  await pool.waitAll()
  expect(runs).toEqual(Array.from({ length: 102 }, () => 1))
  expect([pool.busy, pool.failed]).toEqual([0, false])
  await ctx.close()
})

test('aio / C18 / bodies of a thread pool: a hundred at once, each starts and ends once', async () => {
  const pool = new WorkerPool({ size: 2 })
  const view = (index: number) => ({ kind: 'proxy' as const, index, length: 0 })
  const options = {
    source: view(0),
    target: view(1),
    proxies: [],
    skipUnallocated: false,
    speed: 0,
  }
  try {
    const bodies = await Promise.all(
      Array.from({ length: 100 }, () => WorkerBody.start(pool, options)),
    )
    expect(pool.threads).toBeLessThanOrEqual(2)
    await Promise.all(bodies.map((body) => body.finish()))
    // One that ended as it was told to was shut down; it did not die.
    const codes = new Set(bodies.map((body) => body.death?.code))
    expect([...codes]).toEqual(['ESHUTDOWN'])
  } finally {
    await pool.close()
  }
})

test('aio / C20 / a bucket leaks at its average, and never below empty', () => {
  const bucket = new LeakyBucket(150, 15, 1)
  bucket.level = 1.5
  bucket.leak(1000 / 150)
  expect(bucket.level).toBeCloseTo(0.5, 9)
  bucket.leak(1000 / 150)
  expect(bucket.level).toBe(0)
  bucket.leak(1000 / 150)
  expect(bucket.level).toBe(0)
})

test('aio / C20 / half an operation too many waits a three-hundredth of a second', () => {
  const bucket = new LeakyBucket(150, 15, 1)
  bucket.level = 15.5
  expect(bucket.waitMs()).toBeCloseTo(1000 / 300, 9)
  bucket.level = 15
  expect(bucket.waitMs()).toBe(0)
})

test('aio / C20 / a burst of two seconds passes for 21 steps, then waits 1.8 seconds', () => {
  const bucket = new LeakyBucket(10, 200, 2)
  const waits: number[] = []
  for (let step = 0; step < 22; step += 1) {
    bucket.add(20)
    bucket.leak(100)
    waits.push(bucket.waitMs())
  }
  expect(waits.slice(0, 21)).toEqual(Array.from({ length: 21 }, () => 0))
  expect(waits[21]).toBeCloseTo(1800, 6)
})

test('aio / C21 / eight kinds of bad limits are refused, read with write and none are fine', () => {
  const bad: Record<string, number>[] = [
    { 'bps-total': 1, 'bps-read': 1 },
    { 'iops-total': 1, 'iops-write': 1 },
    { 'bps-total-max': 1 },
    { 'bps-total': 100, 'bps-total-max': 30 },
    { 'iops-total': 10, 'iops-total-max': 20, 'iops-total-max-length': 0 },
    { 'iops-total': 1e15 + 1 },
    { 'iops-total': 1, 'iops-total-max': 1e15, 'iops-total-max-length': 2 },
    { 'iops-size': 4096 },
    { 'iops-total': -1 },
  ]
  const words = bad.map((limits) => {
    try {
      checkLimits(limits)
      return `accepted ${JSON.stringify(limits)}`
    } catch (error) {
      expect((error as BlockError).code).toBe('EINVAL')
      return (error as BlockError).message
    }
  })
  // Both directions beside the total have one text, and so have too much and too little.
  expect(new Set(words).size).toBe(7)
  expect(words.filter((each) => each.startsWith('accepted'))).toEqual([])
  expect(() => checkLimits({ 'bps-read': 1, 'bps-write': 1 })).not.toThrow()
  expect(() => checkLimits({})).not.toThrow()
})
