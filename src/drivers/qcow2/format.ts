/**
 * Numbers and entries of the qcow2 format.
 *
 * Invariants:
 * - Entries are kept as two 32-bit words: their flag bits do not survive Number arithmetic.
 * - An offset taken from an entry is below 2^56 and may be wrong; whoever uses it checks it.
 */

/** `QFI\xfb`. */
export const QCOW2_MAGIC = 0x514649fb
/** incompatible_features bits. */
export const INCOMPAT = {
  DIRTY: 1,
  CORRUPT: 2,
  DATA_FILE: 4,
  COMPRESSION: 8,
  EXTENDED_L2: 16,
} as const
/** All incompatible features understood here. */
export const INCOMPAT_KNOWN = 0x1f
/** compatible_features bit 0. */
export const COMPAT_LAZY_REFCOUNTS = 1
/** autoclear_features bits. */
export const AUTOCLEAR = { BITMAPS: 1, RAW_DATA: 2 } as const
/** Header extension types. */
export const EXTENSION = {
  END: 0,
  BACKING_FORMAT: 0xe2792aca,
  FEATURE_NAMES: 0x6803f857,
  BITMAPS: 0x23852875,
  CRYPTO: 0x0537be77,
  DATA_FILE: 0x44415441,
} as const
/** Bytes of a version 2 header. */
export const V2_HEADER_BYTES = 72
/** Bytes of the version 3 header as written here. */
export const V3_HEADER_BYTES = 112
/** L1 and L2 entries, high word: the cluster is used once. */
export const COPIED_HI = 0x80000000
/** L2 entries, high word: compressed. */
export const COMPRESSED_HI = 0x40000000
/** L2 entries, low word: reads as zeroes. */
export const ZERO_LO = 1
/** Subclusters of a cluster with extended L2 entries. */
export const SUBCLUSTERS = 32
/** Largest active L1 table in bytes. */
export const MAX_L1_BYTES: number = 32 * 1024 * 1024
/** Largest refcount table in bytes. */
export const MAX_REFTABLE_BYTES: number = 8 * 1024 * 1024
/** Most internal snapshots. */
export const MAX_SNAPSHOTS = 65536

const TWO_32 = 0x1_0000_0000

/** The offset in an L1 or L2 entry (bits 9 to 55). */
export function offsetOf(hi: number, lo: number): number {
  return (hi & 0x00ffffff) * TWO_32 + ((lo & 0xfffffe00) >>> 0)
}

/** The high word of an offset. */
export function hiOf(offset: number): number {
  return Math.floor(offset / TWO_32)
}

/** The low word of an offset. */
export function loOf(offset: number): number {
  return (offset % TWO_32) >>> 0
}

/** A 64-bit number that may exceed 2^53, which then is out of every range anyway. */
export function read64(view: DataView, at: number): number {
  return view.getUint32(at) * TWO_32 + view.getUint32(at + 4)
}

/** Stores a 64-bit number below 2^53. */
export function write64(view: DataView, at: number, value: number): void {
  view.setUint32(at, hiOf(value))
  view.setUint32(at + 4, loOf(value))
}

/** A view of exactly these bytes. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

/** Geometry that follows from the header. */
export interface Geometry {
  readonly clusterBits: number
  readonly clusterBytes: number
  /** Bytes of one L2 entry: 8, or 16 when extended. */
  readonly entryBytes: number
  /** Entries of one L2 table. */
  readonly l2Entries: number
  /** Guest bytes that one L2 table covers. */
  readonly l2Coverage: number
  /** Guest bytes with a status of their own: a cluster, or a subcluster. */
  readonly unitBytes: number
  readonly extended: boolean
}

/** The geometry of a cluster size. */
export function geometryOf(clusterBits: number, extended: boolean): Geometry {
  const clusterBytes = 2 ** clusterBits
  const entryBytes = extended ? 16 : 8
  const l2Entries = clusterBytes / entryBytes
  return {
    clusterBits,
    clusterBytes,
    entryBytes,
    l2Entries,
    l2Coverage: l2Entries * clusterBytes,
    unitBytes: extended ? clusterBytes / SUBCLUSTERS : clusterBytes,
    extended,
  }
}

/** Where the data of a compressed cluster lie. */
export interface CompressedPlace {
  /** First byte, not aligned. */
  readonly offset: number
  /** Bytes that may belong to it; the stream ends earlier. */
  readonly bytes: number
}

/** Decodes the entry of a compressed cluster. */
export function compressedPlace(hi: number, lo: number, clusterBits: number): CompressedPlace {
  const entry = (BigInt(hi & 0x3fffffff) << 32n) | BigInt(lo >>> 0)
  const offsetBits = BigInt(62 - (clusterBits - 8))
  const offset = Number(entry & ((1n << offsetBits) - 1n))
  const sectors = Number(entry >> offsetBits) + 1
  return { offset, bytes: sectors * 512 - (offset % 512) }
}
