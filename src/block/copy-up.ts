/**
 * Writing back what was just read, so that it lies in the layer that it was read through.
 *
 * Invariants:
 * - Nobody else writes the range between the read and the write, whichever way he comes.
 * - Bytes do not change, so no bitmap and no listener hears of it.
 */
import { FLAG } from './driver.ts'
import type { BlockNode } from './node.ts'
import { allZero, readAligned, tracked, writeAligned, zeroPieces } from './request.ts'

/**
 * Fills `data` from `start` and writes the same bytes back: all zeroes as zeroes, which a format need not
 * store where they show already, or with `asData` so that they lie in the node whatever is below. The
 * range is aligned to what the node demands, or ends with the node. Errors: ENOMEDIUM, the driver's.
 */
export function copyUp(
  node: BlockNode,
  start: number,
  data: Uint8Array,
  asData = false,
): Promise<void> {
  const driver = node.needDriver()
  const flags = FLAG.WRITE_UNCHANGED
  return tracked(node, start, data.length, true, async () => {
    await readAligned(driver, start, data)
    try {
      if (!asData && allZero(data)) await zeroPieces(node, driver, start, data.length, flags)
      else await writeAligned(driver, start, data, flags)
    } finally {
      node.writeGeneration++
    }
  })
}
