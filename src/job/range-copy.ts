/**
 * Copies one range from a disk to another.
 *
 * Invariants:
 * - The outcome is a value: null, or the record of the error that stopped it; its context says on
 *   which side it was.
 * - What the source does not decide reads as zeroes.
 */
import { asBlockError, BlockError, type ErrorRecord, toRecord } from '../util/errors.ts'
import { MoveError, type MoveParts, moveSome } from './move.ts'

/** Null when the whole range is on the target. */
export type RangeOutcome = ErrorRecord | null

/** Copies `bytes` from `offset`, in pieces of the buffer's length. */
export async function copyRange(
  parts: MoveParts,
  offset: number,
  bytes: number,
): Promise<RangeOutcome> {
  try {
    const end = Math.min(offset + bytes, parts.source.length)
    for (let at = offset; at < end; ) at += await moveSome(parts, at, end - at)
    return null
  } catch (thrown) {
    if (!(thrown instanceof MoveError)) return toRecord(thrown)
    const error = asBlockError(thrown.thrown)
    const context = { ...error.context, op: thrown.operation }
    return toRecord(new BlockError(error.code, error.message, context))
  }
}
