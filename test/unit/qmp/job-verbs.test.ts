import { afterEach, describe, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import type { Job } from '../../../src/job/job.ts'
import type { JobDriver } from '../../../src/job/job-types.ts'
import { JobRegistry } from '../../../src/job/registry.ts'
import { Transaction } from '../../../src/job/transaction.ts'
import { type CommandTable, errorClass } from '../../../src/qmp/command.ts'
import { jobCommands } from '../../../src/qmp/commands/jobs.ts'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { validate } from '../../../src/qmp/schema.ts'
import { BlockError } from '../../../src/util/errors.ts'

type Verb = 'cancel' | 'pause' | 'resume' | 'set-speed' | 'complete' | 'finalize' | 'dismiss'

/** What each verb answers in each status: `.` accepts, `x` the verb's refusal, or another text. */
const NOT_PAUSED = "Can't resume a job that was not paused"
const ALREADY = 'Job is already paused'
const TABLE: Record<string, Record<Verb, string>> = {
  created: row('.', '.', NOT_PAUSED, '.', 'x', 'x', 'x'),
  running: row('.', '.', NOT_PAUSED, '.', 'x', 'x', 'x'),
  paused: row('.', ALREADY, '.', '.', 'x', 'x', 'x'),
  ready: row('.', '.', NOT_PAUSED, '.', '.', 'x', 'x'),
  standby: row('.', ALREADY, '.', '.', '.', 'x', 'x'),
  waiting: row('.', 'x', NOT_PAUSED, 'x', 'x', 'x', 'x'),
  pending: row('.', 'x', NOT_PAUSED, 'x', 'x', '.', 'x'),
  concluded: row('x', 'x', NOT_PAUSED, 'x', 'x', 'x', '.'),
}
const VERBS = Object.keys(row('', '', '', '', '', '', '')) as Verb[]

function row(
  cancel: string,
  pause: string,
  resume: string,
  setSpeed: string,
  complete: string,
  finalize: string,
  dismiss: string,
): Record<Verb, string> {
  return { cancel, pause, resume, 'set-speed': setSpeed, complete, finalize, dismiss }
}

/** A job that does nothing until it is told, in the status that is asked for. */
class Stage {
  readonly ctx = new AioContext()
  readonly registry = new JobRegistry({ emit: () => undefined })
  readonly commands: CommandTable = jobCommands(this.registry, this.ctx)
  #end: () => void = () => undefined

  async job(status: string): Promise<Job> {
    const ended = new Promise<void>((resolve) => {
      this.#end = resolve
    })
    const ready = status === 'ready' || status === 'standby'
    const driver: JobDriver = {
      type: 'mirror',
      complete: () => this.#end(),
      run: async (job) => {
        if (ready) job.becomeReady()
        let over = false
        void ended.then(() => {
          over = true
        })
        while (!over && !job.forceCancelled) await job.waitKick(ended)
      },
    }
    const transaction = new Transaction()
    if (status === 'waiting') this.registry.create({ id: 'other', driver, transaction })
    const job = this.registry.create({
      id: 'j',
      driver,
      transaction,
      autoFinalize: status !== 'pending',
      autoDismiss: false,
    })
    if (status !== 'created') job.start()
    await turns()
    if (status === 'paused' || status === 'standby') job.userPause()
    if (['waiting', 'pending', 'concluded'].includes(status)) this.#end()
    await turns()
    expect(job.status).toBe(status)
    return job
  }

  async send(name: string, args: JsonObject): Promise<string> {
    const found = this.commands[name]
    if (found === undefined) throw new Error(`no command ${name}`)
    const session = { negotiate: () => undefined, finish: () => undefined }
    try {
      await found.run(validate(found.schema, args), session)
      return '.'
    } catch (thrown) {
      if (!(thrown instanceof BlockError)) throw thrown
      return `${errorClass(thrown.code)}: ${thrown.message}`
    }
  }

  async close(): Promise<void> {
    this.#end()
    await Promise.all(this.registry.all().map((job) => job.cancelSync(true)))
    await this.ctx.close()
  }
}

async function turns(): Promise<void> {
  for (let i = 0; i < 50; i++) await Promise.resolve()
}

function expected(verb: Verb, status: string): string {
  const entry = TABLE[status]?.[verb] ?? ''
  if (entry === '.') return '.'
  const text =
    entry === 'x' ? `Job 'j' in state '${status}' cannot accept command verb '${verb}'` : entry
  return `GenericError: ${text}`
}

const stages: Stage[] = []
afterEach(async () => {
  for (const stage of stages.splice(0)) await stage.close()
})

function stage(): Stage {
  const made = new Stage()
  stages.push(made)
  return made
}

describe('qmp / job verbs', () => {
  for (const status of Object.keys(TABLE)) {
    for (const verb of VERBS) {
      test(`${verb} of a ${status} job, in both spellings`, async () => {
        for (const spelling of ['job', 'block-job']) {
          if (spelling === 'job' && verb === 'set-speed') continue
          const made = stage()
          await made.job(status)
          const byId = spelling === 'job' || verb === 'finalize' || verb === 'dismiss'
          const name = byId ? { id: 'j' } : { device: 'j' }
          const more: JsonObject = verb === 'set-speed' ? { speed: 5 } : {}
          const force = !byId && verb === 'cancel' ? { force: true } : {}
          const sent = await made.send(`${spelling}-${verb}`, { ...name, ...more, ...force })
          expect(sent).toBe(expected(verb, status))
        }
      })
    }
  }

  test('a paused job is cancelled by force only', async () => {
    const made = stage()
    await made.job('paused')
    expect(await made.send('block-job-cancel', { device: 'j' })).toBe(
      "GenericError: The block job for device 'j' is currently paused",
    )
    expect(await made.send('block-job-cancel', { device: 'j', force: true })).toBe('.')
  })

  test('an unknown job has the class of the spelling', async () => {
    const made = stage()
    for (const verb of ['cancel', 'pause', 'resume', 'complete', 'finalize', 'dismiss']) {
      expect(await made.send(`job-${verb}`, { id: 'no' })).toBe('GenericError: Job not found')
    }
    for (const verb of ['cancel', 'pause', 'resume', 'complete']) {
      expect(await made.send(`block-job-${verb}`, { device: 'no' })).toBe(
        "DeviceNotActive: Block job 'no' not found",
      )
    }
  })

  test('a job that waits shows a pause and its end in the answer of the next question', async () => {
    const made = stage()
    const job = await made.job('ready')
    await made.send('job-pause', { id: 'j' })
    expect(job.status).toBe('standby')
    await made.send('job-resume', { id: 'j' })
    expect(job.status).toBe('ready')
    const pending = stage()
    const other = await pending.job('pending')
    await pending.send('job-cancel', { id: 'j' })
    expect(other.status).toBe('concluded')
  })
})
