/**
 * Jobs as `query-jobs` and `query-block-jobs` show them.
 *
 * Invariants:
 * - Members have QMP's names; `offset` never exceeds `len`.
 */
import type { Job } from './job.ts'
import type { JobRegistry } from './registry.ts'

/** An element of `query-jobs`. */
export interface JobInfo {
  readonly id: string
  readonly type: string
  readonly status: string
  readonly 'current-progress': number
  readonly 'total-progress': number
  readonly error?: string
}

/** An element of `query-block-jobs`. */
export interface BlockJobInfo {
  readonly type: string
  readonly device: string
  readonly len: number
  readonly offset: number
  readonly busy: boolean
  readonly paused: boolean
  readonly speed: number
  readonly 'io-status': string
  readonly ready: boolean
  readonly status: string
  readonly 'auto-finalize': boolean
  readonly 'auto-dismiss': boolean
  /** Mirrors only: both disks hold the same, and every write goes to both before it ends. */
  readonly 'actively-synced'?: boolean
  readonly error?: string
}

/** What `query-jobs` says of a job. */
export function jobInfo(job: Job): JobInfo {
  job.progressSource?.()
  const text = job.error?.message
  return {
    id: job.id,
    type: job.driver.type,
    status: job.status,
    'current-progress': Math.min(job.current, job.total),
    'total-progress': job.total,
    ...(text === undefined ? {} : { error: text }),
  }
}

/** What `query-block-jobs` says of a job. */
export function blockJobInfo(job: Job): BlockJobInfo {
  job.progressSource?.()
  const text = job.error?.message
  return {
    type: job.driver.type,
    device: job.id,
    len: job.total,
    offset: Math.min(job.current, job.total),
    busy: job.busy && !job.idle,
    paused: job.pauseCount > 0,
    speed: job.speed,
    'io-status': job.ioStatus,
    ready: job.ready,
    status: job.status,
    'auto-finalize': job.autoFinalize,
    'auto-dismiss': job.autoDismiss,
    ...(job.driver.type === 'mirror'
      ? { 'actively-synced': job.driver.activelySynced === true }
      : {}),
    ...(text === undefined ? {} : { error: text }),
  }
}

/** The visible block jobs. */
export function queryBlockJobs(registry: JobRegistry): BlockJobInfo[] {
  return registry
    .list()
    .filter((job) => job.driver.type !== 'create' && job.driver.type !== 'amend')
    .map(blockJobInfo)
}

/** The visible jobs. */
export function queryJobs(registry: JobRegistry): JobInfo[] {
  return registry.list().map(jobInfo)
}
