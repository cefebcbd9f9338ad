/**
 * Whether an export that came back after a lost connection is still the one that was opened.
 *
 * Invariants:
 * - Requests made for the old export are valid for the new one when nothing is reported here.
 */
import type { RemoteExport } from './client-handshake.ts'
import { NBD_FLAG } from './constants.ts'

const NEEDED_FLAGS: number =
  NBD_FLAG.SEND_FLUSH |
  NBD_FLAG.SEND_FUA |
  NBD_FLAG.SEND_TRIM |
  NBD_FLAG.SEND_WRITE_ZEROES |
  NBD_FLAG.SEND_FAST_ZERO

/** What of an export is no longer as it was, in words; undefined when it may be used. */
export function describeChange(was: RemoteExport, is: RemoteExport): string | undefined {
  if (was.size !== is.size) return `its size was ${was.size} and is ${is.size}`
  if ((was.flags & NBD_FLAG.READ_ONLY) !== (is.flags & NBD_FLAG.READ_ONLY)) {
    return (is.flags & NBD_FLAG.READ_ONLY) !== 0 ? 'it is read-only now' : 'it is writable now'
  }
  if ((was.flags & NEEDED_FLAGS & ~is.flags) !== 0) return 'it offers fewer commands'
  if (is.minBlock > was.minBlock || is.maxBlock < was.maxBlock)
    return 'its block sizes are narrower'
  return undefined
}
