import { expect, test } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { copyBeforeWriteDriver } from '../../../src/drivers/copy-before-write.ts'
import { startBackup } from '../../../src/job/backup.ts'
import { startCommit } from '../../../src/job/commit.ts'
import type { Job } from '../../../src/job/job.ts'
import { errorAction, ioStatusOf, type OnError } from '../../../src/job/policy.ts'
import { startMirror } from '../../../src/job/start-mirror.ts'
import { BlockError, type ErrorCode } from '../../../src/util/errors.ts'
import { type Bench, bench, isAll, type PlainDisk, pattern, plainDisk, until } from './fixture.ts'

const MIB = 1024 * 1024
const SIZE = 4 * MIB
const POLICIES: readonly OnError[] = ['report', 'ignore', 'enospc', 'stop', 'auto']
const KINDS = ['backup', 'mirror', 'commit'] as const

/** Starts a job of a kind that copies 0x11 onto a disk whose first write fails. */
async function start(b: Bench, kind: (typeof KINDS)[number], policy: OnError): Promise<Job> {
  const { graph, registry, pool } = b
  const target = await b.add({ driver: 'plain', 'node-name': 'target' })
  const backing = kind === 'commit' ? { backing: 'target' } : {}
  const source = await b.add({ driver: 'memory', 'node-name': 'source', size: SIZE, ...backing })
  const guest = await BlockBackend.create(graph, source, { perm: PERM.WRITE, shared: PERM.ALL })
  await guest.pwrite(0, pattern(0x11, SIZE))
  await guest.close()
  const common = { jobId: 'j', source, target, sync: 'full', onTargetError: policy } as const
  if (kind === 'backup') return (await startBackup(graph, registry, pool, common)).job
  if (kind === 'mirror') return startMirror(graph, registry, pool, common)
  return startCommit(graph, registry, pool, {
    jobId: 'j',
    top: source,
    base: target,
    autoComplete: true,
    onError: policy,
  })
}

/** Lets a job go on until it ended in order, and looks at what it left. */
async function expectCopied(job: Job, disk: PlainDisk): Promise<void> {
  await Promise.race([job.done, until(() => job.ready)])
  if (job.driver.type === 'mirror') job.userCancel(false)
  await job.done
  expect(job.error).toBeUndefined()
  expect(isAll(disk.data, 0x11)).toBe(true)
}

for (const kind of KINDS) {
  for (const policy of POLICIES) {
    test.each(['EIO', 'ENOSPC'] as const)(
      `job / policy / ${kind} / ${policy} / %s`,
      async (code) => {
        const disk = plainDisk(SIZE)
        await using b = bench(copyBeforeWriteDriver, disk.definition)
        disk.fail.push(new BlockError(code, 'first write'))
        const job = await start(b, kind, policy)
        const action = errorAction(policy, new BlockError(code, ''))
        if (action === 'stop') {
          await until(() => job.status === 'paused')
          expect([job.ioStatus, job.userPaused, job.busy]).toEqual([
            code === 'ENOSPC' ? 'nospace' : 'failed',
            true,
            false,
          ])
          for (const node of b.graph.nodes())
            expect([node.name, node.gate.inFlight]).toEqual([node.name, 0])
          job.userResume()
          expect(job.ioStatus).toBe('ok')
        }
        if (action === 'report') {
          await job.done
          expect([job.error?.code, job.error?.message]).toEqual([code, 'first write'])
        } else await expectCopied(job, disk)
        expect(b.events.filter((event) => event === 'BLOCK_JOB_ERROR')).toHaveLength(1)
        expect(b.registry.all()).toEqual([])
      },
    )
  }
}

test('job / policy / what each one does about each error', () => {
  const codes: readonly ErrorCode[] = ['EIO', 'ENOSPC', 'EPERM']
  const table = POLICIES.map((policy) => [
    policy,
    ...codes.map((code) => errorAction(policy, new BlockError(code, ''))),
  ])
  expect(table).toEqual([
    ['report', 'report', 'report', 'report'],
    ['ignore', 'ignore', 'ignore', 'ignore'],
    ['enospc', 'report', 'stop', 'report'],
    ['stop', 'stop', 'stop', 'stop'],
    ['auto', 'report', 'stop', 'report'],
  ])
  expect(codes.map((code) => ioStatusOf(new BlockError(code, '')))).toEqual([
    'failed',
    'nospace',
    'failed',
  ])
})
