/**
 * The qcow2 header: read with every check that an image from elsewhere needs, and written back without
 * losing what we do not know.
 *
 * Invariants:
 * - An image that fails a check is refused with the reason and is not touched.
 * - Unknown header fields and extensions survive a rewrite byte for byte.
 */
import { BlockError } from '../../util/errors.ts'
import type { Geometry } from './format.ts'
import {
  EXTENSION,
  geometryOf,
  INCOMPAT,
  INCOMPAT_KNOWN,
  MAX_L1_BYTES,
  MAX_REFTABLE_BYTES,
  MAX_SNAPSHOTS,
  QCOW2_MAGIC,
  read64,
  V2_HEADER_BYTES,
  V3_HEADER_BYTES,
  viewOf,
  write64,
} from './format.ts'

/** One header extension. */
export interface Extension {
  readonly type: number
  readonly data: Uint8Array
}

/** What the header says; the fields that change while the image is open are mutable. */
export interface Header {
  readonly version: number
  readonly geometry: Geometry
  size: number
  l1Size: number
  l1Offset: number
  reftableOffset: number
  reftableClusters: number
  snapshots: number
  snapshotsOffset: number
  incompatible: number
  compatible: number
  autoclear: number
  readonly refcountOrder: number
  readonly headerBytes: number
  readonly compression: number
  backingFile: string | undefined
  backingFormat: string | undefined
  readonly dataFile: string | undefined
  extensions: Extension[]
  /** Bytes between the fields known here and the first extension. */
  readonly unknown: Uint8Array
}

function bad(words: string): never {
  throw new BlockError('EINVAL', words)
}

function unsupported(words: string): never {
  throw new BlockError('UNSUPPORTED_FEATURE', words)
}

/** The first bytes of an image as far as its cluster size is known; throws on anything else. */
export function clusterBitsOf(start: Uint8Array): number {
  const view = viewOf(start)
  if (start.length < V2_HEADER_BYTES || view.getUint32(0) !== QCOW2_MAGIC)
    bad('Image is not in qcow2 format')
  const version = view.getUint32(4)
  if (version !== 2 && version !== 3) unsupported(`Unsupported qcow2 version ${version}`)
  const bits = view.getUint32(20)
  if (bits < 9 || bits > 21) bad(`Unsupported cluster size: 2^${bits}`)
  return bits
}

/**
 * Parses the first cluster. Errors: EINVAL or UNSUPPORTED_FEATURE with the reason.
 */
export function parseHeader(cluster: Uint8Array): Header {
  const clusterBits = clusterBitsOf(cluster)
  const view = viewOf(cluster)
  const version = view.getUint32(4)
  const headerBytes = version === 2 ? V2_HEADER_BYTES : view.getUint32(100)
  if (version === 3 && headerBytes < 104) bad('qcow2 header too short')
  if (headerBytes > cluster.length) bad('qcow2 header exceeds cluster size')
  const backingOffset = read64(view, 8)
  if (backingOffset > cluster.length) bad('Invalid backing file offset')
  const extensionsEnd = backingOffset === 0 ? cluster.length : backingOffset
  const extensions = parseExtensions(cluster, headerBytes, extensionsEnd)
  checkFeatures(view, version, extensions)
  const v3 = version === 3
  const incompatible = v3 ? view.getUint32(76) : 0
  const extended = (incompatible & INCOMPAT.EXTENDED_L2) !== 0
  if (extended && clusterBits < 14) bad('Unsupported cluster size for extended L2 entries')
  const header: Header = {
    version,
    geometry: geometryOf(clusterBits, extended),
    size: read64(view, 24),
    l1Size: view.getUint32(36),
    l1Offset: read64(view, 40),
    reftableOffset: read64(view, 48),
    reftableClusters: view.getUint32(56),
    snapshots: view.getUint32(60),
    snapshotsOffset: read64(view, 64),
    incompatible,
    compatible: v3 ? view.getUint32(84) : 0,
    autoclear: v3 ? view.getUint32(92) : 0,
    refcountOrder: v3 ? view.getUint32(96) : 4,
    headerBytes,
    compression: headerBytes > 104 ? view.getUint8(104) : 0,
    backingFile: parseBacking(cluster, backingOffset, view.getUint32(16)),
    backingFormat: textOf(extensions, EXTENSION.BACKING_FORMAT),
    dataFile: textOf(extensions, EXTENSION.DATA_FILE),
    extensions,
    unknown: cluster.slice(Math.min(headerBytes, V3_HEADER_BYTES), headerBytes),
  }
  checkTables(header, view.getUint32(32), v3 && view.getUint32(88) !== 0)
  return header
}

function parseExtensions(cluster: Uint8Array, start: number, end: number): Extension[] {
  const view = viewOf(cluster)
  const found: Extension[] = []
  for (let at = start; at + 8 <= end; ) {
    const type = view.getUint32(at)
    const bytes = view.getUint32(at + 4)
    at += 8
    if (bytes > end - at) bad('Header extension too large')
    if (type === EXTENSION.END) break
    found.push({ type, data: cluster.slice(at, at + bytes) })
    at += Math.ceil(bytes / 8) * 8
  }
  return found
}

function textOf(extensions: readonly Extension[], type: number): string | undefined {
  const found = extensions.find((extension) => extension.type === type)
  return found === undefined ? undefined : Buffer.from(found.data).toString('utf8')
}

function parseBacking(cluster: Uint8Array, offset: number, bytes: number): string | undefined {
  if (offset === 0) return undefined
  if (bytes > 1023 || bytes > cluster.length - offset) bad('Backing file name too long')
  return Buffer.from(cluster.subarray(offset, offset + bytes)).toString('utf8')
}

