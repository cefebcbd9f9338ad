/**
 * Requests on a node: alignment, ordering, splitting, emulation and counting, before the driver sees them.
 *
 * Invariants:
 * - Every request counts in the node's gate from its first step to its last, also when it fails.
 * - A misaligned write is serialising and reads what surrounds it; a failed read fails the write.
 * - Write listeners hear of a range only after its I/O ended, and also when it failed.
 * - A request that can finish inline never leaves the stack and allocates nothing.
 */
import type { Pending } from '../coroutine/coroutine.ts'
import { assert, BlockError, ioError } from '../util/errors.ts'
import type { BlockChild } from './child.ts'
import type { BlockDriver } from './driver.ts'
import { FLAG, PERM } from './driver.ts'
import { nodeFlush } from './flush.ts'
import type { BlockNode } from './node.ts'
import type { TrackedRequest } from './tracked.ts'

/** Longest piece of zero data written where a driver has no zero writes. */
const ZERO_PIECE_BYTES = 1024 * 1024
const ZEROES = new Uint8Array(ZERO_PIECE_BYTES)

export { nodeFlush }

/** The multiple of `to` at or below a value. */
export const alignDown = (value: number, to: number): number => value - (value % to)
/** The multiple of `to` at or above a value. */
export const alignUp = (value: number, to: number): number => alignDown(value + to - 1, to)

/** Reads; bytes beyond the end of the node are zeroes. */
export function nodeRead(node: BlockNode, offset: number, buf: Uint8Array): Pending {
  const driver = node.needDriver()
  const length = driver.length()
  let body = buf
  if (offset + buf.length > length) {
    const inside = Math.max(0, length - offset)
    buf.fill(0, inside)
    body = buf.subarray(0, inside)
  }
  if (body.length === 0) return undefined
  const { requestAlignment, maxTransfer } = driver.limits
  const aligned =
    requestAlignment <= 1 ||
    (offset % requestAlignment === 0 && body.length % requestAlignment === 0)
  const simple = aligned && (maxTransfer === 0 || body.length <= maxTransfer)
  if (!simple || node.tracked.serialising > 0) return slowRead(node, driver, offset, body)
  node.gate.begin()
  return settleRead(node, driver, offset, body)
}

/** Runs a counted read: ends the count inline, or tracks the request until its promise ends. */
function settleRead(
  node: BlockNode,
  driver: BlockDriver,
  offset: number,
  buf: Uint8Array,
): Pending {
  let pending: Pending
  try {
    pending = driver.pread(offset, buf)
  } catch (error) {
    node.gate.end()
    throw error
  }
  if (pending === undefined) {
    node.gate.end()
    return undefined
  }
  return finishLater(node, node.tracked.add(offset, buf.length, false), pending)
}

async function finishLater(
  node: BlockNode,
  request: TrackedRequest,
  pending: Promise<void>,
): Promise<void> {
  try {
    await pending
  } finally {
    node.tracked.remove(request)
    node.gate.end()
  }
}

/** Counts and tracks while `body` runs, after everything in conflict ended. */
export async function tracked(
  node: BlockNode,
  offset: number,
  bytes: number,
  serialising: boolean,
  body: () => Promise<void>,
): Promise<void> {
  node.gate.begin()
  const request = node.tracked.add(offset, bytes, serialising)
  try {
    await node.tracked.waitFor(request)
    await body()
  } finally {
    node.tracked.remove(request)
    node.gate.end()
  }
}

function slowRead(
  node: BlockNode,
  driver: BlockDriver,
  offset: number,
  buf: Uint8Array,
): Promise<void> {
  return tracked(node, offset, buf.length, false, () => readAligned(driver, offset, buf))
}

