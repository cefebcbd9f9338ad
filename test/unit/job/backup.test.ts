import { expect, test } from 'vitest'
import { copyBeforeWriteDriver } from '../../../src/drivers/copy-before-write.ts'
import { startBackup } from '../../../src/job/backup.ts'
import { insertCopyBeforeWrite } from '../../../src/job/cbw.ts'
import { type Bench, bench, isAll, pattern, readAt } from './fixture.ts'

const MIB = 1024 * 1024

async function setup(b: Bench) {
  const source = await b.add({ driver: 'memory', 'node-name': 'source', size: 4 * MIB })
  const guest = await b.guest(source)
  await guest.pwrite(0, pattern(0x11, 4 * MIB))
  const hidden = await b.add({
    driver: 'memory',
    'node-name': 'hidden',
    size: 4 * MIB,
    backing: 'source',
  })
  return { source, guest, hidden }
}

test('job / backup / none / a worker keeps the old content until cancelled', async () => {
  await using b = bench(copyBeforeWriteDriver)
  const { source, guest, hidden } = await setup(b)
  const { job, filter, bodies } = await startBackup(b.graph, b.registry, b.pool, {
    jobId: 'b',
    source,
    target: hidden,
    sync: 'none',
  })
  expect(bodies).toHaveLength(1)
  await Promise.all(
    Array.from({ length: 32 }, (_, i) => guest.pwrite(i * 100_000, pattern(0x22, 5000))),
  )
  expect(isAll(await readAt(hidden.driver!, 0, 4 * MIB), 0x11)).toBe(true)
  expect(filter.counters.inFlight).toBe(0)
  expect(hidden.gate.inFlight).toBe(0)
  job.userCancel(false)
  await job.done
  expect(guest.node).toBe(source)
  expect(b.events).toContain('BLOCK_JOB_CANCELLED')
  await guest.pwrite(0, pattern(0x33, 512))
})

test('job / backup / none / the death of its worker fails writes that need protection', async () => {
  await using b = bench(copyBeforeWriteDriver)
  const { source, guest, hidden } = await setup(b)
  const node = await insertCopyBeforeWrite(b.graph, source, hidden)
  const results: (string | undefined)[] = []
  const first = await startBackup(b.graph, b.registry, b.pool, {
    internal: true,
    source,
    target: hidden,
    sync: 'none',
    filter: node,
    onDone: (error) => void results.push(error?.message),
  })
  await guest.pwrite(0, pattern(0x22, 512))
  first.bodies[0]?.terminate()
  await first.job.done
  expect(results[0]).toMatch(/^The worker thread of the job ended/)
  await expect(async () => guest.pwrite(MIB, pattern(0x33, 512))).rejects.toThrow(
    "The protection of node 'source' is lost",
  )
  const second = await startBackup(b.graph, b.registry, b.pool, {
    internal: true,
    source,
    target: hidden,
    sync: 'none',
    filter: node,
  })
  await guest.pwrite(MIB, pattern(0x33, 512))
  expect(isAll(await readAt(hidden.driver!, 0, 4 * MIB), 0x11)).toBe(true)
  await second.job.cancelSync()
  await b.graph.removeFilter(node)
  await guest.pwrite(MIB, pattern(0x44, 512))
})

test('job / backup / none / checks come before anything changes', async () => {
  await using b = bench(copyBeforeWriteDriver)
  const { source, hidden } = await setup(b)
  const small = await b.add({ driver: 'memory', 'node-name': 'small', size: MIB })
  const start = (target: typeof source, jobId = 'b') =>
    startBackup(b.graph, b.registry, b.pool, { jobId, source, target, sync: 'none' })
  await expect(start(source)).rejects.toThrow('Source and target cannot be the same')
  await expect(start(small)).rejects.toThrow('Source and target image have different sizes')
  await expect(start(hidden, '!')).rejects.toThrow("Invalid job ID '!'")
  hidden.blockers.block('backup-target', { message: 'no' })
  await expect(start(hidden)).rejects.toThrow("Node 'hidden' is busy: no")
  expect(b.registry.all()).toEqual([])
  expect(b.graph.nodes()).toHaveLength(3)
})