function checkFeatures(view: DataView, version: number, extensions: readonly Extension[]): void {
  if (version === 2) return
  const low = (view.getUint32(76) & ~INCOMPAT_KNOWN) >>> 0
  const high = view.getUint32(72)
  if (low === 0 && high === 0) return
  const names = extensions.find((extension) => extension.type === EXTENSION.FEATURE_NAMES)
  const words: string[] = []
  let unnamed = (BigInt(high) << 32n) | BigInt(low)
  for (let at = 0; names !== undefined && at + 48 <= names.data.length; at += 48) {
    const bit = 1n << BigInt(names.data[at + 1] ?? 0)
    if (names.data[at] !== 0 || (unnamed & bit) === 0n) continue
    words.push(
      Buffer.from(names.data.subarray(at + 2, at + 48))
        .toString()
        .replace(/\0.*$/s, ''),
    )
    unnamed &= ~bit
  }
  if (unnamed !== 0n) words.push(`Unknown incompatible feature: ${unnamed.toString(16)}`)
  unsupported(`Unsupported qcow2 feature(s): ${words.join(', ')}`)
}

function checkTables(header: Header, encryption: number, unknownAutoclear: boolean): void {
  const { clusterBytes, l2Coverage } = header.geometry
  const aligned = (offset: number): boolean =>
    offset % clusterBytes === 0 && offset < Number.MAX_SAFE_INTEGER
  if (unknownAutoclear) header.autoclear |= 0x80000000
  if (header.refcountOrder > 6) bad('Reference count entry width too large; may not exceed 64 bits')
  if (encryption > 2) unsupported(`Unsupported encryption method ${encryption}`)
  if (encryption !== 0) unsupported('Encrypted images are not supported')
  const flagged = (header.incompatible & INCOMPAT.COMPRESSION) !== 0
  if (header.compression !== 0 && !flagged)
    bad('qcow2: Compression type incompatible feature bit must be set')
  if (header.compression === 0 && flagged)
    bad('qcow2: Compression type incompatible feature bit must not be set')
  if (header.compression > 1) unsupported(`qcow2: unknown compression type: ${header.compression}`)
  if (header.reftableClusters * clusterBytes > MAX_REFTABLE_BYTES)
    bad('Reference count table too large')
  if (header.reftableClusters === 0) bad('Image does not contain a reference count table')
  if (!aligned(header.reftableOffset)) bad('Reference count table offset invalid')
  if (header.snapshots > MAX_SNAPSHOTS) bad('Snapshot table too large')
  const snapshotsAligned = header.snapshotsOffset % clusterBytes === 0
  if (!snapshotsAligned || (header.snapshots > 0 && !aligned(header.snapshotsOffset)))
    bad('Snapshot table offset invalid')
  if (header.l1Size * 8 > MAX_L1_BYTES) bad('Active L1 table too large')
  if (header.size > Number.MAX_SAFE_INTEGER) bad('Image is too big')
  if (header.l1Size < Math.ceil(header.size / l2Coverage)) bad('L1 table is too small')
  if (!aligned(header.l1Offset)) bad('Active L1 table offset invalid')
}

/** Notes another name and format of the backing image; undefined for none. */
export function setBackingName(
  header: Header,
  file: string | undefined,
  format: string | undefined,
): void {
  header.backingFile = file
  header.backingFormat = format
  const rest = header.extensions.filter(({ type }) => type !== EXTENSION.BACKING_FORMAT)
  const data = format === undefined ? undefined : Buffer.from(format)
  const own = data === undefined ? [] : [{ type: EXTENSION.BACKING_FORMAT, data }]
  header.extensions = [...own, ...rest]
}

/** The whole header area as it goes into the first cluster, zero padded to `clusterBytes`. */
export function encodeHeader(header: Header): Uint8Array {
  const { clusterBytes } = header.geometry
  const cluster = new Uint8Array(clusterBytes)
  const view = viewOf(cluster)
  const v3 = header.version === 3
  view.setUint32(0, QCOW2_MAGIC)
  view.setUint32(4, header.version)
  view.setUint32(20, header.geometry.clusterBits)
  write64(view, 24, header.size)
  view.setUint32(36, header.l1Size)
  write64(view, 40, header.l1Offset)
  write64(view, 48, header.reftableOffset)
  view.setUint32(56, header.reftableClusters)
  view.setUint32(60, header.snapshots)
  write64(view, 64, header.snapshotsOffset)
  const headerBytes = v3 ? V3_HEADER_BYTES + header.unknown.length : V2_HEADER_BYTES
  if (v3) {
    view.setUint32(76, header.incompatible)
    view.setUint32(84, header.compatible)
    view.setUint32(92, header.autoclear)
    view.setUint32(96, header.refcountOrder)
    view.setUint32(100, headerBytes)
    view.setUint8(104, header.compression)
    cluster.set(header.unknown, V3_HEADER_BYTES)
  }
  let at = headerBytes
  for (const extension of header.extensions) {
    if (at + 8 + extension.data.length + 8 > clusterBytes)
      throw new BlockError('ENOSPC', 'The header does not fit into the first cluster')
    view.setUint32(at, extension.type)
    view.setUint32(at + 4, extension.data.length)
    cluster.set(extension.data, at + 8)
    at += 8 + Math.ceil(extension.data.length / 8) * 8
  }
  at += 8
  if (header.backingFile !== undefined) {
    const name = Buffer.from(header.backingFile)
    if (name.length > 1023 || at + name.length > clusterBytes) bad('Backing file name too long')
    write64(view, 8, at)
    view.setUint32(16, name.length)
    cluster.set(name, at)
  }
  return cluster
}
