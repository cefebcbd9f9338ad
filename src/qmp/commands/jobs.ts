/**
 * Commands about jobs that exist: queries and verbs, in both of their spellings.
 *
 * Invariants:
 * - `block-job-…` verbs know block jobs only and answer an unknown one with class DeviceNotActive.
 */
import type { AioContext } from '../../aio/aio-context.ts'
import { queryBlockJobs, queryJobs } from '../../job/info.ts'
import type { Job } from '../../job/job.ts'
import { blockJobCancel, blockJobChange, type JobRegistry } from '../../job/registry.ts'
import { type CommandTable, command, flagOf, optionalNumber, textOf } from '../command.ts'
import type { JsonObject } from '../json.ts'
import { bool, int, oneOf, str } from '../schema.ts'

/** Slices of the loop that a verb may take to show before it is answered. */
const SLICES = 8

/** The commands about jobs. */
export function jobCommands(jobs: JobRegistry, ctx: AioContext): CommandTable {
  const byId = (args: JsonObject) => jobs.get(textOf(args, 'id'))
  const byDevice = (args: JsonObject) => jobs.getBlockJob(textOf(args, 'device'))
  const blockById = (args: JsonObject) => jobs.getBlockJob(textOf(args, 'id'))
  const id = { id: str }
  const device = { device: str }
  return {
    'query-jobs': command({}, () => queryJobs(jobs).map((info) => ({ ...info }))),
    'query-block-jobs': command({}, () => queryBlockJobs(jobs).map((info) => ({ ...info }))),
    'job-cancel': command(id, (args) => cancel(byId(args), (job) => job.userCancel(true))),
    'job-pause': command(id, (args) => pause(byId(args), ctx)),
    'job-resume': command(id, (args) => resume(byId(args), ctx)),
    'job-complete': command(id, (args) => byId(args).userComplete()),
    'job-finalize': command(id, (args) => byId(args).userFinalize()),
    'job-dismiss': command(id, (args) => byId(args).userDismiss()),
    'block-job-cancel': command({ ...device, 'force?': bool }, (args) =>
      cancel(byDevice(args), (job) => blockJobCancel(job, flagOf(args, 'force'))),
    ),
    'block-job-pause': command(device, (args) => pause(byDevice(args), ctx)),
    'block-job-resume': command(device, (args) => resume(byDevice(args), ctx)),
    'block-job-complete': command(device, (args) => byDevice(args).userComplete()),
    'block-job-set-speed': command({ ...device, speed: int }, (args) =>
      byDevice(args).userSetSpeed(optionalNumber(args, 'speed') ?? 0),
    ),
    'block-job-change': command(
      { ...id, type: oneOf('mirror'), 'copy-mode': oneOf('background', 'write-blocking') },
      (args) => {
        const mode = args['copy-mode'] === 'background' ? 'background' : 'write-blocking'
        blockJobChange(blockById(args), textOf(args, 'type'), mode)
      },
    ),
    'block-job-finalize': command(id, (args) => blockById(args).userFinalize()),
    'block-job-dismiss': command(id, (args) => blockById(args).userDismiss()),
  }
}

// A job that only waits ends at once, and is gone by the time the command is answered.
async function cancel(job: Job, verb: (job: Job) => void): Promise<void> {
  const atOnce = job.ended || (job.idle && job.driver.type === 'backup')
  verb(job)
  if (atOnce) await job.done
}

function pause(job: Job, ctx: AioContext): Promise<void> {
  job.userPause()
  return settle(ctx, () => isPaused(job) || job.completed)
}

function resume(job: Job, ctx: AioContext): Promise<void> {
  job.userResume()
  return settle(ctx, () => !isPaused(job))
}

function isPaused(job: Job): boolean {
  return job.status === 'paused' || job.status === 'standby'
}

/** Gives a job that is not at work the time to show what it was told; never waits for work. */
async function settle(ctx: AioContext, shows: () => boolean): Promise<void> {
  for (let slice = 0; slice < SLICES && !shows(); slice++) {
    await new Promise<void>((resolve) => ctx.newBh(resolve).schedule())
  }
}
