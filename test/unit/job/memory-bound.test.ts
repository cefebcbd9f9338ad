import { expect, test } from 'vitest'
import type { DriverDefinition } from '../../../src/block/driver.ts'
import { NO_LIMITS } from '../../../src/block/driver.ts'
import { copyBeforeWriteDriver } from '../../../src/drivers/copy-before-write.ts'
import { startBackup } from '../../../src/job/backup.ts'
import { startMirror } from '../../../src/job/start-mirror.ts'
import { type Bench, bench, turn, until } from './fixture.ts'

const MIB = 1024 * 1024
const SIZE = 256 * MIB
const BOUND = 64 * MIB

/** Disks that hold nothing and count the bytes of the buffers that are theirs at a time. */
function countingDisks(): { readonly definition: DriverDefinition; readonly most: () => number } {
  let now = 0
  let most = 0
  const use = async (buf: Uint8Array): Promise<void> => {
    now += buf.length
    most = Math.max(most, now)
    for (let i = 0; i < 3; i++) await turn()
    now -= buf.length
  }
  const definition: DriverDefinition = {
    name: 'counting',
    kind: 'protocol',
    async open() {
      return {
        limits: NO_LIMITS,
        writeFlags: 0,
        zeroesFlags: 0,
        length: () => SIZE,
        pread: (_offset, buf) => use(buf),
        pwrite: (_offset, buf) => use(buf),
        reopenPrepare: () => ({ commit: () => undefined, abort: () => undefined }),
        close: () => undefined,
      }
    },
  }
  return { definition, most: () => most }
}

async function pair(b: Bench) {
  const source = await b.add({ driver: 'counting', 'node-name': 'source' })
  const target = await b.add({ driver: 'counting', 'node-name': 'target' })
  return { jobId: 'j', source, target, sync: 'full' } as const
}

test('job / memory / a backup has no more than its bound in flight', async () => {
  const disks = countingDisks()
  await using b = bench(copyBeforeWriteDriver, disks.definition)
  const { job } = await startBackup(b.graph, b.registry, b.pool, await pair(b))
  await job.done
  expect(job.error).toBeUndefined()
  expect(disks.most()).toBeGreaterThan(MIB)
  expect(disks.most()).toBeLessThanOrEqual(BOUND)
}, 60_000)

test('job / memory / a mirror has no more than its bound in flight', async () => {
  const disks = countingDisks()
  await using b = bench(disks.definition)
  const job = await startMirror(b.graph, b.registry, b.pool, await pair(b))
  await until(() => job.ready)
  expect(disks.most()).toBeLessThanOrEqual(BOUND)
  await job.cancelSync()
}, 60_000)
