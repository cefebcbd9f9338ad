/**
 * Finding zeroes in data, for disks that cannot say where they have none.
 *
 * Invariants:
 * - Whole blocks only: a block with one other byte is data.
 */

/** Unit in which zeroes are looked for, in bytes: shorter ones are not worth a request. */
export const ZERO_BLOCK_BYTES: number = 64 * 1024

const ZEROES = new Uint8Array(ZERO_BLOCK_BYTES)

/** Whether all bytes are 0; at most a block long. Ends at the first other byte. */
export function isZero(buf: Uint8Array): boolean {
  return Buffer.compare(buf, ZEROES.subarray(0, buf.length)) === 0
}

/** A stretch of blocks that are all zero, or none of which is. */
export interface ZeroRun {
  readonly zero: boolean
  readonly bytes: number
}

/** The stretch that begins at `from`. */
export function zeroRun(buf: Uint8Array, from: number): ZeroRun {
  const blockAt = (at: number): Uint8Array => buf.subarray(at, at + ZERO_BLOCK_BYTES)
  const zero = isZero(blockAt(from))
  let end = from + ZERO_BLOCK_BYTES
  while (end < buf.length && isZero(blockAt(end)) === zero) end += ZERO_BLOCK_BYTES
  return { zero, bytes: Math.min(end, buf.length) - from }
}
