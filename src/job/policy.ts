/**
 * What a job does about an I/O error: report, ignore or stop.
 *
 * Invariants:
 * - `report` ends the job with the error; `ignore` and `stop` retry the same piece of work.
 */
import { BlockError } from '../util/errors.ts'

/** The on-error options of a job; `auto` means `enospc`. */
export type OnError = 'report' | 'ignore' | 'enospc' | 'stop' | 'auto'

/** What is done about one error. */
export type ErrorAction = 'report' | 'ignore' | 'stop'

/** State of a job's I/O as `query-block-jobs` shows it. */
export type IoStatus = 'ok' | 'failed' | 'nospace'

/** The action that a policy prescribes for an error. */
export function errorAction(policy: OnError, error: BlockError): ErrorAction {
  switch (policy) {
    case 'report':
    case 'ignore':
    case 'stop':
      return policy
    default:
      return error.code === 'ENOSPC' ? 'stop' : 'report'
  }
}

/** The I/O status that an error which stopped a job leaves. */
export function ioStatusOf(error: BlockError): IoStatus {
  return error.code === 'ENOSPC' ? 'nospace' : 'failed'
}

/** Refuses a speed that is no whole number of bytes from 0 up. */
export function checkSpeed(bytesPerSecond: number): void {
  if (Number.isInteger(bytesPerSecond) && bytesPerSecond >= 0) return
  throw new BlockError('EINVAL', "Parameter 'speed' expects a non-negative value")
}
