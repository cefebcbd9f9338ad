/**
 * Events of jobs, with the members that a monitor shows.
 *
 * Invariants:
 * - `device` and `id` are the id of the job; internal jobs have none and emit nothing.
 */
import type { JobStatus } from './status.ts'

/** Where a block job stands, in bytes. */
export interface JobReport {
  /** Kind of the job. */
  readonly type: string
  /** Id of the job. */
  readonly device: string
  /** Bytes to do altogether. */
  readonly len: number
  /** Bytes done. */
  readonly offset: number
  /** Bytes a second; 0 = unlimited. */
  readonly speed: number
}

/** Event names and their data. */
export interface JobEvents {
  JOB_STATUS_CHANGE: { readonly id: string; readonly status: JobStatus }
  BLOCK_JOB_READY: JobReport
  BLOCK_JOB_PENDING: { readonly type: string; readonly id: string }
  BLOCK_JOB_COMPLETED: JobReport & { readonly error?: string }
  BLOCK_JOB_CANCELLED: JobReport
  BLOCK_JOB_ERROR: {
    readonly device: string
    readonly operation: 'read' | 'write'
    readonly action: 'report' | 'ignore' | 'stop'
  }
}
