/**
 * Tables of 64-bit offsets as bytes.
 *
 * Invariants:
 * - Bits 0 to 8 of an entry are not part of the offset.
 */
import { offsetOf, viewOf } from './format.ts'

/** The offsets of a refcount or L1 table, without flag bits. */
export function decodeTable(bytes: Uint8Array): number[] {
  const view = viewOf(bytes)
  const offsets: number[] = []
  for (let at = 0; at + 8 <= bytes.length; at += 8)
    offsets.push(offsetOf(view.getUint32(at), view.getUint32(at + 4)))
  return offsets
}
