/**
 * Commands about jobs that exist: queries and verbs, in both of their spellings.
 *
 * Invariants:
 * - `block-job-…` verbs know block jobs only and answer an unknown one with class DeviceNotActive.
 */
import { queryBlockJobs, queryJobs } from '../../job/info.ts'
import { blockJobCancel, blockJobChange, type JobRegistry } from '../../job/registry.ts'
import { type CommandTable, command, flagOf, optionalNumber, textOf } from '../command.ts'
import type { JsonObject } from '../json.ts'
import { bool, int, oneOf, str } from '../schema.ts'

/** The commands about jobs. */
export function jobCommands(jobs: JobRegistry): CommandTable {
  const byId = (args: JsonObject) => jobs.get(textOf(args, 'id'))
  const byDevice = (args: JsonObject) => jobs.getBlockJob(textOf(args, 'device'))
  const blockById = (args: JsonObject) => jobs.getBlockJob(textOf(args, 'id'))
  const id = { id: str }
  const device = { device: str }
  return {
    'query-jobs': command({}, () => queryJobs(jobs).map((info) => ({ ...info }))),
    'query-block-jobs': command({}, () => queryBlockJobs(jobs).map((info) => ({ ...info }))),
    'job-cancel': command(id, (args) => byId(args).userCancel(true)),
    'job-pause': command(id, (args) => byId(args).userPause()),
    'job-resume': command(id, (args) => byId(args).userResume()),
    'job-complete': command(id, (args) => byId(args).userComplete()),
    'job-finalize': command(id, (args) => byId(args).userFinalize()),
    'job-dismiss': command(id, (args) => byId(args).userDismiss()),
    'block-job-cancel': command({ ...device, 'force?': bool }, (args) =>
      blockJobCancel(byDevice(args), flagOf(args, 'force')),
    ),
    'block-job-pause': command(device, (args) => byDevice(args).userPause()),
    'block-job-resume': command(device, (args) => byDevice(args).userResume()),
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
