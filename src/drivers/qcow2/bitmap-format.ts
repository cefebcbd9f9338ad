/**
 * The directory of stored dirty bitmaps: its bytes, read with suspicion and written back.
 *
 * Invariants:
 * - An entry that is not understood is kept byte for byte, apart from its in-use mark.
 * - Offsets and lengths of entries are checked before anybody follows them.
 */
import { BlockError } from '../../util/errors.ts'
import { EXTENSION, offsetOf, read64, viewOf, write64 } from './format.ts'
import type { Header } from './header.ts'

const ENTRY_BYTES = 24
const EXTENSION_BYTES = 24
const MAX_BITMAPS = 65535
const MAX_DIRECTORY_BYTES = 64 * 1024 * 1024
const MAX_TABLE_BYTES = 64 * 1024 * 1024
const MAX_NAME_BYTES = 1023
const MIN_GRANULARITY_BITS = 9
const MAX_GRANULARITY_BITS = 31
const TYPE_TRACKING = 1

/** Flags of an entry. */
export const BITMAP_FLAG = { IN_USE: 1, AUTO: 2, EXTRA_DATA_COMPATIBLE: 4 } as const
/** Byte within an entry where its flags stand. */
export const FLAGS_AT = 12

/** One stored bitmap. */
export interface StoredBitmap {
  readonly name: string
  /** `BITMAP_FLAG` bits. */
  readonly flags: number
  readonly type: number
  /** Bytes a bit stands for. */
  readonly granularity: number
  /** Where the table of its clusters lies. */
  readonly tableOffset: number
  /** Entries of the table. */
  readonly tableEntries: number
  /** Bytes that belong to the entry and are not understood. */
  readonly extra: Uint8Array
}

/** Where the directory lies. */
export interface DirectoryPlace {
  readonly count: number
  readonly bytes: number
  readonly offset: number
}

function bad(words: string): never {
  throw new BlockError('EINVAL', `bitmaps_ext: ${words}`)
}

/** The header's word on the directory; undefined when there is none. Errors: EINVAL. */
export function directoryPlace(header: Header): DirectoryPlace | undefined {
  const found = header.extensions.find((extension) => extension.type === EXTENSION.BITMAPS)
  if (found === undefined) return undefined
  if (found.data.length !== EXTENSION_BYTES) bad('Invalid extension length')
  const view = viewOf(found.data)
  const place = { count: view.getUint32(0), bytes: read64(view, 8), offset: read64(view, 16) }
  if (view.getUint32(4) !== 0) bad('Reserved field is not zero')
  if (place.count === 0) bad('found bitmaps extension with zero bitmaps')
  if (place.count > MAX_BITMAPS) bad(`Too many bitmaps: ${place.count}`)
  if (place.bytes > MAX_DIRECTORY_BYTES) bad('Bitmap directory is too large')
  if (place.offset % header.geometry.clusterBytes !== 0) bad('Invalid bitmap directory offset')
  return place
}

/** Puts the place of the directory into the header, or takes it out. True: the header changed. */
export function setDirectoryPlace(header: Header, place: DirectoryPlace | undefined): boolean {
  const at = header.extensions.findIndex((extension) => extension.type === EXTENSION.BITMAPS)
  if (place === undefined) {
    if (at >= 0) header.extensions.splice(at, 1)
    return at >= 0
  }
  const data = new Uint8Array(EXTENSION_BYTES)
  const view = viewOf(data)
  view.setUint32(0, place.count)
  write64(view, 8, place.bytes)
  write64(view, 16, place.offset)
  const extension = { type: EXTENSION.BITMAPS, data }
  if (at >= 0) header.extensions[at] = extension
  else header.extensions.push(extension)
  return true
}

function entryBytes(nameBytes: number, extraBytes: number): number {
  return Math.ceil((ENTRY_BYTES + nameBytes + extraBytes) / 8) * 8
}

