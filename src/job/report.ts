/**
 * What the events of a block job say of where it stands.
 *
 * Invariants:
 * - `offset` never exceeds `len`.
 */
import type { JobReport } from './events.ts'
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
