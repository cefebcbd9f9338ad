/**
 * What the events of a block job say of where it stands.
 *
 * Invariants:
 * - `offset` never exceeds `len`.
 */
import type { JobEvents, JobReport } from './events.ts'
import type { Job } from './job.ts'

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

/** Sends the event of a job's end: cancelled by force, or completed with or without an error. */
export function emitEnd(
  job: Job,
  emit: <K extends keyof JobEvents>(name: K, data: JobEvents[K]) => void,
): void {
  const report = jobReport(job)
  const { error } = job
  if (error === undefined) emit('BLOCK_JOB_COMPLETED', report)
  else if (job.forceCancelled && error.code === 'ECANCELED') emit('BLOCK_JOB_CANCELLED', report)
  else emit('BLOCK_JOB_COMPLETED', { ...report, error: error.message })
}
