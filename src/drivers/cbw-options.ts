/**
 * Options of the copy-before-write filter.
 *
 * Invariants:
 * - What is handed out was checked; nothing that was given is ignored silently.
 */
import { BlockError } from '../util/errors.ts'

/** Options that were checked. */
export interface CbwOptions {
  /** A copy that fails breaks the snapshot, not the write that needed it. */
  readonly breakSnapshot: boolean
  /** Longest time a write waits for its copy, in milliseconds; 0 = no limit. */
  readonly timeoutMs: number
  /** What is saved is written compressed. */
  readonly compress: boolean
}

/** Checks `on-cbw-error`, `cbw-timeout` (seconds) and `compress`. Errors: EINVAL. */
export function cbwOptions(options: Readonly<Record<string, unknown>>): CbwOptions {
  const onError = options['on-cbw-error'] ?? 'break-guest-write'
  if (onError !== 'break-guest-write' && onError !== 'break-snapshot') {
    throw new BlockError(
      'EINVAL',
      `Parameter 'on-cbw-error' does not accept value '${String(onError)}'`,
    )
  }
  const timeout = options['cbw-timeout'] ?? 0
  if (typeof timeout !== 'number' || !Number.isInteger(timeout) || timeout < 0) {
    throw new BlockError('EINVAL', "Parameter 'cbw-timeout' expects a number of seconds")
  }
  return {
    breakSnapshot: onError === 'break-snapshot',
    timeoutMs: timeout * 1000,
    compress: options.compress === true,
  }
}
