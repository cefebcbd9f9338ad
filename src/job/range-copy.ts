/**
 * Copies one range from a disk to another through a buffer.
 *
 * Invariants:
 * - The outcome is a value: null, or the record of the error that stopped it.
 * - What the source does not decide reads as zeroes.
 */
import { type ErrorRecord, toRecord } from '../util/errors.ts'
import type { DiskView } from './view.ts'

/** Null when the whole range is on the target. */
export type RangeOutcome = ErrorRecord | null

/** Copies `bytes` from `offset`, in pieces of the buffer's length. */
export async function copyRange(
  source: DiskView,
  target: DiskView,
  buffer: Uint8Array,
  offset: number,
  bytes: number,
): Promise<RangeOutcome> {
  try {
    const end = Math.min(offset + bytes, source.length)
    for (let at = offset; at < end; ) {
      const answer = source.status(at, Math.min(end - at, buffer.length))
      const status = answer instanceof Promise ? await answer : answer
      if (status.kind === 'data') {
        const view = buffer.subarray(0, status.bytes)
        const read = source.pread(at, view)
        if (read !== undefined) await read
        const written = target.pwrite(at, view)
        if (written !== undefined) await written
      } else {
        const zeroed = target.pwriteZeroes(at, status.bytes)
        if (zeroed !== undefined) await zeroed
      }
      at += status.bytes
    }
    return null
  } catch (thrown) {
    return toRecord(thrown)
  }
}
