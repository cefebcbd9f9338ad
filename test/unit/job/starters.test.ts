import { expect, test, vi } from 'vitest'
import {
  PERM,
  Runtime,
  startBackup,
  startCommit,
  startMirror,
  startStream,
} from '../../../src/index.ts'
import { pattern, readAt } from './fixture.ts'

const MIB = 1024 * 1024

async function disks(runtime: Runtime, size: number): Promise<void> {
  await runtime.addNode({ driver: 'memory', 'node-name': 'source', size })
  await runtime.addNode({ driver: 'memory', 'node-name': 'target', size })
  const guest = await runtime.openBackend('source')
  await guest.pwrite(0, pattern(0x11, size))
  await guest.close()
}

test('job / starters / the example prints what it says', async () => {
  const log = vi.spyOn(console, 'log').mockImplementation(() => {})
  try {
    await import('../../../examples/jobs.ts')
    expect(log.mock.calls.map((words) => words.join(' '))).toEqual([
      'saved holds monday',
      'twin holds sunday',
      'copy has nothing below it',
      'the guest is on base',
    ])
  } finally {
    log.mockRestore()
  }
})

test('job / starters / a handle pauses, resumes and tells how far the job is', async () => {
  await using runtime = await Runtime.create()
  await disks(runtime, 4 * MIB)
  const job = await startBackup(runtime, { source: 'source', target: 'target', speed: MIB })
  expect([job.id, job.status]).toEqual(['backup0', 'running'])
  job.pause()
  expect(() => job.pause()).toThrow('Job is already paused')
  job.setSpeed(0)
  job.resume()
  await job.done
  expect(job.status).toBe('null')
  expect(job.progress).toEqual({ current: 4 * MIB, total: 4 * MIB })
  const target = await runtime.openBackend('target')
  expect(Buffer.compare(await readAt(target, 0, 4 * MIB), pattern(0x11, 4 * MIB))).toBe(0)
})

test('job / starters / a signal cancels its job, and one aborted before starts none', async () => {
  await using runtime = await Runtime.create()
  await disks(runtime, 4 * MIB)
  const names = { source: 'source', target: 'target' }
  const control = new AbortController()
  const job = await startMirror(runtime, { ...names, signal: control.signal })
  await job.ready
  control.abort()
  await expect(job.done).rejects.toMatchObject({ code: 'ECANCELED' })
  const late = startBackup(runtime, { ...names, signal: control.signal })
  await expect(late).rejects.toMatchObject({ code: 'ECANCELED' })
  expect(runtime.jobs.all()).toEqual([])
})

test('job / starters / a job cancelled before it was ready rejects whoever waits for that', async () => {
  await using runtime = await Runtime.create()
  await disks(runtime, 4 * MIB)
  const job = await startMirror(runtime, { source: 'source', target: 'target', speed: 1 })
  const ready = expect(job.ready).rejects.toMatchObject({ code: 'ECANCELED' })
  await job.cancel()
  await ready
})

test('job / starters / leaving the scope of a handle ends its job', async () => {
  await using runtime = await Runtime.create()
  await disks(runtime, 4 * MIB)
  {
    await using job = await startBackup(runtime, {
      source: 'source',
      target: 'target',
      sync: 'none',
    })
    expect(job.status).toBe('running')
  }
  expect(runtime.jobs.all()).toEqual([])
  // Nothing of the job is left: the disk can be taken for oneself alone.
  const alone = await runtime.openBackend('source', { shared: PERM.CONSISTENT_READ })
  await alone.close()
})

test('job / starters / a mirror that is completed moves its users', async () => {
  await using runtime = await Runtime.create()
  await disks(runtime, 4 * MIB)
  const guest = await runtime.openBackend('source')
  const job = await startMirror(runtime, { source: 'source', target: 'target' })
  await job.ready
  await job.complete()
  expect(guest.node.name).toBe('target')
})

test('job / starters / names that say nothing are refused', async () => {
  await using runtime = await Runtime.create()
  await disks(runtime, MIB)
  const refused = { code: 'EINVAL' }
  await expect(startCommit(runtime, { top: 'source' })).rejects.toMatchObject(refused)
  await expect(startStream(runtime, { top: 'nobody' })).rejects.toMatchObject(refused)
  await expect(startBackup(runtime, { source: 'source', target: 'source' })).rejects.toMatchObject(
    refused,
  )
  expect(runtime.jobs.all()).toEqual([])
})
