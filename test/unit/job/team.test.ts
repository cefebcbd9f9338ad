import { expect, test } from 'vitest'
import type { BlockBackend } from '../../../src/block/backend.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { copyBeforeWriteDriver } from '../../../src/drivers/copy-before-write.ts'
import { copyOnReadDriver } from '../../../src/drivers/copy-on-read.ts'
import { startBackup } from '../../../src/job/backup.ts'
import { startCommit } from '../../../src/job/commit.ts'
import type { Job } from '../../../src/job/job.ts'
import { MirrorDriver } from '../../../src/job/mirror.ts'
import { startMirror } from '../../../src/job/start-mirror.ts'
import { startStream } from '../../../src/job/start-stream.ts'
import { StreamDriver } from '../../../src/job/stream.ts'
import { type Bench, bench, isAll, pattern, readAt, turn, until } from './fixture.ts'

const MIB = 1024 * 1024
const SIZE = 64 * MIB

interface Disks {
  readonly source: BlockNode
  readonly target: BlockNode
  readonly guest: BlockBackend
}

async function disks(b: Bench, size = SIZE): Promise<Disks> {
  const source = await b.add({ driver: 'memory', 'node-name': 'source', size })
  const target = await b.add({ driver: 'memory', 'node-name': 'target', size })
  const guest = await b.guest(source)
  for (let at = 0; at < size; at += 4 * MIB) await guest.pwrite(at, pattern(0x11, 4 * MIB))
  return { source, target, guest }
}

function mirror(b: Bench, { source, target }: Disks, speed = 0): Promise<Job> {
  return startMirror(b.graph, b.registry, b.pool, {
    jobId: 'm',
    source,
    target,
    sync: 'full',
    speed,
  })
}

function bodiesOf({ driver }: Job): MirrorDriver['bodies'] {
  if (driver instanceof MirrorDriver || driver instanceof StreamDriver) return driver.bodies
  throw new Error('a job with bodies')
}

/** Two bodies in two threads, and each of them did something. */
function expectShared(bodies: MirrorDriver['bodies']): void {
  expect(new Set(bodies.map((body) => body.threadId)).size).toBe(2)
  for (const body of bodies) expect(body.done).toBeGreaterThan(0)
}

test('job / team / mirror / a large disk is copied by two threads', async () => {
  await using b = bench()
  const d = await disks(b)
  const job = await mirror(b, d)
  await until(() => job.ready)
  expectShared(bodiesOf(job))
  expect(job.current).toBe(SIZE)
  job.cancel(false)
  await job.done
  expect(isAll(await readAt(d.target.driver!, 0, SIZE), 0x11)).toBe(true)
})

test('job / team / mirror / a small, a limited and a coarse one have one thread', async () => {
  await using b = bench()
  const small = await disks(b, 8 * MIB)
  const limited = await mirror(b, small, 64 * MIB)
  await until(() => limited.ready)
  expect(bodiesOf(limited)).toHaveLength(1)
  await limited.cancelSync()
  await b.graph.remove('target')
  const target = await b.add({
    driver: 'memory',
    'node-name': 'target',
    size: 8 * MIB,
    'cluster-size': 2 * MIB,
  })
  const coarse = await mirror(b, { ...small, target })
  await until(() => coarse.ready)
  expect(bodiesOf(coarse)).toHaveLength(1)
  await coarse.cancelSync()
})

test('job / team / commit / folds by two threads and moves the guest', async () => {
  await using b = bench()
  const base = await b.add({ driver: 'memory', 'node-name': 'base', size: SIZE })
  const top = await b.add({ driver: 'memory', 'node-name': 'top', size: SIZE, backing: 'base' })
  const guest = await b.guest(top)
  for (let at = 0; at < SIZE; at += 4 * MIB) await guest.pwrite(at, pattern(0x22, 4 * MIB))
  const job = await startCommit(b.graph, b.registry, b.pool, {
    jobId: 'c',
    top,
    base,
    autoComplete: true,
  })
  await job.done
  expect(job.error).toBeUndefined()
  expectShared(bodiesOf(job))
  expect(guest.node).toBe(base)
  expect(isAll(await readAt(guest, 0, SIZE), 0x22)).toBe(true)
})

