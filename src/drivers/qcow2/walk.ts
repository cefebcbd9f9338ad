/**
 * Counting every reference inside an image, for check and repair.
 *
 * Invariants:
 * - Only reads; the metadata must be in the file already.
 * - A pointer that is not aligned or leaves the file counts as a corruption and is not followed.
 */
import type { BlockChild } from '../../block/child.ts'
import {
  AUTOCLEAR,
  COMPRESSED_HI,
  COPIED_HI,
  compressedPlace,
  EXTENSION,
  offsetOf,
  read64,
  viewOf,
} from './format.ts'
import type { Header } from './header.ts'
import { hex } from './mapping.ts'
import type { Snapshot } from './snapshots.ts'

/** An L1 or L2 entry of the active tables whose COPIED bit must agree with a count. */
export interface CopiedEntry {
  /** Where the entry stands in the file. */
  readonly at: number
  /** Cluster it points at. */
  readonly cluster: number
  readonly copied: boolean
}

/** Everything found. */
export interface Walk {
  /** References by cluster. */
  readonly counts: Uint32Array
  readonly copied: CopiedEntry[]
  /** Sentences about bad pointers. */
  readonly problems: string[]
  allocated: number
  compressed: number
  fragmented: number
}

/** Reads bytes of the image file. */
export async function readBytes(
  file: BlockChild,
  offset: number,
  bytes: number,
): Promise<Uint8Array> {
  const into = new Uint8Array(bytes)
  const pending = file.pread(offset, into)
  if (pending !== undefined) await pending
  return into
}

/** Walks all but the refcount structures. */
export async function walkImage(
  file: BlockChild,
  header: Header,
  snapshots: readonly Snapshot[],
): Promise<Walk> {
  const { clusterBytes } = header.geometry
  const walk: Walk = {
    counts: new Uint32Array(Math.ceil(file.length() / clusterBytes) + 1),
    copied: [],
    problems: [],
    allocated: 0,
    compressed: 0,
    fragmented: 0,
  }
  countRange(walk, header, 0, clusterBytes)
  await walkL1(walk, file, header, header.l1Offset, header.l1Size, true)
  for (const s of snapshots) await walkL1(walk, file, header, s.l1Offset, s.l1Size, false)
  const last = snapshots.at(-1)
  if (last !== undefined)
    countRange(walk, header, header.snapshotsOffset, last.end - header.snapshotsOffset)
  if (header.autoclear & AUTOCLEAR.BITMAPS) await walkBitmaps(walk, file, header)
  return walk
}

/** Counts the clusters of a range. */
export function countRange(walk: Walk, header: Header, offset: number, bytes: number): void {
  if (bytes <= 0) return
  const { clusterBytes } = header.geometry
  const first = Math.floor(offset / clusterBytes)
  const last = Math.floor((offset + bytes - 1) / clusterBytes)
  if (last >= walk.counts.length) {
    walk.problems.push(
      'ERROR: counting reference for region exceeding the end of the file by one cluster or more: ' +
        `offset ${hex(offset)} size ${hex(bytes)}`,
    )
    return
  }
  for (let c = first; c <= last; c++) walk.counts[c] = (walk.counts[c] ?? 0) + 1
}

async function walkL1(
  walk: Walk,
  file: BlockChild,
  header: Header,
  offset: number,
  entries: number,
  active: boolean,
): Promise<void> {
  const { clusterBytes } = header.geometry
  countRange(walk, header, offset, entries * 8)
  const view = viewOf(await readBytes(file, offset, entries * 8))
  for (let index = 0; index < entries; index++) {
    const hi = view.getUint32(index * 8)
    const table = offsetOf(hi, view.getUint32(index * 8 + 4))
    if (table === 0) continue
    if (table % clusterBytes !== 0) {
      walk.problems.push(
        `ERROR l2_offset=${table.toString(16)}: Table is not cluster aligned; L1 entry corrupted`,
      )
      continue
    }
    countRange(walk, header, table, clusterBytes)
    if (table >= file.length()) continue
    if (active) noteCopied(walk, header, offset + index * 8, table, hi)
    await walkL2(walk, file, header, table, active)
  }
}

async function walkL2(
  walk: Walk,
  file: BlockChild,
  header: Header,
  table: number,
  active: boolean,
): Promise<void> {
  const { clusterBytes, entryBytes, clusterBits } = header.geometry
  const view = viewOf(await readBytes(file, table, clusterBytes))
  let next = 0
  for (let at = 0; at < clusterBytes; at += entryBytes) {
    const hi = view.getUint32(at)
    const lo = view.getUint32(at + 4)
    if ((hi & COMPRESSED_HI) !== 0) {
      const place = compressedPlace(hi, lo, clusterBits)
      countRange(walk, header, place.offset, place.bytes)
      walk.allocated++
      walk.compressed++
      continue
    }
    const host = offsetOf(hi, lo)
    if (host === 0 || header.dataFile !== undefined) continue
    if (host % clusterBytes !== 0) {
      walk.problems.push(
        `ERROR offset=${host.toString(16)}: Data cluster is not properly aligned; ` +
          'L2 entry corrupted.',
      )
      continue
    }
    walk.allocated++
    if (next !== 0 && next !== host) walk.fragmented++
    next = host + clusterBytes
    countRange(walk, header, host, clusterBytes)
    if (active) noteCopied(walk, header, table + at, host, hi)
  }
}

function noteCopied(walk: Walk, header: Header, at: number, host: number, hi: number): void {
  const cluster = host / header.geometry.clusterBytes
  walk.copied.push({ at, cluster, copied: (hi & COPIED_HI) !== 0 })
}

async function walkBitmaps(walk: Walk, file: BlockChild, header: Header): Promise<void> {
  const { clusterBytes } = header.geometry
  const found = header.extensions.find((extension) => extension.type === EXTENSION.BITMAPS)
  if (found === undefined) return
  const extension = viewOf(found.data)
  const bytes = read64(extension, 8)
  const offset = read64(extension, 16)
  countRange(walk, header, offset, bytes)
  const view = viewOf(await readBytes(file, offset, bytes))
  for (let at = 0; at + 24 <= bytes; ) {
    const table = read64(view, at)
    const entries = view.getUint32(at + 8)
    countRange(walk, header, table, entries * 8)
    const tableView = viewOf(await readBytes(file, table, entries * 8))
    for (let i = 0; i < entries; i++) {
      const data = offsetOf(tableView.getUint32(i * 8), tableView.getUint32(i * 8 + 4))
      if (data !== 0) countRange(walk, header, data, clusterBytes)
    }
    at += Math.ceil((24 + view.getUint16(at + 18) + view.getUint32(at + 20)) / 8) * 8
  }
}