/** Reads from a driver, which sees aligned pieces of bounded length. */
export async function readAligned(
  driver: BlockDriver,
  offset: number,
  buf: Uint8Array,
): Promise<void> {
  const align = driver.limits.requestAlignment
  const start = alignDown(offset, align)
  const end = alignUp(offset + buf.length, align)
  const padded = start !== offset || end !== offset + buf.length
  const target = padded ? new Uint8Array(end - start) : buf
  const step = driver.limits.maxTransfer === 0 ? target.length : driver.limits.maxTransfer
  for (let at = 0; at < target.length; at += step) {
    const pending = driver.pread(start + at, target.subarray(at, at + step))
    if (pending !== undefined) await pending
  }
  if (padded) buf.set(target.subarray(offset - start, offset - start + buf.length))
}

/** No bitmap of the node lies in an image that is read-only: its bits could not follow. */
export function checkBitmaps(node: BlockNode): void {
  const fixed = node.bitmaps.readOnly
  if (fixed === undefined) return
  const words = `Bitmap '${fixed.name}' is readonly and cannot be modified`
  throw new BlockError('EPERM', words, { node: node.name, op: 'write' })
}

/** A read-only node refuses; a user without the permission is our own mistake. */
export function checkPermission(
  node: BlockNode,
  edge: BlockChild,
  op: string,
  flags: number,
): void {
  if (node.readOnly) throw ioError('EPERM', { node: node.name, op })
  if ((edge.perm & PERM.WRITE) !== 0) return
  if ((edge.perm & PERM.WRITE_UNCHANGED) !== 0 && (flags & FLAG.WRITE_UNCHANGED) !== 0) return
  assert(false, `${edge.owner.ownerDescription} took the permission for a ${op} of '${node.name}'`)
}

/** What every write-class request has to satisfy before it starts. */
function checkWritable(node: BlockNode, edge: BlockChild, flags: number): void {
  checkBitmaps(node)
  checkPermission(node, edge, 'write', flags)
}

function checkEnd(node: BlockNode, edge: BlockChild, offset: number, bytes: number): void {
  if (offset + bytes > node.length() && (edge.perm & PERM.RESIZE) === 0)
    throw ioError('EIO', { node: node.name, offset, bytes, op: 'write' })
}

/** A write of the range ended, successfully or not. */
export function wrote(node: BlockNode, offset: number, bytes: number): void {
  if (offset + bytes > node.writtenEnd) node.writtenEnd = offset + bytes
  changed(node, offset, bytes)
}

/** A write-class request of the range ended, successfully or not. */
export function changed(node: BlockNode, offset: number, bytes: number): void {
  node.writeGeneration++
  if (node.writeListeners.size > 0) for (const heard of node.writeListeners) heard(offset, bytes)
}

/** Writes. Errors: EPERM on a read-only node, EIO beyond the end, the driver's own. */
export function nodeWrite(
  node: BlockNode,
  edge: BlockChild,
  offset: number,
  buf: Uint8Array,
  flags: number,
): Pending {
  const driver = node.needDriver()
  if (buf.length === 0) return undefined
  checkWritable(node, edge, flags)
  checkEnd(node, edge, offset, buf.length)
  if (node.detectZeroes !== 'off' && allZero(buf)) {
    const unmap = node.detectZeroes === 'unmap' ? FLAG.MAY_UNMAP : 0
    return nodeWriteZeroes(node, edge, offset, buf.length, flags | unmap)
  }
  const { requestAlignment, maxTransfer } = driver.limits
  const aligned =
    requestAlignment <= 1 ||
    (offset % requestAlignment === 0 && buf.length % requestAlignment === 0)
  const simple =
    aligned &&
    (maxTransfer === 0 || buf.length <= maxTransfer) &&
    (flags & (FLAG.SERIALISING | FLAG.FUA)) === 0
  if (!simple || node.tracked.serialising > 0)
    return slowWrite(node, driver, offset, buf, flags, aligned)
  node.gate.begin()
  return settleWrite(node, driver, offset, buf, flags)
}

