import { expect, test } from 'vitest'
import { copyBeforeWriteDriver } from '../../../src/drivers/copy-before-write.ts'
import { startBackup } from '../../../src/job/backup.ts'
import { queryBlockJobs } from '../../../src/job/info.ts'
import { type MirrorOptions, startMirror } from '../../../src/job/start-mirror.ts'
import { BlockError } from '../../../src/util/errors.ts'
import { type Bench, bench, isAll, pattern, plainDisk, readAt, turn, until } from './fixture.ts'

const MIB = 1024 * 1024

async function pair(b: Bench, size = 4 * MIB, targetDriver = 'memory') {
  const source = await b.add({ driver: 'memory', 'node-name': 'source', size })
  const guest = await b.guest(source)
  await guest.pwrite(0, pattern(0x11, size))
  const target = await b.add({ driver: targetDriver, 'node-name': 'target', size })
  return {
    source,
    guest,
    target,
    mirror: (more: Partial<MirrorOptions> = {}) =>
      startMirror(b.graph, b.registry, b.pool, {
        jobId: 'm',
        source,
        target,
        sync: 'full',
        ...more,
      }),
  }
}

test('job / mirror / full / a soft cancel leaves an equal copy and no pivot', async () => {
  await using b = bench()
  const p = await pair(b)
  const job = await p.mirror()
  await until(() => job.ready)
  await p.guest.pwrite(MIB, pattern(0x22, 512))
  expect(queryBlockJobs(b.registry)[0]).toMatchObject({ type: 'mirror', ready: true })
  job.userCancel(false)
  await job.done
  expect(job.error).toBeUndefined()
  expect(p.guest.node).toBe(p.source)
  const copy = await readAt(p.target.driver!, 0, 4 * MIB)
  expect(Buffer.compare(copy, await readAt(p.guest, 0, 4 * MIB))).toBe(0)
})

test('job / mirror / full / complete moves the guest', async () => {
  const disk = plainDisk(4 * MIB)
  await using b = bench(disk.definition)
  const p = await pair(b, 4 * MIB, 'plain')
  const job = await p.mirror()
  await until(() => job.ready)
  job.userComplete()
  await job.done
  expect(job.error).toBeUndefined()
  expect(p.guest.node).toBe(p.target)
  expect(isAll(disk.data, 0x11)).toBe(true)
})

test('job / mirror / none / is ready at once and copies what is written', async () => {
  await using b = bench()
  const p = await pair(b)
  const job = await p.mirror({ sync: 'none' })
  await until(() => job.ready)
  await p.guest.pwrite(MIB, pattern(0x22, 65536))
  job.userCancel(false)
  await job.done
  expect((await readAt(p.target.driver!, MIB, 1))[0]).toBe(0x22)
  expect((await readAt(p.target.driver!, 0, 1))[0]).toBe(0)
})

test('job / mirror / force / cancels a ready mirror', async () => {
  await using b = bench()
  const p = await pair(b)
  const job = await p.mirror()
  await until(() => job.ready)
  job.userCancel(true)
  await job.done
  expect(job.error?.code).toBe('ECANCELED')
  expect(b.events).toContain('BLOCK_JOB_CANCELLED')
})

test('job / mirror / error / stop pauses and resume goes on', async () => {
  const disk = plainDisk(4 * MIB)
  await using b = bench(disk.definition)
  const p = await pair(b, 4 * MIB, 'plain')
  disk.fail.push(new BlockError('ENOSPC', 'full'))
  const job = await p.mirror({ onTargetError: 'enospc' })
  await until(() => job.status === 'paused')
  expect(queryBlockJobs(b.registry)[0]).toMatchObject({ 'io-status': 'nospace' })
  job.userResume()
  await until(() => job.ready)
  expect(isAll(disk.data, 0x11)).toBe(true)
})

test('job / mirror / convergence / a guest that outruns the copy is held until it is ready', async () => {
  const disk = plainDisk(4 * MIB)
  await using b = bench(disk.definition)
  const p = await pair(b, 4 * MIB, 'plain')
  const job = await p.mirror()
  let over = false
  let writes = 0
  // A round of the copy takes many turns; each of them dirties regions all over the disk.
  const guests = Array.from({ length: 8 }, async (_, n) => {
    for (let i = 0; !over; i++) {
      await p.guest.pwrite(((i * 8 + n) % 64) * 65536, pattern(i & 0xff, 65536))
      writes += 1
      await turn()
    }
  })
  await until(() => job.ready)
  const before = writes
  await until(() => writes > before)
  job.userComplete()
  await job.done
  over = true
  await Promise.all(guests)
  expect(job.error).toBeUndefined()
  expect(p.guest.node).toBe(p.target)
  expect(writes).toBeGreaterThan(0)
})

