import { expect, test } from 'vitest'
import type { Job } from '../../../src/job/job.ts'
import type { JobDriver } from '../../../src/job/job-types.ts'
import { JobRegistry } from '../../../src/job/registry.ts'
import { Transaction } from '../../../src/job/transaction.ts'
import { ioError } from '../../../src/util/errors.ts'

/** Jobs that end as they are told to, with what was heard of them. */
class Stage {
  readonly events: string[] = []
  readonly registry = new JobRegistry({
    emit: (name, data) => {
      const { id, device, status, error } = { id: '', device: '', status: '', error: '', ...data }
      this.events.push([name, id || device, status || error].join(' ').trim())
    },
  })

  job(id: string, run: JobDriver['run'], transaction = new Transaction()): Job {
    const driver: JobDriver = { type: 'backup', run }
    return this.registry.create({ id, driver, transaction, autoDismiss: false })
  }

  ends(): string[] {
    return this.events.filter((event) => /COMPLETED|CANCELLED/.test(event))
  }
}

const succeeds = async (): Promise<void> => undefined
const fails = async (): Promise<void> => {
  throw ioError('EIO')
}
const untilCancelled = async (job: Job): Promise<void> => {
  while (!job.forceCancelled) await job.waitKick()
}

test('scenario / jobs / J03 a job that is cancelled before its start is gone at once', async () => {
  const stage = new Stage()
  const job = stage.job('j', succeeds)
  job.cancel(true)
  await job.done
  expect(job.status).toBe('null')
  expect(stage.registry.list()).toEqual([])
  expect(stage.ends()).toEqual([])
  expect(stage.events.at(-1)).toBe('JOB_STATUS_CHANGE j null')
})

const SINGLE = [
  ['succeeds', succeeds, undefined, 'BLOCK_JOB_COMPLETED j'],
  ['fails', fails, 'EIO', 'BLOCK_JOB_COMPLETED j Input/output error'],
  ['is cancelled', untilCancelled, 'ECANCELED', 'BLOCK_JOB_CANCELLED j'],
] as const

for (const [words, run, code, end] of SINGLE) {
  test(`scenario / jobs / J11 a transaction of one job that ${words} ends as the job does`, async () => {
    const stage = new Stage()
    const job = stage.job('j', run)
    job.start()
    if (run === untilCancelled) job.cancel(true)
    await job.done
    expect(job.error?.code).toBe(code)
    expect(job.status).toBe('concluded')
    expect(stage.ends()).toEqual([end])
  })
}

for (const order of ['first', 'last'] as const) {
  test(`scenario / jobs / J13 the failure of the ${order} of two jobs cancels the other`, async () => {
    const stage = new Stage()
    const group = new Transaction()
    const runs = order === 'first' ? [fails, untilCancelled] : [untilCancelled, fails]
    const jobs = runs.map((run) => stage.job(run === fails ? 'bad' : 'good', run, group))
    for (const job of jobs) job.start()
    await Promise.all(jobs.map((job) => job.done))
    expect(stage.ends().sort()).toEqual([
      'BLOCK_JOB_CANCELLED good',
      'BLOCK_JOB_COMPLETED bad Input/output error',
    ])
    for (const job of jobs) job.userDismiss()
    expect(stage.registry.list()).toEqual([])
    // Nothing of it is left in the way of the same jobs.
    const again = ['bad', 'good'].map((id) => stage.job(id, succeeds))
    for (const job of again) job.start()
    await Promise.all(again.map((job) => job.done))
    expect(again.map((job) => job.error)).toEqual([undefined, undefined])
  })
}

test('scenario / jobs / J16 without a group the failure of one job leaves the other alone', async () => {
  const stage = new Stage()
  let release = (): void => undefined
  const later = new Promise<void>((resolve) => {
    release = resolve
  })
  const good = stage.job('good', () => later)
  const bad = stage.job('bad', fails)
  good.start()
  bad.start()
  await bad.done
  expect(good.status).toBe('running')
  release()
  await good.done
  expect(good.error).toBeUndefined()
  expect(bad.error?.code).toBe('EIO')
})
