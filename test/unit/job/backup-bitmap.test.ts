import { expect, test } from 'vitest'
import type { BlockBackend } from '../../../src/block/backend.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { copyBeforeWriteDriver } from '../../../src/drivers/copy-before-write.ts'
import { startBackup } from '../../../src/job/backup.ts'
import type { BitmapMode } from '../../../src/job/backup-bitmap.ts'
import { startCommit } from '../../../src/job/commit.ts'
import { Random } from '../../../src/util/random.ts'
import { type Bench, bench, pattern, readAt } from './fixture.ts'

const KIB = 1024
const SIZE = 2 * KIB * KIB
const REGION = 64 * KIB

async function setup(b: Bench) {
  const source = await b.add({ driver: 'memory', 'node-name': 'source', size: SIZE })
  const target = await b.add({ driver: 'memory', 'node-name': 'target', size: SIZE })
  return { source, target, guest: await b.guest(source) }
}

/** Regions that differ between the disks. */
async function differing(a: BlockNode, b: BlockNode): Promise<number[]> {
  const [left, right] = [await readAt(a.driver!, 0, SIZE), await readAt(b.driver!, 0, SIZE)]
  const regions: number[] = []
  for (let at = 0; at < SIZE; at += REGION)
    if (Buffer.compare(left.subarray(at, at + REGION), right.subarray(at, at + REGION)) !== 0)
      regions.push(at / REGION)
  return regions
}

/** Writes until told to stop; settles when the last write ended. */
function scribble(guest: BlockBackend, random: Random): () => Promise<void> {
  let stop = false
  const work = async (): Promise<void> => {
    while (!stop) {
      const offset = random.int(SIZE - 9000)
      await guest.pwrite(offset, pattern(random.int(256), 1 + random.int(9000)))
      await new Promise((resolve) => setImmediate(resolve))
    }
  }
  const done = work()
  return () => {
    stop = true
    return done
  }
}

for (const granularity of [4096, 65536, 262144])
  for (const seed of [1, 2])
    test(`job / backup / bitmap / what an increment missed is dirty after it (${granularity}, seed ${seed})`, async () => {
      await using b = bench(copyBeforeWriteDriver)
      const random = new Random(seed)
      const { source, target, guest } = await setup(b)
      const bitmap = source.bitmaps.add({ name: 'b', granularity })
      const stop = scribble(guest, random)
      for (let round = 0; round < 6; round++) {
        const mode: BitmapMode = round % 2 === 0 ? 'on-success' : 'always'
        const { job } = await startBackup(b.graph, b.registry, b.pool, {
          jobId: 'j',
          source,
          target,
          sync: 'bitmap',
          bitmap: { bitmap, mode },
        })
        if (random.int(3) === 0) job.cancel(true)
        await job.done
        expect(bitmap.busy).toBe(false)
      }
      await stop()
      const differ = await differing(source, target)
      const missed = differ.filter((region) => !bitmap.bits.get(region * REGION))
      // A granule smaller than a region marks only the part that was written.
      const truly = missed.filter((region) => {
        const next = bitmap.bits.nextDirty(region * REGION)
        return next === undefined || next.offset >= (region + 1) * REGION
      })
      expect(truly).toEqual([])
    })

test('job / backup / bitmap / only dirty clusters are copied, before a write too', async () => {
  await using b = bench(copyBeforeWriteDriver)
  const { source, target, guest } = await setup(b)
  await guest.pwrite(0, pattern(1, SIZE))
  const bitmap = source.bitmaps.add({ name: 'b', granularity: REGION })
  await guest.pwrite(3 * REGION, pattern(2, 10))
  const { job } = await startBackup(b.graph, b.registry, b.pool, {
    jobId: 'j',
    source,
    target,
    sync: 'bitmap',
    bitmap: { bitmap, mode: 'on-success' },
    autoFinalize: false,
  })
  await guest.pwrite(7 * REGION, pattern(3, 10))
  while (job.status !== 'pending') await new Promise((resolve) => setImmediate(resolve))
  expect([bitmap.bits.count, bitmap.busy]).toEqual([1, true])
  await job.userFinalize()
  expect([bitmap.bits.count, bitmap.bits.get(7 * REGION)]).toEqual([1, true])
  const copied = (await readAt(target.driver!, 0, SIZE)).findIndex((byte) => byte !== 0)
  expect(copied).toBe(3 * REGION)
  expect((await readAt(target.driver!, 7 * REGION, 1))[0]).toBe(0)
})

test('job / backup / bitmap / a full backup cleans the bitmap when it succeeds', async () => {
  await using b = bench(copyBeforeWriteDriver)
  const { source, target, guest } = await setup(b)
  const bitmap = source.bitmaps.add({ name: 'b', granularity: REGION })
  await guest.pwrite(0, pattern(1, SIZE))
  const { job } = await startBackup(b.graph, b.registry, b.pool, {
    jobId: 'j',
    source,
    target,
    sync: 'full',
    bitmap: { bitmap, mode: 'on-success' },
  })
  await job.done
  expect([bitmap.bits.count, await differing(source, target)]).toEqual([0, []])
})

test('job / commit / bitmap / a bitmap of the base hears what a worker writes there', async () => {
  await using b = bench()
  const base = await b.add({ driver: 'memory', 'node-name': 'base', size: SIZE })
  const bitmap = base.bitmaps.add({ name: 'b', granularity: REGION })
  const top = await b.add({ driver: 'memory', 'node-name': 'top', size: SIZE, backing: 'base' })
  const guest = await b.guest(top)
  await guest.pwrite(3 * REGION, pattern(1, REGION))
  const options = { jobId: 'c', top, base, autoComplete: true }
  const job = await startCommit(b.graph, b.registry, b.pool, options)
  await job.done
  expect((await readAt(base.driver!, 3 * REGION, 1))[0]).toBe(1)
  expect([bitmap.bits.count, bitmap.bits.get(3 * REGION)]).toEqual([1, true])
})