test('job / mirror / convergence / a pause lets held writes go', async () => {
  const disk = plainDisk(4 * MIB)
  await using b = bench(disk.definition)
  const p = await pair(b, 4 * MIB, 'plain')
  const job = await p.mirror()
  let over = false
  const guest = async (): Promise<void> => {
    for (let i = 0; !over; i++) {
      await p.guest.pwrite((i % 64) * 65536, pattern(i & 0xff, 65536))
      await turn()
    }
  }
  const writing = guest()
  job.userPause()
  await until(() => job.status === 'paused' || job.status === 'standby')
  // Nobody copies now, and still every write of the guest ends.
  await p.guest.pwrite(0, pattern(1, 65536))
  await p.guest.pwrite(0, pattern(2, 65536))
  over = true
  await writing
  job.userResume()
  await until(() => job.ready)
  await job.cancelSync()
})

test('job / mirror / checks / have the known sentences', async () => {
  await using b = bench()
  const p = await pair(b)
  await expect(p.mirror({ target: p.source })).rejects.toThrow("Can't mirror node into itself")
  await expect(p.mirror({ granularity: 3 * 512 })).rejects.toThrow('expects a power of 2')
  await expect(p.mirror({ granularity: 256 })).rejects.toThrow('in range [512B, 64MB]')
  await expect(p.mirror({ replaces: 'nope' })).rejects.toThrow("node-name='nope'")
  const small = await b.add({ driver: 'memory', 'node-name': 'small', size: MIB })
  const job = await p.mirror({ target: small })
  await job.done
  expect(job.error?.message).toBe('Source and target image have different sizes')
  expect(p.guest.node).toBe(p.source)
})

test('job / backup / full / the target is the source as it was at the start', async () => {
  await using b = bench(copyBeforeWriteDriver)
  const p = await pair(b, 16 * MIB)
  const { job } = await startBackup(b.graph, b.registry, b.pool, {
    jobId: 'b',
    source: p.source,
    target: p.target,
    sync: 'full',
    speed: 32 * MIB,
  })
  let over = false
  void job.done.then(() => {
    over = true
  })
  for (let i = 0; !over; i = (i + 7) % 4096) {
    await p.guest.pwrite(i * 4096, pattern(0x22, 4096))
    await turn()
    if (i % 64 === 0 && job.status === 'running') job.userSetSpeed(0)
    if (over) break
  }
  expect(job.error).toBeUndefined()
  expect(isAll(await readAt(p.target.driver!, 0, 16 * MIB), 0x11)).toBe(true)
  expect(b.events).toContain('BLOCK_JOB_COMPLETED')
})

test('job / backup / full / an error of the target ends it', async () => {
  const disk = plainDisk(4 * MIB)
  await using b = bench(copyBeforeWriteDriver, disk.definition)
  const p = await pair(b, 4 * MIB, 'plain')
  disk.fail.push(new BlockError('EIO', 'broken'))
  const { job } = await startBackup(b.graph, b.registry, b.pool, {
    jobId: 'b',
    source: p.source,
    target: p.target,
    sync: 'full',
  })
  await job.done
  expect(job.error?.message).toBe('broken')
  expect(b.events).toContain('BLOCK_JOB_ERROR')
  await p.guest.pwrite(0, pattern(0x22, 512))
  expect(p.guest.node).toBe(p.source)
})

test('job / mirror / write-blocking / a write that ended is on the target', async () => {
  const disk = plainDisk(4 * MIB)
  await using b = bench(disk.definition)
  const p = await pair(b, 4 * MIB, 'plain')
  const job = await p.mirror({ copyMode: 'write-blocking' })
  await until(() => job.ready)
  for (let i = 0; i < 8; i++) {
    await p.guest.pwrite(i * 65536 + 512, pattern(0x20 + i, 4096))
    expect(disk.data[i * 65536 + 512]).toBe(0x20 + i)
  }
  job.userCancel(false)
  await job.done
  expect(job.error).toBeUndefined()
})

test('job / mirror / write-blocking / a drain, a pause and a failing target hold no write', async () => {
  const disk = plainDisk(4 * MIB)
  await using b = bench(disk.definition)
  const p = await pair(b, 4 * MIB, 'plain')
  const job = await p.mirror({ copyMode: 'write-blocking' })
  await until(() => job.ready)
  const held = p.guest.pwrite(MIB, pattern(0x33, 4096))
  await b.graph.drainedBegin(p.source)
  await held
  b.graph.drainedEnd(p.source)
  job.userPause()
  await until(() => job.status === 'standby')
  await p.guest.pwrite(2 * MIB, pattern(0x34, 4096))
  disk.fail.push(new BlockError('EIO', 'broken'))
  job.userResume()
  await p.guest.pwrite(3 * MIB, pattern(0x35, 4096))
  await job.done
  expect(job.error?.code).toBe('EIO')
  expect((await readAt(p.guest, 3 * MIB, 1))[0]).toBe(0x35)
  expect(p.guest.node).toBe(p.source)
})
