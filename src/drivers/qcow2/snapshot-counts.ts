/**
 * What snapshots mean for counts: everything an L1 table reaches gains or loses a user.
 *
 * Invariants:
 * - The image is drained and its metadata are in the file.
 * - An active entry has its COPIED bit exactly when its cluster has one user.
 */
import { COMPRESSED_HI, COPIED_HI, compressedPlace, offsetOf, viewOf } from './format.ts'
import type { Qcow2Image } from './image.ts'
import { hex } from './mapping.ts'
import type { Table } from './table-cache.ts'

interface Row {
  readonly first: number
  readonly clusters: number
}

/** Adds a user to everything `l1` reaches; takes all back when that fails. Errors: EINVAL, EIO. */
export async function shareAll(image: Qcow2Image, l1: Uint8Array): Promise<void> {
  let rows = 0
  try {
    for await (const { first, clusters } of rowsOf(image, l1)) {
      await image.refcounts.change(first, clusters, 1)
      rows++
    }
  } catch (error) {
    await unshare(image, l1, rows)
    throw error
  }
}

/** Takes a user from everything `l1` reaches. */
export function unshareAll(image: Qcow2Image, l1: Uint8Array): Promise<void> {
  return unshare(image, l1, Number.POSITIVE_INFINITY)
}

async function unshare(image: Qcow2Image, l1: Uint8Array, rows: number): Promise<void> {
  if (rows === 0) return
  let left = rows
  for await (const { first, clusters } of rowsOf(image, l1)) {
    await image.refcounts.change(first, clusters, -1)
    if (--left === 0) return
  }
}

async function* rowsOf(image: Qcow2Image, l1: Uint8Array): AsyncGenerator<Row> {
  const { clusterBytes } = image.geometry
  const view = viewOf(l1)
  for (let at = 0; at < l1.length; at += 8) {
    const table = tableAt(image, view, at)
    if (table === 0) continue
    yield { first: table / clusterBytes, clusters: 1 }
    const entries = (await tableOf(image, table)).bytes.slice()
    yield* entryRows(image, entries, table)
    // Nobody may find it in the cache once its cluster holds something else.
    if (image.refcounts.peek(table / clusterBytes) === 0) image.l2.drop(table)
  }
}

function* entryRows(image: Qcow2Image, entries: Uint8Array, table: number): Generator<Row> {
  const { clusterBytes, clusterBits, entryBytes } = image.geometry
  const view = viewOf(entries)
  let first = 0
  let clusters = 0
  for (let at = 0; at < entries.length; at += entryBytes) {
    const hi = view.getUint32(at)
    const lo = view.getUint32(at + 4)
    let from = offsetOf(hi, lo)
    let to = from + clusterBytes
    if ((hi & COMPRESSED_HI) !== 0) {
      const place = compressedPlace(hi, lo, clusterBits)
      from = place.offset - (place.offset % clusterBytes)
      to = place.offset + place.bytes
    } else if (from === 0) continue
    else if (from % clusterBytes !== 0)
      throw image.corrupt(
        `Cluster allocation offset ${hex(from)} unaligned ` +
          `(L2 offset: ${hex(table)}, L2 index: ${hex(at / entryBytes)})`,
      )
    const cluster = from / clusterBytes
    const taken = Math.ceil((to - from) / clusterBytes)
    if (cluster === first + clusters) clusters += taken
    else {
      if (clusters > 0) yield { first, clusters }
      first = cluster
      clusters = taken
    }
  }
  if (clusters > 0) yield { first, clusters }
}

function tableAt(image: Qcow2Image, l1: DataView, at: number): number {
  const table = offsetOf(l1.getUint32(at), l1.getUint32(at + 4))
  if (table % image.geometry.clusterBytes === 0) return table
  throw image.corrupt(`L2 table offset ${hex(table)} unaligned (L1 index: ${hex(at / 8)})`)
}

/** The table at `offset`, valid until the caller waits. */
async function tableOf(image: Qcow2Image, offset: number): Promise<Table> {
  for (;;) {
    const table = image.l2.peek(offset)
    if (table !== undefined) return table
    await image.l2.load(offset)
  }
}

/** Takes the COPIED bits away, as everything that the active tables reach has a second user now. */
export async function clearCopied(image: Qcow2Image): Promise<void> {
  const { entryBytes } = image.geometry
  for (let index = 0; index < image.l1.length / 8; index++) {
    const offset = tableAt(image, image.l1View, index * 8)
    if (offset === 0) continue
    const table = await tableOf(image, offset)
    for (let at = 0; at < table.bytes.length; at += entryBytes) {
      const hi = table.view.getUint32(at)
      if ((hi & COPIED_HI) === 0 || (hi & COMPRESSED_HI) !== 0) continue
      table.view.setUint32(at, (hi & ~COPIED_HI) >>> 0)
      image.l2.touch(table, at, entryBytes)
    }
    const hi = image.l1View.getUint32(index * 8)
    image.setL1(index, hi & ~COPIED_HI, image.l1View.getUint32(index * 8 + 4))
  }
}

/** Sets the COPIED bits of everything that the active tables alone reach. */
export async function setCopied(image: Qcow2Image): Promise<void> {
  const { clusterBytes, entryBytes } = image.geometry
  for (let index = 0; index < image.l1.length / 8; index++) {
    const offset = tableAt(image, image.l1View, index * 8)
    if (offset === 0 || (await image.refcounts.get(offset / clusterBytes)) !== 1) continue
    const own = await entriesUsedOnce(image, offset)
    const table = await tableOf(image, offset)
    for (const at of own) {
      table.view.setUint32(at, (table.view.getUint32(at) | COPIED_HI) >>> 0)
      image.l2.touch(table, at, entryBytes)
    }
    const hi = image.l1View.getUint32(index * 8)
    image.setL1(index, hi | COPIED_HI, image.l1View.getUint32(index * 8 + 4))
  }
}

/** Where the entries stand that lack their COPIED bit. */
async function entriesUsedOnce(image: Qcow2Image, table: number): Promise<number[]> {
  const { clusterBytes, entryBytes } = image.geometry
  const entries = (await tableOf(image, table)).bytes.slice()
  const view = viewOf(entries)
  const found: number[] = []
  for (let at = 0; at < entries.length; at += entryBytes) {
    const hi = view.getUint32(at)
    const host = offsetOf(hi, view.getUint32(at + 4))
    if (host === 0 || (hi & (COMPRESSED_HI | COPIED_HI)) !== 0) continue
    const cluster = host / clusterBytes
    const count = image.refcounts.peek(cluster) ?? (await image.refcounts.get(cluster))
    if (count === 1) found.push(at)
  }
  return found
}