/** True when every byte is zero. */
export function allZero(buf: Uint8Array): boolean {
  for (let at = 0; at < buf.length; at += ZERO_PIECE_BYTES) {
    const piece = buf.subarray(at, at + ZERO_PIECE_BYTES)
    if (Buffer.compare(piece, ZEROES.subarray(0, piece.length)) !== 0) return false
  }
  return true
}

function settleWrite(
  node: BlockNode,
  driver: BlockDriver,
  offset: number,
  buf: Uint8Array,
  flags: number,
): Pending {
  let pending: Pending
  try {
    pending = driver.pwrite(offset, buf, flags & driver.writeFlags)
  } catch (error) {
    wrote(node, offset, buf.length)
    node.gate.end()
    throw error
  }
  if (pending === undefined) {
    wrote(node, offset, buf.length)
    node.gate.end()
    return undefined
  }
  const request = node.tracked.add(offset, buf.length, false)
  return finishWrite(node, request, pending, offset, buf.length)
}

async function finishWrite(
  node: BlockNode,
  request: TrackedRequest,
  pending: Promise<void>,
  offset: number,
  bytes: number,
): Promise<void> {
  try {
    await pending
  } finally {
    wrote(node, offset, bytes)
    node.tracked.remove(request)
    node.gate.end()
  }
}

function slowWrite(
  node: BlockNode,
  driver: BlockDriver,
  offset: number,
  buf: Uint8Array,
  flags: number,
  aligned: boolean,
): Promise<void> {
  const exclusive = !aligned || (flags & FLAG.SERIALISING) !== 0
  const { start, end, serialising } = exclusiveRange(driver, offset, buf.length, exclusive)
  if (!aligned && (flags & FLAG.NO_FALLBACK) !== 0)
    throw ioError('ENOTSUP', { node: node.name, offset, bytes: buf.length, op: 'write' })
  return tracked(node, start, end - start, serialising, async () => {
    try {
      if (aligned) await writeAligned(driver, offset, buf, flags)
      else await writePadded(driver, offset, buf, flags)
    } finally {
      wrote(node, offset, buf.length)
    }
    await emulateFua(node, driver.writeFlags, flags)
  })
}

/** The range that a write holds: as it is, or whole clusters when it excludes others. */
function exclusiveRange(
  driver: BlockDriver,
  offset: number,
  bytes: number,
  serialising: boolean,
): { start: number; end: number; serialising: boolean } {
  const { clusterSize, requestAlignment } = driver.limits
  const unit = serialising ? Math.max(clusterSize, requestAlignment, 1) : 1
  return { start: alignDown(offset, unit), end: alignUp(offset + bytes, unit), serialising }
}

async function writePadded(
  driver: BlockDriver,
  offset: number,
  buf: Uint8Array,
  flags: number,
): Promise<void> {
  const align = driver.limits.requestAlignment
  const start = alignDown(offset, align)
  const end = alignUp(offset + buf.length, align)
  const whole = new Uint8Array(end - start)
  // A tail beyond the current end stays zero; everything else must be read before it is rewritten.
  const readable = Math.min(end, Math.max(start, alignUp(driver.length(), align)))
  if (start !== offset) driver.debugEvent?.('pwritev_rmw_head')
  else driver.debugEvent?.('pwritev_rmw_tail')
  if (readable > start) await readAligned(driver, start, whole.subarray(0, readable - start))
  whole.set(buf, offset - start)
  await writeAligned(driver, start, whole, flags)
}

/** Writes an aligned range to a driver in pieces of bounded length. */
export async function writeAligned(
  driver: BlockDriver,
  offset: number,
  buf: Uint8Array,
  flags: number,
): Promise<void> {
  const step = driver.limits.maxTransfer === 0 ? buf.length : driver.limits.maxTransfer
  for (let at = 0; at < buf.length; at += step) {
    const piece = buf.subarray(at, at + step)
    const pending = driver.pwrite(offset + at, piece, flags & driver.writeFlags)
    if (pending !== undefined) await pending
  }
}

