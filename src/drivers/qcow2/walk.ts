/**
 * Counting every reference inside an image, for check and repair.
 *
 * Invariants:
 * - Only reads; the metadata must be in the file already.
 * - A pointer that is not aligned or leaves the file counts as a corruption and is not followed.
 */
import type { BlockChild } from '../../block/child.ts'
import { BITMAP_FLAG, parseTable, tableEntriesFor } from './bitmap-format.ts'
import {
  AUTOCLEAR,
  COMPRESSED_HI,
  COPIED_HI,
  compressedPlace,
  EXTENSION,
  offsetOf,
  read64,
  viewOf,
  ZERO_LO,
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
  /** Sentences about what else must not be, and leads nobody astray. */
  readonly oddities: string[]
  /** Clusters of what the disk holds now; those of snapshots alone are not among them. */
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
    oddities: [],
    allocated: 0,
    compressed: 0,
    fragmented: 0,
  }
  countRange(walk, header, 0, clusterBytes)
  await walkL1(walk, file, header, header.l1Offset, header.l1Size, true)
  for (const s of snapshots) await walkL1(walk, file, header, s.l1Offset, s.l1Size, false)
  for (const [index, { diskBytes }] of snapshots.entries())
    if (diskBytes === undefined && header.version >= 3)
      walk.oddities.push(`ERROR snapshot table entry ${index} is incomplete`)
  const last = snapshots.at(-1)
  if (last !== undefined)
    countRange(walk, header, header.snapshotsOffset, last.end - header.snapshotsOffset)
  if (header.autoclear & AUTOCLEAR.BITMAPS) await walkBitmaps(walk, file, header)
  return walk
}

/** Counts the clusters of a range; false when it leaves the file, which is a problem of its own. */
export function countRange(walk: Walk, header: Header, offset: number, bytes: number): boolean {
  if (bytes <= 0) return true
  const { clusterBytes } = header.geometry
  const first = Math.floor(offset / clusterBytes)
  const last = Math.floor((offset + bytes - 1) / clusterBytes)
  if (last >= walk.counts.length) {
    walk.problems.push(
      'ERROR: counting reference for region exceeding the end of the file by one cluster or more: ' +
        `offset ${hex(offset)} size ${hex(bytes)}`,
    )
    return false
  }
  for (let c = first; c <= last; c++) walk.counts[c] = (walk.counts[c] ?? 0) + 1
  return true
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
  if (!countRange(walk, header, offset, entries * 8)) return
  const view = viewOf(await readBytes(file, offset, entries * 8))
  for (let index = 0; index < entries; index++) {
    const hi = view.getUint32(index * 8)
    const lo = view.getUint32(index * 8 + 4)
    const table = offsetOf(hi, lo)
    if ((hi & RESERVED_HI) !== 0 || (lo & RESERVED_LO) !== 0)
      walk.oddities.push(`ERROR found L1 entry with reserved bits set: ${entryText(hi, lo)}`)
    if (table === 0) {
      if (hi !== 0 || lo !== 0)
        walk.problems.push(`ERROR found L1 entry without a table: ${entryText(hi, lo)}`)
      continue
    }
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
    checkEntry(walk, header, view, at)
    if ((hi & COMPRESSED_HI) !== 0) {
      const place = compressedPlace(hi, lo, clusterBits)
      countRange(walk, header, place.offset, place.bytes)
      // What is compressed lies nowhere in particular.
      if (active) {
        walk.allocated++
        walk.compressed++
        walk.fragmented++
      }
      continue
    }
    const host = offsetOf(hi, lo)
    if (header.dataFile !== undefined) {
      if (active && (host !== 0 || (hi & COPIED_HI) !== 0)) walk.allocated++
      continue
    }
    if (host === 0) continue
    if (host % clusterBytes !== 0) {
      walk.problems.push(
        `ERROR offset=${host.toString(16)}: Data cluster is not properly aligned; ` +
          'L2 entry corrupted.',
      )
      continue
    }
    if (active) walk.allocated++
    if (active && next !== 0 && next !== host) walk.fragmented++
    next = host + clusterBytes
    countRange(walk, header, host, clusterBytes)
    if (active) noteCopied(walk, header, table + at, host, hi)
  }
}

