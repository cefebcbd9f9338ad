/**
 * Changing the size of an image.
 *
 * Invariants:
 * - The header shows a longer L1 table only after it is stable, and the new size only after that.
 * - An image that gets shorter keeps its L1 table; what lay beyond its new end is given up.
 */

import type { Pending } from '../../coroutine/coroutine.ts'
import { BlockError } from '../../util/errors.ts'
import { MAX_L1_BYTES, viewOf, write64 } from './format.ts'
import type { Qcow2Image } from './image.ts'
import { l1Field } from './image.ts'
import { readBytes } from './walk.ts'

/**
 * Makes the image `size` bytes long; `discard` gives up clusters of an image that gets shorter.
 * Errors: EINVAL for a size out of range.
 */
export async function resizeImage(
  image: Qcow2Image,
  size: number,
  discard: (offset: number, bytes: number) => Pending,
): Promise<void> {
  const { header, geometry } = image
  image.checkAlive()
  if (size % 512 !== 0) throw new BlockError('EINVAL', 'The new size must be a multiple of 512')
  const start = Math.ceil(size / geometry.clusterBytes) * geometry.clusterBytes
  const pending = start < header.size ? discard(start, header.size - start) : undefined
  if (pending !== undefined) await pending
  const entries = Math.ceil(size / geometry.l2Coverage)
  if (entries * 8 > MAX_L1_BYTES) throw new BlockError('EINVAL', 'Failed to resize: too large')
  if (entries > header.l1Size) await growL1(image, entries)
  const field = new Uint8Array(8)
  write64(viewOf(field), 0, size)
  await image.writeMeta(24, field)
  await image.sync()
  header.size = size
}

async function growL1(image: Qcow2Image, entries: number): Promise<void> {
  const { header, geometry } = image
  const { clusterBytes } = geometry
  const clusters = Math.ceil((entries * 8) / clusterBytes)
  const place = await image.refcounts.allocate(clusters)
  await image.writeBack()
  await image.sync()
  await image.exclusive(async () => {
    const l1 = new Uint8Array(entries * 8)
    // What the file has, not what memory has: a newer entry may lack its table there.
    l1.set(await readBytes(image.file, header.l1Offset, image.l1.length))
    const oldOffset = header.l1Offset
    const oldClusters = Math.ceil(image.l1.length / clusterBytes)
    await image.writeMeta(place * clusterBytes, l1)
    await image.sync()
    await image.writeMeta(36, l1Field(entries, place * clusterBytes))
    await image.sync()
    // Entries that changed meanwhile are in memory only; the new table gets them with the next flush.
    l1.set(image.l1)
    image.replaceL1(l1, place * clusterBytes)
    image.l1TouchedAll()
    image.mapMetadata()
    if (oldClusters > 0) image.freeLater(oldOffset / clusterBytes, oldClusters)
  })
}