test('job / team / stream / what no image below holds is not copied', async () => {
  await using b = bench(copyOnReadDriver)
  await b.add({ driver: 'memory', 'node-name': 'base', size: SIZE })
  const top = await b.add({ driver: 'memory', 'node-name': 'top', size: SIZE, backing: 'base' })
  const job = await startStream(b.graph, b.registry, {
    jobId: 's',
    top,
    pool: b.pool,
    nameOf: (node) => node.name,
  })
  await job.done
  expect(job.error).toBeUndefined()
  expect(bodiesOf(job).map((body) => body.done)).toEqual([0, 0])
  expect(top.chainNext).toBeUndefined()
})

test('job / team / stream / every thread takes part', async () => {
  await using b = bench(copyOnReadDriver)
  const base = await b.add({ driver: 'memory', 'node-name': 'base', size: SIZE })
  const writer = await b.guest(base)
  for (let at = 0; at < SIZE; at += 4 * MIB) await writer.pwrite(at, pattern(0x11, 4 * MIB))
  await writer.close()
  const top = await b.add({ driver: 'memory', 'node-name': 'top', size: SIZE, backing: 'base' })
  const guest = await b.guest(top)
  await guest.pwrite(MIB + 512, pattern(0x33, 512))
  const job = await startStream(b.graph, b.registry, {
    jobId: 's',
    top,
    pool: b.pool,
    nameOf: (node) => node.name,
  })
  await job.done
  expect(job.error).toBeUndefined()
  expectShared(bodiesOf(job))
  expect([job.current, top.chainNext]).toEqual([SIZE, undefined])
  expect(isAll(await readAt(guest, MIB + 512, 512), 0x33)).toBe(true)
  expect(isAll(await readAt(guest, MIB + 1024, SIZE - MIB - 1024), 0x11)).toBe(true)
})

test('job / team / backup / two threads copy, and a write meanwhile changes nothing', async () => {
  await using b = bench(copyBeforeWriteDriver)
  const { source, target, guest } = await disks(b)
  const { job, bodies } = await startBackup(b.graph, b.registry, b.pool, {
    jobId: 'b',
    source,
    target,
    sync: 'full',
  })
  for (let i = 0; i < 16 && !job.completed; i++)
    await guest.pwrite(i * 4 * MIB + 100_000, pattern(0x22, 5000))
  await job.done
  expect(job.error).toBeUndefined()
  expectShared(bodies)
  expect(isAll(await readAt(target.driver!, 0, SIZE), 0x11)).toBe(true)
})

test('job / team / pause / both rest within a piece, and both go on', async () => {
  await using b = bench()
  const d = await disks(b)
  const job = await mirror(b, d)
  await until(() => bodiesOf(job).length === 2)
  job.userSetSpeed(32 * MIB)
  job.userPause()
  await until(() => job.status === 'paused')
  const before = bodiesOf(job).map((body) => body.done)
  for (let i = 0; i < 50; i++) await turn()
  expect(bodiesOf(job).map((body) => body.done)).toEqual(before)
  job.userSetSpeed(0)
  job.userResume()
  await until(() => job.ready)
  await job.cancelSync()
})

test('job / team / speed / both together keep it, and a new one reaches both', async () => {
  await using b = bench()
  const d = await disks(b)
  const job = await mirror(b, d)
  await until(() => bodiesOf(job).length === 2)
  job.userSetSpeed(4 * MIB)
  expect(bodiesOf(job).map((body) => body.words.speed)).toEqual([2 * MIB, 2 * MIB])
  job.userSetSpeed(0)
  expect(bodiesOf(job).map((body) => body.words.speed)).toEqual([0, 0])
  await until(() => job.ready)
  await job.cancelSync()
})

test.each([0, 1])('job / team / death / of thread %i ends the job and the other', async (which) => {
  await using b = bench()
  const d = await disks(b)
  const job = await mirror(b, d)
  await until(() => bodiesOf(job).length === 2)
  job.userSetSpeed(MIB)
  bodiesOf(job)[which]?.terminate()
  await job.done
  expect(job.error?.message).toMatch(/^The worker thread of the job ended/)
  expect(d.guest.node).toBe(d.source)
  expect(b.registry.all()).toEqual([])
  for (const node of b.graph.nodes())
    expect([node.gate.inFlight, node.parents.size]).toEqual([0, node === d.source ? 1 : 0])
  const again = await mirror(b, d)
  await until(() => again.ready)
  await again.cancelSync()
})

test('job / team / cancel / by force ends both within a piece', async () => {
  await using b = bench()
  const d = await disks(b)
  const job = await mirror(b, d)
  await until(() => bodiesOf(job).length === 2)
  job.userSetSpeed(1)
  await job.cancelSync()
  expect(job.error?.code).toBe('ECANCELED')
  expect(b.registry.all()).toEqual([])
})
