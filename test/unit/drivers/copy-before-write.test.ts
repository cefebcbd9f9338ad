import { expect, test } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { type DriverDefinition, FLAG, NO_LIMITS, PERM } from '../../../src/block/driver.ts'
import { copyBeforeWriteDriver } from '../../../src/drivers/copy-before-write.ts'
import { copyBeforeWriteOf, insertCopyBeforeWrite } from '../../../src/job/cbw.ts'
import { BlockError } from '../../../src/util/errors.ts'
import { type Bench, bench, isAll, pattern, readAt } from '../job/fixture.ts'

const KIB = 1024

/** A disk whose writes wait for `open`, or fail once with a given error. */
function slowDisk(): { definition: DriverDefinition; waiting: (() => void)[]; fail: BlockError[] } {
  const waiting: (() => void)[] = []
  const fail: BlockError[] = []
  const data = new Uint8Array(1024 * KIB)
  const definition: DriverDefinition = {
    name: 'slow',
    kind: 'protocol',
    async open() {
      return {
        limits: NO_LIMITS,
        writeFlags: 0,
        zeroesFlags: 0,
        length: () => data.length,
        pread: (offset, buf) => void buf.set(data.subarray(offset, offset + buf.length)),
        async pwrite(offset, buf) {
          await new Promise<void>((resolve) => waiting.push(resolve))
          const error = fail.shift()
          if (error !== undefined) throw error
          data.set(buf, offset)
        },
        close: () => undefined,
      }
    },
  }
  return { definition, waiting, fail }
}

const idle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

async function setup(b: Bench, target: 'memory' | 'slow') {
  const source = await b.add({ driver: 'memory', 'node-name': 'source', size: 1024 * KIB })
  const guest = await b.guest(source)
  await guest.pwrite(0, pattern(0x11, 1024 * KIB))
  const hidden = await b.add(
    target === 'slow'
      ? { driver: 'slow', 'node-name': 'hidden' }
      : { driver: 'memory', 'node-name': 'hidden', size: 1024 * KIB, backing: 'source' },
  )
  const node = await insertCopyBeforeWrite(b.graph, source, hidden)
  const snapshot = await BlockBackend.create(b.graph, hidden, {
    perm: PERM.CONSISTENT_READ,
    shared: PERM.ALL,
  })
  const close = async (): Promise<void> => {
    await snapshot.close()
    await b.graph.removeFilter(node)
  }
  return { source, hidden, guest, node, filter: copyBeforeWriteOf(node), snapshot, close }
}

test('drivers / copy-before-write / the target keeps what was there before', async () => {
  await using b = bench(copyBeforeWriteDriver)
  const s = await setup(b, 'memory')
  await s.guest.pwrite(100 * KIB, pattern(0x22, 8 * KIB))
  await s.guest.pwriteZeroes(300 * KIB, 4 * KIB)
  expect((await readAt(s.guest, 100 * KIB, 1))[0]).toBe(0x22)
  expect(isAll(await readAt(s.snapshot, 0, 1024 * KIB), 0x11)).toBe(true)
  expect(s.filter.counters).toMatchObject({ epochBytes: 128 * KIB, inFlight: 0 })
  await s.close()
})

test('drivers / copy-before-write / a checkpoint begins a new epoch', async () => {
  await using b = bench(copyBeforeWriteDriver)
  const s = await setup(b, 'memory')
  await s.guest.pwrite(0, pattern(0x22, 4 * KIB))
  await b.graph.withDrained(s.node, async () => {
    await s.filter.whenIdle()
    await s.hidden.driver?.makeEmpty?.()
    s.filter.resetAll()
  })
  await s.guest.pwrite(0, pattern(0x33, 4 * KIB))
  expect((await readAt(s.snapshot, 0, 1))[0]).toBe(0x22)
  expect((await readAt(s.guest, 0, 1))[0]).toBe(0x33)
  await s.close()
})