async function emulateFua(node: BlockNode, supported: number, flags: number): Promise<void> {
  if ((flags & FLAG.FUA) === 0 || (supported & FLAG.FUA) !== 0) return
  const pending = nodeFlush(node)
  if (pending !== undefined) await pending
}

/** Zero write: by the driver where it can, else as zero data. */
export function nodeWriteZeroes(
  node: BlockNode,
  edge: BlockChild,
  offset: number,
  bytes: number,
  flags: number,
): Pending {
  const driver = node.needDriver()
  if (bytes === 0) return undefined
  checkWritable(node, edge, flags)
  checkEnd(node, edge, offset, bytes)
  const allowed = node.unmap ? flags : flags & ~FLAG.MAY_UNMAP
  const { requestAlignment } = driver.limits
  // What surrounds a misaligned end is read and written back: nobody may write it meanwhile.
  const aligned = offset % requestAlignment === 0 && bytes % requestAlignment === 0
  const range = exclusiveRange(driver, offset, bytes, !aligned || (flags & FLAG.SERIALISING) !== 0)
  return tracked(node, range.start, range.end - range.start, range.serialising, async () => {
    try {
      await zeroPieces(node, driver, offset, bytes, allowed)
    } finally {
      wrote(node, offset, bytes)
    }
    await emulateFua(node, driver.zeroesFlags & driver.writeFlags, flags)
  })
}

/** Makes a range zero, by the driver where it can, else as zero data. */
export async function zeroPieces(
  node: BlockNode,
  driver: BlockDriver,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  const { zeroesAlignment, requestAlignment, maxZeroes } = driver.limits
  const unit = Math.max(zeroesAlignment, requestAlignment, 1)
  const end = offset + bytes
  const bodyStart = Math.min(end, alignUp(offset, unit))
  // A last cluster cut off by the end of the disk counts as whole.
  const bodyEnd = end === driver.length() ? end : Math.max(bodyStart, alignDown(end, unit))
  if (driver.pwriteZeroes === undefined || bodyEnd <= bodyStart)
    return zeroData(node, driver, offset, bytes, flags)
  if (bodyStart > offset) await zeroData(node, driver, offset, bodyStart - offset, flags)
  const limit = maxZeroes === 0 ? bodyEnd - bodyStart : maxZeroes
  for (let at = bodyStart; at < bodyEnd; at += limit) {
    const piece = Math.min(limit, bodyEnd - at)
    if (!(await zeroByDriver(driver, at, piece, flags)))
      await zeroData(node, driver, at, piece, flags)
  }
  if (end > bodyEnd) await zeroData(node, driver, bodyEnd, end - bodyEnd, flags)
}

/** True when the driver did it, false when it cannot. */
async function zeroByDriver(
  driver: BlockDriver,
  offset: number,
  bytes: number,
  flags: number,
): Promise<boolean> {
  try {
    const pending = driver.pwriteZeroes?.(offset, bytes, flags & driver.zeroesFlags)
    if (pending !== undefined) await pending
    return true
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined
    if (code === 'ENOTSUP' && (flags & FLAG.NO_FALLBACK) === 0) return false
    throw error
  }
}

async function zeroData(
  node: BlockNode,
  driver: BlockDriver,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  if ((flags & FLAG.NO_FALLBACK) !== 0)
    throw ioError('ENOTSUP', { node: node.name, offset, bytes, op: 'write-zeroes' })
  for (let at = 0; at < bytes; at += ZERO_PIECE_BYTES) {
    const piece = ZEROES.subarray(0, Math.min(ZERO_PIECE_BYTES, bytes - at))
    const align = driver.limits.requestAlignment
    const aligned = (offset + at) % align === 0 && piece.length % align === 0
    if (aligned) await writeAligned(driver, offset + at, piece, flags)
    else await writePadded(driver, offset + at, piece, flags)
  }
}
