/**
 * Dropping everything an overlay holds, so that the backing image shows.
 *
 * Invariants:
 * - The node is drained: no request runs, and readers see the old or the new content, nothing between.
 * - On the disk the pointers go, durably, before their clusters can be used again.
 * - A failure before the pointers are gone leaves the old content in place.
 */
import type { BlockChild } from '../../block/child.ts'
import { hearsDebugEvents, raiseDebugEvent } from '../debug-event.ts'
import type { Eraser } from './eraser.ts'
import { AUTOCLEAR, viewOf, write64 } from './format.ts'
import type { Qcow2Image } from './image.ts'
import type { Mapping } from './mapping.ts'

/** Changes the length of a child's file. */
export async function truncateChild(child: BlockChild, size: number): Promise<void> {
  await child.node.driver?.truncate?.(size)
}

/** Empties the image. */
export async function makeEmptyImage(
  image: Qcow2Image,
  mapping: Mapping,
  eraser: Eraser,
): Promise<void> {
  image.checkAlive()
  if (image.l1.every((byte) => byte === 0) && !hearsDebugEvents(image.file)) return
  if (movable(image) || canonical(image)) raiseDebugEvent(image.file, 'empty_image_prepare')
  if (canonical(image)) await emptyInPlace(image)
  else if (movable(image)) await emptyByMoving(image)
  else {
    await eraser.discard(0, image.header.size, true)
    await image.flush()
  }
  mapping.packedEnd = 0
}

function l1Clusters(image: Qcow2Image): number {
  return Math.ceil(image.l1.length / image.geometry.clusterBytes)
}

/** Nothing but the active tables points at clusters, and one refcount block counts what stays. */
function simple(image: Qcow2Image): boolean {
  const { header, refcounts } = image
  return (
    header.snapshots === 0 &&
    (header.autoclear & AUTOCLEAR.BITMAPS) === 0 &&
    image.data === image.file &&
    3 + l1Clusters(image) <= refcounts.blockEntries
  )
}

function movable(image: Qcow2Image): boolean {
  return simple(image) && image.header.version >= 3
}

/** The tables lie already where an empty image has them. */
function canonical(image: Qcow2Image): boolean {
  const { clusterBytes } = image.geometry
  const { header, refcounts } = image
  return (
    simple(image) &&
    header.l1Offset === 3 * clusterBytes &&
    header.reftableOffset === clusterBytes &&
    header.reftableClusters === 1 &&
    !refcounts.moving &&
    refcounts.table[0] === 2 * clusterBytes
  )
}

/** One write and one flush make the image empty; what follows only gives room back. */
async function emptyInPlace(image: Qcow2Image): Promise<void> {
  const { clusterBytes } = image.geometry
  await image.exclusive(async () => {
    try {
      await image.writeMeta(image.header.l1Offset, new Uint8Array(image.l1.length))
      await image.sync()
    } catch (error) {
      // Some of the file's table may be gone; ours is still the truth.
      image.l1TouchedAll()
      throw error
    }
    const manyBlocks = image.refcounts.table.length > 1
    forgetAll(image)
    if (manyBlocks) await image.writeMeta(clusterBytes + 8, new Uint8Array(clusterBytes - 8))
    await image.refcounts.writeOut()
    if (manyBlocks) await image.sync()
  })
  await shrink(image)
}

/** The tables move to the front under the dirty mark. */
async function emptyByMoving(image: Qcow2Image): Promise<void> {
  const { header, geometry } = image
  const { clusterBytes } = geometry
  await image.flush()
  await image.markDirty()
  await image.exclusive(async () => {
    try {
      await image.writeMeta(header.l1Offset, new Uint8Array(image.l1.length))
      await image.sync()
    } catch (error) {
      image.l1TouchedAll()
      throw error
    }
    const cleared = new Uint8Array((2 + l1Clusters(image)) * clusterBytes)
    await image.writeMeta(clusterBytes, cleared)
    const fields = new Uint8Array(20)
    write64(viewOf(fields), 0, 3 * clusterBytes)
    write64(viewOf(fields), 8, clusterBytes)
    viewOf(fields).setUint32(16, 1)
    await image.writeMeta(40, fields)
    await image.sync()
    header.reftableOffset = clusterBytes
    header.reftableClusters = 1
    image.replaceL1(new Uint8Array(image.l1.length), 3 * clusterBytes)
    forgetAll(image)
    await image.refcounts.writeTable()
    await image.refcounts.writeOut()
    await image.sync()
  })
  await image.markClean()
  await shrink(image)
}

/** Memory becomes that of an empty image. */
function forgetAll(image: Qcow2Image): void {
  const { clusterBytes } = image.geometry
  image.l2.clear()
  image.l1.fill(0)
  image.replaceL1(image.l1, image.header.l1Offset)
  image.forgetFreed()
  image.refcounts.reset(2 * clusterBytes, 3 + l1Clusters(image))
  image.mapMetadata()
}

/** Room beyond the tables goes back to the host; without that the image is only longer. */
async function shrink(image: Qcow2Image): Promise<void> {
  const end = (3 + l1Clusters(image)) * image.geometry.clusterBytes
  try {
    await truncateChild(image.file, end)
  } catch {
    // The old bytes stay behind the tables, counted as free.
  }
  // A child that cannot be cut keeps old bytes there, which must not pass for zeroes.
  image.virginFrom = Math.max(end, image.file.length())
}
