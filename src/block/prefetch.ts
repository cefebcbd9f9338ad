/**
 * Prefetching: what a range shows of a backing image becomes the overlay's own.
 *
 * Invariants:
 * - A copy excludes every other request of its clusters, so it never replaces what was just written.
 * - A copy changes nothing that a reader can see, and marks nothing dirty.
 */
import type { BlockNode } from './node.ts'
import { allZero, readAligned, tracked, writeAligned, zeroPieces } from './request.ts'
import { isAllocatedAbove } from './status.ts'

/** Most bytes that are copied at once. */
const COPY_BYTES = 1024 * 1024

/** Whether a prefetch of this node would copy anything. */
export function canPrefetch(node: BlockNode): boolean {
  return node.child('backing') !== undefined && !node.readOnly
}

/**
 * Copies what the range shows of the backing image. Bytes, within the length of the node. Errors:
 * those of reading the chain and of writing the overlay; what was copied before stays.
 */
export async function nodePrefetch(node: BlockNode, offset: number, bytes: number): Promise<void> {
  if (bytes === 0) return
  const driver = node.needDriver()
  const unit = Math.max(driver.limits.clusterSize, driver.limits.requestAlignment, 1)
  const stop = Math.min(Math.ceil((offset + bytes) / unit) * unit, driver.length())
  let at = offset - (offset % unit)
  while (at < stop) {
    const want = Math.min(Math.max(COPY_BYTES, unit), stop - at)
    const start = at
    await tracked(node, start, want, true, async () => {
      at += await copySome(node, start, want)
    })
  }
}

/** Copies the first run of the range if it needs that; answers how long the run is. */
async function copySome(node: BlockNode, offset: number, want: number): Promise<number> {
  const driver = node.needDriver()
  const own = await isAllocatedAbove(node, node.chainNext, offset, want)
  if (own.allocated) return own.bytes
  const data = new Uint8Array(own.bytes)
  await readAligned(driver, offset, data)
  try {
    if (allZero(data)) await zeroPieces(node, driver, offset, data.length, 0)
    else await writeAligned(driver, offset, data, 0)
  } finally {
    node.writeGeneration++
  }
  return own.bytes
}