/** All entries of a directory, and where each begins. Errors: EINVAL. */
export function parseDirectory(
  bytes: Uint8Array,
  count: number,
  clusterBytes: number,
): { readonly entry: StoredBitmap; readonly at: number }[] {
  const view = viewOf(bytes)
  const found: { entry: StoredBitmap; at: number }[] = []
  let at = 0
  for (; at + ENTRY_BYTES <= bytes.length; ) {
    const nameBytes = view.getUint16(at + 18)
    const extraBytes = view.getUint32(at + 20)
    const end = at + entryBytes(nameBytes, extraBytes)
    if (end > bytes.length) bad('Broken bitmap directory')
    const extraEnd = at + ENTRY_BYTES + extraBytes
    const bits = view.getUint8(at + 17)
    const entry: StoredBitmap = {
      name: Buffer.from(bytes.subarray(extraEnd, extraEnd + nameBytes)).toString('utf8'),
      flags: view.getUint32(at + FLAGS_AT),
      type: view.getUint8(at + 16),
      granularity: 2 ** bits,
      tableOffset: read64(view, at),
      tableEntries: view.getUint32(at + 8),
      extra: bytes.slice(at + ENTRY_BYTES, extraEnd),
    }
    const fits = bits >= MIN_GRANULARITY_BITS && bits <= MAX_GRANULARITY_BITS
    if (!fits || nameBytes === 0 || nameBytes > MAX_NAME_BYTES) bad('Broken bitmap directory')
    if (entry.tableOffset % clusterBytes !== 0 || entry.tableEntries * 8 > MAX_TABLE_BYTES)
      bad(`Bitmap '${entry.name}' doesn't satisfy the constraints`)
    if (found.some((other) => other.entry.name === entry.name)) bad('Duplicate bitmap name')
    found.push({ entry, at })
    at = end
  }
  if (at !== bytes.length || found.length !== count) bad('Broken bitmap directory')
  return found
}

/** The bytes of a directory. */
export function encodeDirectory(entries: readonly StoredBitmap[]): Uint8Array {
  const names = entries.map((entry) => Buffer.from(entry.name))
  const sizes = entries.map((entry, i) => entryBytes(names[i]?.length ?? 0, entry.extra.length))
  const bytes = new Uint8Array(sizes.reduce((sum, size) => sum + size, 0))
  const view = viewOf(bytes)
  let at = 0
  for (const [i, entry] of entries.entries()) {
    const name = names[i] ?? new Uint8Array(0)
    write64(view, at, entry.tableOffset)
    view.setUint32(at + 8, entry.tableEntries)
    view.setUint32(at + FLAGS_AT, entry.flags)
    view.setUint8(at + 16, entry.type)
    view.setUint8(at + 17, Math.log2(entry.granularity))
    view.setUint16(at + 18, name.length)
    view.setUint32(at + 20, entry.extra.length)
    bytes.set(entry.extra, at + ENTRY_BYTES)
    bytes.set(name, at + ENTRY_BYTES + entry.extra.length)
    at += sizes[i] ?? 0
  }
  return bytes
}

/** An entry whose content can be used: understood, and stored in order. */
export function usable(entry: StoredBitmap): boolean {
  const known = BITMAP_FLAG.IN_USE | BITMAP_FLAG.AUTO | BITMAP_FLAG.EXTRA_DATA_COMPATIBLE
  const extraOk =
    entry.extra.length === 0 || (entry.flags & BITMAP_FLAG.EXTRA_DATA_COMPATIBLE) !== 0
  const flagsOk = (entry.flags & (BITMAP_FLAG.IN_USE | ~known)) === 0
  return entry.type === TYPE_TRACKING && flagsOk && extraOk
}

/** A new entry. */
export function newEntry(
  name: string,
  granularity: number,
  auto: boolean,
  table: { readonly offset: number; readonly entries: number },
): StoredBitmap {
  return {
    name,
    flags: auto ? BITMAP_FLAG.AUTO : 0,
    type: TYPE_TRACKING,
    granularity,
    tableOffset: table.offset,
    tableEntries: table.entries,
    extra: new Uint8Array(0),
  }
}

/** Entries that the table of a bitmap over `size` bytes has. */
export function tableEntriesFor(size: number, granularity: number, clusterBytes: number): number {
  return Math.ceil(Math.ceil(size / granularity) / 8 / clusterBytes)
}

/** One entry of a table: a cluster, or all clean, or all dirty. */
export type TableEntry = { readonly cluster: number } | 'clean' | 'dirty' | 'damaged'

/** Decodes a table; pointers that lead nowhere are `damaged`. */
export function parseTable(bytes: Uint8Array, clusterBytes: number, end: number): TableEntry[] {
  const view = viewOf(bytes)
  return Array.from({ length: bytes.length / 8 }, (_, i): TableEntry => {
    const hi = view.getUint32(i * 8)
    const lo = view.getUint32(i * 8 + 4)
    const offset = offsetOf(hi, lo)
    if ((hi & 0xff000000) !== 0 || (lo & 0x1fe) !== 0) return 'damaged'
    if (offset === 0) return (lo & 1) === 0 ? 'clean' : 'dirty'
    if ((lo & 1) !== 0 || offset % clusterBytes !== 0 || offset >= end) return 'damaged'
    return { cluster: offset }
  })
}

/** The names of flags as monitors show them. */
export function flagNames(flags: number): string[] {
  const names: string[] = []
  if ((flags & BITMAP_FLAG.IN_USE) !== 0) names.push('in-use')
  if ((flags & BITMAP_FLAG.AUTO) !== 0) names.push('auto')
  return names
}
