/**
 * Extents of a range, as BLOCK_STATUS shows them: allocation, depth and dirty bits.
 *
 * Invariants:
 * - Neighbours never carry the same flags; lengths are above 0 and never pass the asked range.
 * - A disk that refuses to tell (an error from its block status) fails the request.
 */
import { STATUS } from '../block/driver.ts'
import { assert } from '../util/errors.ts'
import { NBD_STATE } from './constants.ts'
import type { ExportBackend, ExportBitmap, ExportStatus, MetaContext } from './export.ts'

/** Most extents in one reply; the protocol lets a reply stop early. */
const MAX_EXTENTS = 1 << 17

/** Length and flags, alternating. */
export type Extents = number[]

/** The extents of `context` from `offset`; a single one when `one`. */
export function findExtents(
  backend: ExportBackend,
  context: MetaContext,
  offset: number,
  bytes: number,
  one: boolean,
): Promise<Extents> | Extents {
  const limit = one ? 1 : MAX_EXTENTS
  switch (context.kind) {
    case 'allocation':
      return statusExtents(backend, allocationBits, offset, bytes, limit)
    case 'depth':
      return statusExtents(backend, (status) => status.depth + 1, offset, bytes, limit)
    case 'bitmap':
      return bitmapExtents(context.bitmap, offset, bytes, limit)
  }
}

/** The `base:allocation` bits of a block status. */
export function allocationBits(status: ExportStatus): number {
  const hole = (status.flags & STATUS.DATA) === 0 ? NBD_STATE.HOLE : 0
  return (status.flags & STATUS.ZERO) !== 0 ? hole | NBD_STATE.ZERO : hole
}

/** Adds an extent, growing the last one when the flags agree. False when the reply is full. */
function add(extents: Extents, bytes: number, flags: number, limit: number): boolean {
  const last = extents.length - 2
  if (last >= 0 && extents[last + 1] === flags) {
    extents[last] = (extents[last] ?? 0) + bytes
    return true
  }
  if (extents.length >= limit * 2) return false
  extents.push(bytes, flags)
  return true
}

async function statusExtents(
  backend: ExportBackend,
  flagsOf: (status: ExportStatus) => number,
  offset: number,
  bytes: number,
  limit: number,
): Promise<Extents> {
  const extents: Extents = []
  const end = offset + bytes
  for (let at = offset; at < end; ) {
    const asked = backend.blockStatus(at, end - at)
    const status = asked instanceof Promise ? await asked : asked
    const run = Math.min(status.bytes, end - at)
    assert(run > 0, 'a block status covers at least one byte')
    if (!add(extents, run, flagsOf(status), limit)) break
    at += run
  }
  return extents
}

function bitmapExtents(
  bitmap: ExportBitmap | undefined,
  offset: number,
  bytes: number,
  limit: number,
): Extents {
  const extents: Extents = []
  const end = offset + bytes
  for (let at = offset; at < end; ) {
    const dirty = bitmap?.nextDirty(at)
    const from = dirty === undefined ? end : Math.min(Math.max(dirty.offset, at), end)
    if (from > at && !add(extents, from - at, 0, limit)) break
    if (dirty === undefined || from >= end) break
    const until = Math.min(dirty.offset + dirty.bytes, end)
    if (!add(extents, until - from, 1, limit)) break
    at = until
  }
  return extents
}
