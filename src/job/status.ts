/**
 * The job state machine as data: statuses, permitted transitions and permitted verbs.
 *
 * Invariants:
 * - A transition that is not in the table is a mistake of ours and stops the program.
 * - A verb that a status does not take is a user's mistake and gets a sentence.
 */
import { assert, BlockError } from '../util/errors.ts'

/** Statuses of a job, in the order of a life. */
export type JobStatus =
  | 'undefined'
  | 'created'
  | 'running'
  | 'paused'
  | 'ready'
  | 'standby'
  | 'waiting'
  | 'pending'
  | 'aborting'
  | 'concluded'
  | 'null'

/** What a user may ask of a job. */
export type JobVerb =
  | 'cancel'
  | 'pause'
  | 'resume'
  | 'set-speed'
  | 'complete'
  | 'finalize'
  | 'dismiss'

/** From a status, where a job may go. */
export const TRANSITIONS: Readonly<Record<JobStatus, readonly JobStatus[]>> = {
  undefined: ['created'],
  created: ['running', 'aborting', 'null'],
  running: ['paused', 'ready', 'waiting', 'aborting'],
  paused: ['running'],
  ready: ['standby', 'waiting', 'aborting'],
  standby: ['ready'],
  waiting: ['pending', 'aborting'],
  pending: ['aborting', 'concluded'],
  aborting: ['aborting', 'concluded'],
  concluded: ['null'],
  null: [],
}

const WHILE_ALIVE: readonly JobStatus[] = ['created', 'running', 'paused', 'ready', 'standby']

/** A verb, and the statuses that take it. */
export const VERBS: Readonly<Record<JobVerb, readonly JobStatus[]>> = {
  cancel: [...WHILE_ALIVE, 'waiting', 'pending'],
  pause: WHILE_ALIVE,
  resume: WHILE_ALIVE,
  'set-speed': WHILE_ALIVE,
  complete: ['ready', 'standby'],
  finalize: ['pending'],
  dismiss: ['concluded'],
}

/** Stops on a transition that the table does not have. */
export function assertTransition(from: JobStatus, to: JobStatus): void {
  assert(TRANSITIONS[from].includes(to), `a job cannot go from ${from} to ${to}`)
}

/** Throws EPERM with QEMU's sentence when a job in `status` does not take `verb`. */
export function checkVerb(id: string, status: JobStatus, verb: JobVerb): void {
  if (VERBS[verb].includes(status)) return
  throw new BlockError(
    'EPERM',
    `Job '${id}' in state '${status}' cannot accept command verb '${verb}'`,
    { op: `job-${verb}` },
  )
}

/** Whether the work of a job in this status is over, whatever came of it. */
export function isCompleted(status: JobStatus): boolean {
  return ['waiting', 'pending', 'aborting', 'concluded', 'null'].includes(status)
}