test('drivers / copy-before-write / one copy for writers that meet in a cluster', async () => {
  const disk = slowDisk()
  await using b = bench(copyBeforeWriteDriver, disk.definition)
  const s = await setup(b, 'slow')
  const writes = [s.guest.pwrite(0, pattern(0x22, 512)), s.guest.pwrite(4096, pattern(0x33, 512))]
  await idle()
  expect(disk.waiting).toHaveLength(1)
  expect((await readAt(s.source.driver!, 0, 1))[0]).toBe(0x11)
  disk.waiting.shift()?.()
  await Promise.all(writes)
  expect((await readAt(s.guest, 0, 1))[0]).toBe(0x22)
  expect((await readAt(s.guest, 4096, 1))[0]).toBe(0x33)
  expect((await readAt(s.snapshot, 0, 1))[0]).toBe(0x11)
  await s.close()
})

test('drivers / copy-before-write / a failed copy fails only the write that asked', async () => {
  const disk = slowDisk()
  await using b = bench(copyBeforeWriteDriver, disk.definition)
  const s = await setup(b, 'slow')
  disk.fail.push(new BlockError('ENOSPC', 'full'))
  const first = s.guest.pwrite(0, pattern(0x22, 512))
  const second = s.guest.pwrite(4096, pattern(0x33, 512))
  await idle()
  disk.waiting.shift()?.()
  await expect(first).rejects.toMatchObject({ code: 'ENOSPC' })
  await idle()
  disk.waiting.shift()?.()
  await second
  expect((await readAt(s.guest, 0, 1))[0]).toBe(0x11)
  expect((await readAt(s.guest, 4096, 1))[0]).toBe(0x33)
  expect(s.filter.counters).toMatchObject({ failures: 1, inFlight: 0 })
  await s.close()
})

test('drivers / copy-before-write / a reader of the target waits for a copy in its way', async () => {
  const disk = slowDisk()
  await using b = bench(copyBeforeWriteDriver, disk.definition)
  const s = await setup(b, 'slow')
  const write = s.guest.pwrite(0, pattern(0x22, 512))
  await idle()
  let read = false
  const reader = readAt(s.snapshot, 0, 512).then((buf) => {
    read = true
    return buf
  })
  await idle()
  expect(read).toBe(false)
  disk.waiting.shift()?.()
  await write
  expect((await reader)[0]).toBe(0x11)
  await s.close()
})

test('drivers / copy-before-write / write-unchanged and reads copy nothing', async () => {
  await using b = bench(copyBeforeWriteDriver)
  const s = await setup(b, 'memory')
  await s.guest.pwrite(0, pattern(0x11, 512), FLAG.WRITE_UNCHANGED)
  await readAt(s.guest, 0, 512)
  expect(s.filter.counters.totalBytes).toBe(0)
  await s.close()
})

test('drivers / copy-before-write / lost protection fails every write until armed again', async () => {
  await using b = bench(copyBeforeWriteDriver)
  const s = await setup(b, 'memory')
  await s.guest.pwrite(0, pattern(0x22, 512))
  s.filter.loseProtection(new BlockError('EIO', 'the worker died'))
  await expect(async () => s.guest.pwrite(0, pattern(0x33, 512))).rejects.toThrow(
    "The protection of node 'source' is lost: the worker died",
  )
  expect((await readAt(s.guest, 0, 1))[0]).toBe(0x22)
  s.filter.rearm()
  await s.guest.pwrite(0, pattern(0x33, 512))
  expect((await readAt(s.guest, 0, 1))[0]).toBe(0x33)
  await s.close()
})

test('drivers / copy-before-write / other writers of the source are refused', async () => {
  await using b = bench(copyBeforeWriteDriver)
  const s = await setup(b, 'memory')
  await expect(
    BlockBackend.create(b.graph, s.source, { perm: PERM.WRITE, shared: PERM.ALL }),
  ).rejects.toMatchObject({ code: 'EPERM' })
  await s.close()
})
