import { expect, test } from 'vitest'
import { copyBeforeWriteDriver } from '../../../src/drivers/copy-before-write.ts'
import { snapshotAccessDriver } from '../../../src/drivers/snapshot-access.ts'
import { startBackup } from '../../../src/job/backup.ts'
import { insertCopyBeforeWrite } from '../../../src/job/cbw.ts'
import { type Bench, bench, isAll, pattern, readAt } from './fixture.ts'

const MIB = 1024 * 1024
const SIZE = 4 * MIB

/** A disk of 0x11 whose moment is kept in `temp` and shown by `snapshot`. */
async function fleece(b: Bench) {
  const size = SIZE
  const disk = await b.add({ driver: 'memory', 'node-name': 'disk', size })
  const guest = await b.guest(disk)
  await guest.pwrite(0, pattern(0x11, size))
  const temp = await b.add({ driver: 'memory', 'node-name': 'temp', size, discard: 'unmap' })
  const filter = await insertCopyBeforeWrite(b.graph, disk, temp, { nodeName: 'cbw' })
  const snapshot = await b.add({
    driver: 'snapshot-access',
    'node-name': 'snapshot',
    discard: 'unmap',
    file: 'cbw',
  })
  const target = await b.add({ driver: 'memory', 'node-name': 'target', size })
  const backup = (discardSource: boolean) =>
    startBackup(b.graph, b.registry, b.pool, {
      jobId: 'b',
      source: snapshot,
      target,
      sync: 'full',
      discardSource,
    })
  /** Bytes of `temp` that hold anything. */
  const kept = async (): Promise<number> => {
    let bytes = 0
    for (let at = 0; at < size; ) {
      const run = await temp.driver?.blockStatus?.(at, size - at)
      if (run === undefined) throw new Error('memory tells its status')
      if (run.flags !== 0) bytes += run.bytes
      at += run.bytes
    }
    return bytes
  }
  const end = async (): Promise<void> => {
    await b.graph.remove('snapshot')
    await b.graph.removeFilter(filter)
  }
  return { guest, snapshot, target, backup, kept, end }
}

test('job / backup / discard-source / the moment is given up as it is copied', async () => {
  await using b = bench(copyBeforeWriteDriver, snapshotAccessDriver)
  const f = await fleece(b)
  await f.guest.pwrite(MIB, pattern(0x22, MIB))
  expect(await f.kept()).toBe(MIB)
  const { job } = await f.backup(true)
  await job.done
  expect(job.error).toBeUndefined()
  expect(isAll(await readAt(f.target.driver!, 0, SIZE), 0x11)).toBe(true)
  expect(await f.kept()).toBe(0)
  // Nobody needs the moment any more: a write saves nothing, and a reader is told.
  await f.guest.pwrite(2 * MIB, pattern(0x33, MIB))
  expect(await f.kept()).toBe(0)
  await expect(async () => f.snapshot.driver?.pread(0, new Uint8Array(512))).rejects.toMatchObject({
    code: 'EACCES',
  })
  await f.end()
})

test('job / backup / discard-source / without it the moment stays', async () => {
  await using b = bench(copyBeforeWriteDriver, snapshotAccessDriver)
  const f = await fleece(b)
  await f.guest.pwrite(MIB, pattern(0x22, MIB))
  const { job } = await f.backup(false)
  await job.done
  expect(job.error).toBeUndefined()
  expect(await f.kept()).toBe(MIB)
  expect(isAll(await readAt(f.snapshot.driver!, 0, SIZE), 0x11)).toBe(true)
  await f.end()
})
