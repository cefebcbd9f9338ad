/**
 * Stored dirty bitmaps of an image whose guest data change without them.
 *
 * Invariants:
 * - Before the first change every bitmap is marked in use, so that nobody trusts it afterwards.
 * - A bitmap marked so keeps its clusters and can be removed in order.
 */
import { EXTENSION, read64, viewOf } from './format.ts'
import type { Qcow2Image } from './image.ts'
import { readBytes } from './walk.ts'

const FIXED_BYTES = 24
const FLAGS_AT = 12
const IN_USE = 1
/** Largest directory that is believed. */
const MAX_DIRECTORY_BYTES = 64 * 1024 * 1024

/** Marks all bitmaps in use. False: the directory makes no sense, so its feature bit must go. */
export async function markBitmapsInUse(image: Qcow2Image): Promise<boolean> {
  const found = image.header.extensions.find((e) => e.type === EXTENSION.BITMAPS)
  if (found === undefined || found.data.length < FIXED_BYTES) return false
  const extension = viewOf(found.data)
  const bytes = read64(extension, 8)
  const offset = read64(extension, 16)
  if (bytes > MAX_DIRECTORY_BYTES || offset + bytes > image.file.length()) return false
  const directory = await readBytes(image.file, offset, bytes)
  const view = viewOf(directory)
  for (let at = 0; at + FIXED_BYTES <= bytes; ) {
    view.setUint32(at + FLAGS_AT, view.getUint32(at + FLAGS_AT) | IN_USE)
    const used = FIXED_BYTES + view.getUint16(at + 18) + view.getUint32(at + 20)
    at += Math.ceil(used / 8) * 8
  }
  await image.writeMeta(offset, directory)
  await image.sync()
  return true
}
