/**
 * One refcount block: counters of 1 to 64 bits in a cluster.
 *
 * Invariants:
 * - Widths below a byte are packed from the least significant bit up; wider ones are big-endian.
 * - A 64-bit counter beyond 2^53 reads as the largest safe number; nobody writes such a one.
 */
import { read64, viewOf, write64 } from './format.ts'

/** Largest counter value of a width. */
export function maxRefcount(order: number): number {
  return order >= 6 ? Number.MAX_SAFE_INTEGER : 2 ** (1 << order) - 1
}

/** The counter at `index`. */
export function getRefcount(block: Uint8Array, order: number, index: number): number {
  if (order === 4) return ((block[index * 2] ?? 0) << 8) | (block[index * 2 + 1] ?? 0)
  if (order < 3) {
    const perByte = 8 >> order
    const shift = (index % perByte) << order
    return ((block[Math.floor(index / perByte)] ?? 0) >> shift) & ((1 << (1 << order)) - 1)
  }
  if (order === 3) return block[index] ?? 0
  const view = viewOf(block)
  if (order === 5) return view.getUint32(index * 4)
  return Math.min(read64(view, index * 8), Number.MAX_SAFE_INTEGER)
}

/** Stores the counter at `index`. */
export function setRefcount(block: Uint8Array, order: number, index: number, value: number): void {
  if (order < 3) {
    const perByte = 8 >> order
    const shift = (index % perByte) << order
    const mask = ((1 << (1 << order)) - 1) << shift
    const at = Math.floor(index / perByte)
    block[at] = ((block[at] ?? 0) & ~mask) | (value << shift)
    return
  }
  if (order === 3) {
    block[index] = value
    return
  }
  const view = viewOf(block)
  if (order === 4) view.setUint16(index * 2, value)
  else if (order === 5) view.setUint32(index * 4, value)
  else write64(view, index * 8, value)
}