/** Bits that must be clear: 56 to 61 in both words' entries, 1 to 8, and bit 0 where it says nothing. */
const RESERVED_HI = 0x3f000000
const RESERVED_LO = 0x1ff

function entryText(hi: number, lo: number): string {
  return ((BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0)).toString(16)
}

/** Looks at the bits of an L2 entry that point nowhere. */
function checkEntry(walk: Walk, header: Header, view: DataView, at: number): void {
  const { extended } = header.geometry
  const hi = view.getUint32(at)
  const lo = view.getUint32(at + 4)
  if ((hi & COMPRESSED_HI) !== 0) {
    if ((hi & COPIED_HI) !== 0)
      walk.oddities.push(
        `ERROR: ${entryText(hi, lo)}: copied flag must never be set for compressed clusters`,
      )
    if (extended && (view.getUint32(at + 8) !== 0 || view.getUint32(at + 12) !== 0))
      walk.oddities.push('ERROR compressed cluster has non-zero subcluster allocation bitmap')
    return
  }
  const zeroFlag = header.version >= 3 && !extended ? ZERO_LO : 0
  if ((hi & RESERVED_HI) !== 0 || (lo & RESERVED_LO & ~zeroFlag) !== 0)
    walk.oddities.push(`ERROR found l2 entry with reserved bits set: ${entryText(hi, lo)}`)
  if (!extended) return
  const zero = view.getUint32(at + 8)
  const allocated = view.getUint32(at + 12)
  const host = offsetOf(hi, lo)
  const inside = host !== 0 || header.dataFile !== undefined
  if (!inside && allocated !== 0)
    walk.oddities.push('ERROR: Unallocated cluster has non-zero subcluster allocation map')
  else if ((zero & allocated) !== 0)
    walk.oddities.push(
      `ERROR offset=${host.toString(16)}: Allocated cluster has corrupted subcluster ` +
        'allocation bitmap',
    )
}

function noteCopied(walk: Walk, header: Header, at: number, host: number, hi: number): void {
  const cluster = host / header.geometry.clusterBytes
  walk.copied.push({ at, cluster, copied: (hi & COPIED_HI) !== 0 })
}

const BITMAP_FLAGS = BITMAP_FLAG.IN_USE | BITMAP_FLAG.AUTO | BITMAP_FLAG.EXTRA_DATA_COMPATIBLE

async function walkBitmaps(walk: Walk, file: BlockChild, header: Header): Promise<void> {
  const { clusterBytes } = header.geometry
  const found = header.extensions.find((extension) => extension.type === EXTENSION.BITMAPS)
  if (found === undefined) return
  const extension = viewOf(found.data)
  const bytes = read64(extension, 8)
  const offset = read64(extension, 16)
  if (!countRange(walk, header, offset, bytes)) return
  const view = viewOf(await readBytes(file, offset, bytes))
  for (let at = 0; at + 24 <= bytes; ) {
    const table = read64(view, at)
    const flags = view.getUint32(at + 12)
    const fitting = tableEntriesFor(header.size, 2 ** view.getUint8(at + 17), clusterBytes)
    if ((flags & BITMAP_FLAG.IN_USE) === 0 && view.getUint32(at + 8) !== fitting)
      walk.oddities.push(`ERROR bitmap at ${hex(offset + at)} has a table of a wrong length`)
    if ((flags & ~BITMAP_FLAGS) !== 0)
      walk.oddities.push(`ERROR bitmap at ${hex(offset + at)} has unknown flags ${hex(flags)}`)
    const entries = view.getUint32(at + 8)
    if (!countRange(walk, header, table, entries * 8)) return
    const known = parseTable(await readBytes(file, table, entries * 8), clusterBytes, file.length())
    for (const entry of known) {
      if (entry === 'damaged')
        walk.oddities.push(`ERROR bitmap table at ${hex(table)} has an entry that leads nowhere`)
      else if (typeof entry === 'object') countRange(walk, header, entry.cluster, clusterBytes)
    }
    at += Math.ceil((24 + view.getUint16(at + 18) + view.getUint32(at + 20)) / 8) * 8
  }
}
