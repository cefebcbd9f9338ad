import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { fileDriver } from '../../../src/drivers/file.ts'
import { rawDriver } from '../../../src/drivers/raw.ts'
import { startCommit } from '../../../src/job/commit.ts'
import { openFileView } from '../../../src/job/file-view.ts'
import type { Job } from '../../../src/job/job.ts'
import { MirrorDriver } from '../../../src/job/mirror.ts'
import { startMirror } from '../../../src/job/start-mirror.ts'
import { bench, isAll, pattern, plainDisk, until } from './fixture.ts'

const MIB = 1024 * 1024

test('job / file / a worker opens raw files itself and the guest moves onto the base', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'job-'))
  const path = join(folder, 'base.raw')
  writeFileSync(path, pattern(0x11, 4 * MIB))
  try {
    await using b = bench(fileDriver, rawDriver)
    const base = await b.add({
      driver: 'raw',
      'node-name': 'base',
      file: { driver: 'file', filename: path },
    })
    const top = await b.add({
      driver: 'memory',
      'node-name': 'top',
      size: 4 * MIB,
      backing: 'base',
    })
    const guest = await b.guest(top)
    await guest.pwrite(MIB, pattern(0x22, MIB))
    const job = await startCommit(b.graph, b.registry, b.pool, {
      jobId: 'c',
      top,
      base,
      autoComplete: true,
    })
    await job.done
    expect(job.error).toBeUndefined()
    expect(guest.node).toBe(base)
    const data = readFileSync(path)
    expect(isAll(data.subarray(MIB, 2 * MIB), 0x22)).toBe(true)
    expect(isAll(data.subarray(2 * MIB), 0x11)).toBe(true)
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('job / file / another file of the same name is never written', () => {
  const folder = mkdtempSync(join(tmpdir(), 'job-'))
  try {
    const path = join(folder, 'target.raw')
    writeFileSync(path, pattern(0, MIB))
    const description = { kind: 'file', filename: path, size: MIB, readOnly: false }
    expect(() => openFileView({ ...description, identity: '0:0' })).toThrow('another file by now')
    const view = openFileView(description)
    expect(view.length).toBe(MIB)
    view.close()
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('job / file / a file that cannot be opened says so', () => {
  const missing = { kind: 'file', filename: '/nowhere/disk.raw', size: MIB, readOnly: false }
  expect(() => openFileView(missing)).toThrow('No such file or directory')
})

test('job / file / a disk that no worker can open ends the job, nothing hangs', async () => {
  const plain = plainDisk(MIB).definition
  const missing = { kind: 'file', filename: '/nowhere/disk.raw', size: MIB, readOnly: false }
  await using b = bench({
    ...plain,
    open: async (...args) => ({ ...(await plain.open(...args)), describe: () => missing }),
  })
  const source = await b.add({ driver: 'memory', 'node-name': 'source', size: MIB })
  const target = await b.add({ driver: 'plain', 'node-name': 'target' })
  const options = { jobId: 'm', source, target, sync: 'full' } as const
  const job = await startMirror(b.graph, b.registry, b.pool, options)
  await job.done
  expect(job.error?.message).toMatch(/No such file/)
})

test('job / pool / more jobs than threads run side by side', async () => {
  await using b = bench()
  const jobs: Job[] = []
  for (let i = 0; i < 5; i++) {
    const size = 2 * MIB
    const source = await b.add({ driver: 'memory', 'node-name': `s${i}`, size })
    const target = await b.add({ driver: 'memory', 'node-name': `t${i}`, size })
    await (await b.guest(source)).pwrite(0, pattern(i + 1, size))
    const options = { jobId: `j${i}`, source, target, sync: 'full' } as const
    jobs.push(await startMirror(b.graph, b.registry, b.pool, options))
  }
  await until(() => jobs.every((job) => job.ready))
  for (const job of jobs) job.userCancel(false)
  for (const job of jobs) {
    await job.done
    expect(job.error).toBeUndefined()
    expect(job.driver).toBeInstanceOf(MirrorDriver)
  }
  expect(b.pool.threads).toBeLessThanOrEqual(2)
})
