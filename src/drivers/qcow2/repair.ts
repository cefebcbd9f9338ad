/**
 * Rebuilding refcounts of an image that was not closed in order.
 *
 * Invariants:
 * - Guest data and their tables are taken as true; only counts and COPIED bits are changed.
 * - The dirty mark goes only after everything else is stable.
 */
import { BlockError } from '../../util/errors.ts'
import { COPIED_HI, viewOf } from './format.ts'
import type { Qcow2Image } from './image.ts'
import type { Snapshot } from './snapshots.ts'
import type { Walk } from './walk.ts'
import { countRange, readBytes, walkImage } from './walk.ts'

/** Repairs a freshly opened writable image. Errors: EIO when pointers themselves are damaged. */
export async function repairImage(
  image: Qcow2Image,
  snapshots: readonly Snapshot[],
): Promise<void> {
  const { header, file, geometry } = image
  const walk = await walkImage(file, header, snapshots)
  if (walk.problems.length > 0)
    throw new BlockError('EIO', `Could not repair dirty image: ${walk.problems[0] ?? ''}`, {
      node: image.node.name,
    })
  const tableBytes = header.reftableClusters * geometry.clusterBytes
  countRange(walk, header, header.reftableOffset, tableBytes)
  keepGoodBlocks(image, walk)
  image.refcounts.allocateFrom(walk.counts.length)
  await fixCounts(image, walk)
  await image.writeBack()
  await fixCopied(image, walk)
  await image.sync()
  image.refcounts.allocateFrom(1)
  await image.markClean()
  await image.sync()
}

/** A refcount block that lies on something else, or nowhere, is forgotten and made anew. */
function keepGoodBlocks(image: Qcow2Image, walk: Walk): void {
  const { table } = image.refcounts
  const { clusterBytes } = image.geometry
  for (const [index, offset] of table.entries()) {
    if (offset === 0) continue
    const cluster = offset / clusterBytes
    const good = offset % clusterBytes === 0 && (walk.counts[cluster] ?? 1) === 0
    if (good) countRange(walk, image.header, offset, clusterBytes)
    else {
      image.refcounts.dropBlock(index)
      image.metadata.delete(cluster)
    }
  }
}

async function fixCounts(image: Qcow2Image, walk: Walk): Promise<void> {
  const known = walk.counts.length
  for (let c = 0; c < known; c++) await fixCount(image, c, walk.counts[c] ?? 0)
  const { blockEntries } = image.refcounts
  // Only clusters that a block counts can have a count beyond the end of the file.
  for (const [index, offset] of [...image.refcounts.table.entries()]) {
    if (offset === 0) continue
    const first = Math.max(known, index * blockEntries)
    for (let c = first; c < (index + 1) * blockEntries; c++) {
      // Beyond the old end only blocks and tables made by this very repair are used.
      if (!image.metadata.has(c)) await fixCount(image, c, 0)
    }
  }
}

async function fixCount(image: Qcow2Image, cluster: number, truth: number): Promise<void> {
  const { refcounts } = image
  const count = refcounts.peek(cluster) ?? (await refcounts.get(cluster))
  if (count !== truth) await refcounts.assign(cluster, truth)
}

async function fixCopied(image: Qcow2Image, walk: Walk): Promise<void> {
  for (const { at, cluster, copied } of walk.copied) {
    const once = walk.counts[cluster] === 1
    if (copied === once) continue
    const word = await readBytes(image.file, at, 4)
    const hi = viewOf(word).getUint32(0)
    viewOf(word).setUint32(0, (once ? hi | COPIED_HI : hi & ~COPIED_HI) >>> 0)
    await image.writeMeta(at, word)
    const inL1 = at - image.header.l1Offset
    if (inL1 >= 0 && inL1 < image.l1.length) image.l1.set(word, inL1)
  }
  image.l2.clear()
}
