import { describe, expect, test } from 'vitest'
import { queryBlockJobs, queryJobs } from '../../../src/job/info.ts'
import type { JobDriver, JobHost } from '../../../src/job/job-types.ts'
import { blockJobCancel, JobRegistry } from '../../../src/job/registry.ts'
import { Transaction } from '../../../src/job/transaction.ts'
import { BlockError } from '../../../src/util/errors.ts'

interface Seen {
  readonly registry: JobRegistry
  readonly events: string[]
}

function setup(): Seen {
  const events: string[] = []
  const host: JobHost = {
    emit: (name, data) => {
      if ('status' in data) events.push(data.status)
      else events.push('error' in data ? `${name}!` : name)
    },
  }
  return { registry: new JobRegistry(host), events }
}

class Gate {
  open!: () => void
  readonly opened = new Promise<void>((resolve) => {
    this.open = resolve
  })
}

function driver(run: JobDriver['run'], more: Partial<JobDriver> = {}): JobDriver {
  return { type: 'backup', run, ...more }
}

const idle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

describe('job', () => {
  test('job / success / goes through every status in order', async () => {
    const { registry, events } = setup()
    const job = registry.create({ id: 'j', driver: driver(async () => undefined) })
    job.start()
    await job.done
    expect(events).toEqual([
      'created',
      'running',
      'waiting',
      'pending',
      'BLOCK_JOB_COMPLETED',
      'concluded',
      'null',
    ])
    expect(registry.all()).toEqual([])
  })

  test('job / internal / is invisible and silent', async () => {
    const { registry, events } = setup()
    const gate = new Gate()
    const job = registry.create({ internal: true, driver: driver(() => gate.opened) })
    job.start()
    expect(queryJobs(registry)).toEqual([])
    expect(registry.all()).toHaveLength(1)
    gate.open()
    await job.done
    expect(events).toEqual([])
  })

  test('job / error / is reported in the event and in the result', async () => {
    const { registry, events } = setup()
    const seen: (string | undefined)[] = []
    const job = registry.create({
      id: 'j',
      autoDismiss: false,
      driver: driver(async () => {
        throw new BlockError('EIO', 'the disk is gone')
      }),
      onDone: (error) => void seen.push(error?.message),
    })
    job.start()
    await job.done
    expect(events).toEqual(['created', 'running', 'aborting', 'BLOCK_JOB_COMPLETED!', 'concluded'])
    expect(seen).toEqual(['the disk is gone'])
    expect(queryJobs(registry)[0]).toMatchObject({ status: 'concluded', error: 'the disk is gone' })
    job.userDismiss()
    expect(queryJobs(registry)).toEqual([])
  })

  test('job / cancel / ends a waiting body with ECANCELED', async () => {
    const { registry, events } = setup()
    const job = registry.create({
      id: 'j',
      driver: driver(async (self) => {
        while (!self.forceCancelled) await self.waitKick()
      }),
    })
    job.start()
    await idle()
    job.userCancel(false)
    await job.done
    expect(job.error?.code).toBe('ECANCELED')
    expect(events).toEqual([
      'created',
      'running',
      'aborting',
      'BLOCK_JOB_CANCELLED',
      'concluded',
      'null',
    ])
  })

  test('job / cancel / before the start needs no event of the end', async () => {
    const { registry, events } = setup()
    const job = registry.create({ id: 'j', driver: driver(async () => undefined) })
    await job.cancelSync()
    expect(events).toEqual(['created', 'aborting', 'concluded', 'null'])
  })

  test('job / pause / rests at the pause point and shows it', async () => {
    const { registry, events } = setup()
    const gate = new Gate()
    const job = registry.create({
      id: 'j',
      driver: driver(async (self) => {
        await gate.opened
        await self.pausePoint()
      }),
    })
    job.start()
    job.userPause()
    expect(() => job.userPause()).toThrow('Job is already paused')
    expect(job.busy).toBe(true)
    gate.open()
    await idle()
    expect(job.busy).toBe(false)
    expect(job.status).toBe('paused')
    expect(() => blockJobCancel(job, false)).toThrow(
      "The block job for device 'j' is currently paused",
    )
    job.userResume()
    await job.done
    expect(events.slice(0, 5)).toEqual(['created', 'running', 'paused', 'running', 'waiting'])
    expect(job.pauseCount).toBe(0)
  })

  test('job / pause / by drain does not show and ends with the drain', async () => {
    const { registry, events } = setup()
    const job = registry.create({
      id: 'j',
      driver: driver(async (self) => {
        for (let i = 0; i < 3; i++) {
          await idle()
          await self.pausePoint()
        }
      }),
    })
    job.start()
    job.pause()
    expect(job.drainedPoll()).toBe(true)
    await idle()
    await idle()
    expect(job.drainedPoll()).toBe(false)
    job.resume()
    await job.done
    expect(events).not.toContain('paused')
  })

  test('job / pause / is never missed, whatever the job does at that moment', async () => {
    for (let microtasks = 0; microtasks < 12; microtasks++) {
      const { registry } = setup()
      let rested = 0
      const body = {
        pause: async () => {
          rested += 1
        },
        resume: () => undefined,
        cancel: () => undefined,
        setSpeed: () => undefined,
      }
      const gate = new Gate()
      const waits = registry.create({
        id: 'waits',
        driver: driver(async (self) => {
          while (!self.forceCancelled) await self.waitKick()
        }),
      })
      const works = registry.create({
        id: 'works',
        driver: driver((self) => self.runBody(body, () => gate.opened)),
      })
      for (const job of [waits, works]) job.start()
      for (let i = 0; i < microtasks; i++) await undefined
      for (const job of [waits, works]) job.pause()
      await idle()
      expect([microtasks, waits.busy, works.busy]).toEqual([microtasks, false, false])
      expect(rested).toBeLessThanOrEqual(1)
      for (const job of [waits, works]) job.resume()
      gate.open()
      waits.cancel(true)
      await Promise.all([waits.done, works.done])
    }
  })

  test('job / pause / one that meets the end of a piece does not hold the next', async () => {
    const { registry } = setup()
    const first = new Gate()
    let paused = false
    const body = {
      pause: () => {
        paused = true
        return new Promise<void>(() => undefined)
      },
      resume: () => {
        paused = false
      },
      cancel: () => undefined,
      setSpeed: () => undefined,
    }
    const job = registry.create({
      id: 'j',
      driver: driver(async (self) => {
        await self.runBody(body, () => first.opened)
        await self.runBody(body, async () => expect(paused).toBe(false))
      }),
    })
    job.start()
    await idle()
    job.pause()
    first.open()
    await idle()
    expect([paused, job.busy]).toEqual([true, false])
    job.resume()
    await job.done
    expect(job.error).toBeUndefined()
  })

  test('job / pause / an answer that was overtaken does not count', async () => {
    const { registry } = setup()
    const work = new Gate()
    const answers: (() => void)[] = []
    const body = {
      pause: () => new Promise<void>((resolve) => answers.push(resolve)),
      resume: () => undefined,
      cancel: () => undefined,
      setSpeed: () => undefined,
    }
    const job = registry.create({
      id: 'j',
      driver: driver((self) => self.runBody(body, () => work.opened)),
    })
    job.start()
    await idle()
    job.pause()
    job.resume()
    job.pause()
    answers[0]?.()
    await idle()
    expect(job.busy).toBe(true)
    answers[1]?.()
    await idle()
    expect(job.busy).toBe(false)
    job.resume()
    work.open()
    await job.done
  })

  test('job / pause / a cancel overrides it', async () => {
    const { registry } = setup()
    const job = registry.create({ id: 'j', driver: driver((self) => self.pausePoint() ?? idle()) })
    job.pause()
    job.start()
    await idle()
    job.cancel(true)
    await job.done
    expect(job.error?.code).toBe('ECANCELED')
  })

  test('job / verbs / refusals have the known sentences', async () => {
    const { registry } = setup()
    const gate = new Gate()
    const job = registry.create({ id: 'j', driver: driver(() => gate.opened) })
    expect(() => job.userComplete()).toThrow(
      "Job 'j' in state 'created' cannot accept command verb 'complete'",
    )
    job.start()
    expect(() => job.userResume()).toThrow("Can't resume a job that was not paused")
    expect(() => job.userSetSpeed(-1)).toThrow("Parameter 'speed' expects a non-negative value")
    job.becomeReady()
    expect(() => job.userComplete()).toThrow("The active block job 'j' cannot be completed")
    expect(() => registry.get('x')).toThrow('Job not found')
    expect(() => registry.getBlockJob('x')).toThrow("Block job 'x' not found")
    expect(() => registry.create({ id: 'j', driver: job.driver })).toThrow(
      "Job ID 'j' already in use",
    )
    expect(() => registry.create({ id: '1', driver: job.driver })).toThrow("Invalid job ID '1'")
    expect(() => registry.create({ driver: job.driver })).toThrow('An explicit job ID is required')
    expect(() => registry.create({ id: 'a', internal: true, driver: job.driver })).toThrow(
      'Cannot specify job ID for internal job',
    )
    gate.open()
    await job.done
  })

  test('job / finalize / waits for the user when asked to', async () => {
    const { registry, events } = setup()
    const steps: string[] = []
    const job = registry.create({
      id: 'j',
      autoFinalize: false,
      autoDismiss: false,
      driver: driver(async () => undefined, {
        prepare: () => void steps.push('prepare'),
        commit: () => void steps.push('commit'),
        abort: () => void steps.push('abort'),
        clean: () => void steps.push('clean'),
      }),
    })
    job.start()
    await idle()
    expect(job.status).toBe('pending')
    expect(events).toContain('BLOCK_JOB_PENDING')
    expect(steps).toEqual([])
    await job.userFinalize()
    expect(steps).toEqual(['prepare', 'commit', 'clean'])
    expect(job.status).toBe('concluded')
  })

  test('job / finalize / a failing prepare aborts', async () => {
    const { registry } = setup()
    const steps: string[] = []
    const job = registry.create({
      id: 'j',
      driver: driver(async () => undefined, {
        prepare: () => {
          throw new BlockError('EIO', 'no')
        },
        commit: () => void steps.push('commit'),
        abort: () => void steps.push('abort'),
      }),
    })
    job.start()
    await job.done
    expect(steps).toEqual(['abort'])
    expect(job.error?.message).toBe('no')
  })

  test('job / transaction / the first failure cancels the others', async () => {
    const { registry } = setup()
    const transaction = new Transaction()
    const gate = new Gate()
    const slow = registry.create({
      id: 'slow',
      transaction,
      driver: driver(async (self) => {
        while (!self.forceCancelled) await self.waitKick()
      }),
    })
    const done = registry.create({ id: 'done', transaction, driver: driver(async () => undefined) })
    const bad = registry.create({
      id: 'bad',
      transaction,
      driver: driver(async () => {
        await gate.opened
        throw new BlockError('ENOSPC', 'full')
      }),
    })
    for (const job of [slow, done, bad]) job.start()
    await idle()
    expect(done.status).toBe('waiting')
    gate.open()
    await Promise.all([slow.done, done.done, bad.done])
    expect(bad.error?.code).toBe('ENOSPC')
    expect(slow.error?.code).toBe('ECANCELED')
    expect(done.error?.code).toBe('ECANCELED')
  })

  test('job / policy / stop pauses, resume tries again', async () => {
    const { registry, events } = setup()
    let tries = 0
    const job = registry.create({
      id: 'j',
      driver: driver(async (self) => {
        while (tries < 2) {
          tries += 1
          if (tries === 1) await self.handleError(new BlockError('ENOSPC', 'x'), 'auto', 'write')
        }
      }),
    })
    job.start()
    await idle()
    expect(queryBlockJobs(registry)[0]).toMatchObject({ 'io-status': 'nospace', paused: true })
    expect(job.status).toBe('paused')
    job.userResume()
    await job.done
    expect(job.error).toBeUndefined()
    expect(tries).toBe(2)
    expect(events).toContain('BLOCK_JOB_ERROR')
  })
})
