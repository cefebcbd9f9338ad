/**
 * Discards: ranges that nobody needs any more.
 *
 * Invariants:
 * - A discard is a hint: where it is ignored it succeeds, a bad range fails all the same.
 * - Partial blocks at either end stay as they are.
 */
import type { Pending } from '../coroutine/coroutine.ts'
import { ioError } from '../util/errors.ts'
import type { BlockChild } from './child.ts'
import type { BlockDriver } from './driver.ts'
import type { BlockNode } from './node.ts'
import { alignDown, alignUp, changed, checkBitmaps, checkPermission, tracked } from './request.ts'

async function discardPiece(
  driver: BlockDriver,
  offset: number,
  bytes: number,
  most: number,
): Promise<void> {
  try {
    const pending = driver.pdiscard?.(offset, Math.min(bytes, most))
    if (pending !== undefined) await pending
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined
    if (code !== 'ENOTSUP') throw error
  }
}

/** Discard: a hint; succeeds without effect where the node ignores it. */
export function nodeDiscard(
  node: BlockNode,
  edge: BlockChild,
  offset: number,
  bytes: number,
): Pending {
  const driver = node.needDriver()
  checkBitmaps(node)
  if (offset < 0 || offset + bytes > driver.length())
    throw ioError('EIO', { node: node.name, offset, bytes, op: 'discard' })
  if (!node.unmap || driver.pdiscard === undefined || bytes === 0) return undefined
  checkPermission(node, edge, 'discard', 0)
  const unit = Math.max(driver.limits.discardAlignment, driver.limits.requestAlignment, 1)
  const end = offset + bytes
  const start = alignUp(offset, unit)
  const stop = end === driver.length() ? end : alignDown(end, unit)
  if (stop <= start) return undefined
  return tracked(node, start, stop - start, false, async () => {
    try {
      const step = driver.limits.maxDiscard || stop - start
      for (let at = start; at < stop; at += step) await discardPiece(driver, at, stop - at, step)
    } finally {
      changed(node, start, stop - start)
    }
  })
}
