/**
 * What the events of a block job say of where it stands.
 *
 * Invariants:
 * - `offset` never exceeds `len`.
 */

import { asBlockError } from '../util/errors.ts'
import type { JobEvents, JobReport } from './events.ts'
import type { Job } from './job.ts'
import type { JobOptions } from './job-types.ts'

/** The members that every event of a block job has. */
export function jobReport(job: Job): JobReport {
  job.progressSource?.()
  return {
    type: job.driver.type,
    device: job.id,
    len: job.total,
    offset: Math.min(job.current, job.total),
    speed: job.speed,
  }
}

/**
 * Sends the event of a block job's end: cancelled by force, or completed with or without an error.
 */
export function emitEnd(
  job: Job,
  emit: <K extends keyof JobEvents>(name: K, data: JobEvents[K]) => void,
): void {
  if (job.driver.type === 'create' || job.driver.type === 'amend') return
  const report = jobReport(job)
  const { error } = job
  if (error === undefined) emit('BLOCK_JOB_COMPLETED', report)
  else if (job.forceCancelled && error.code === 'ECANCELED') emit('BLOCK_JOB_CANCELLED', report)
  else emit('BLOCK_JOB_COMPLETED', { ...report, error: error.message })
}

/** Calls what ends a job, in the documented order; whatever fails, the job ends and says so. */
export async function runEndHooks(job: Job, onDone: JobOptions['onDone']): Promise<void> {
  const { driver } = job
  const hooks = [
    () => (job.error === undefined ? driver.commit?.(job) : driver.abort?.(job)),
    () => driver.clean?.(job),
    () => onDone?.(job.error),
  ]
  for (const hook of hooks) {
    try {
      await hook()
    } catch (thrown) {
      job.error ??= asBlockError(thrown)
    }
  }
}
