/**
 * Making a new, empty qcow2 image.
 *
 * Invariants:
 * - Order of clusters: header, refcount table, refcount blocks, L1 table; the file ends with the L1
 *   table, not with its cluster.
 * - Options are checked before anything is written.
 */
import * as fs from 'node:fs'
import type { Pending } from '../../coroutine/coroutine.ts'
import { asBlockError, BlockError, codeWords } from '../../util/errors.ts'
import {
  AUTOCLEAR,
  COMPAT_LAZY_REFCOUNTS,
  EXTENSION,
  geometryOf,
  INCOMPAT,
  MAX_L1_BYTES,
  viewOf,
  write64,
} from './format.ts'
import type { Extension, Header } from './header.ts'
import { encodeHeader } from './header.ts'
import { setRefcount } from './refcount-bits.ts'

/** What a new image shall be. */
export interface Qcow2CreateOptions {
  /** Virtual size in bytes; a multiple of 512. */
  readonly size: number
  /** Format version; default 3. */
  readonly version?: 2 | 3
  /** Cluster size in bytes, a power of two from 512 to 2 MiB; default 64 KiB. */
  readonly clusterSize?: number
  /** Width of a refcount, a power of two up to 64; default 16. */
  readonly refcountBits?: number
  /** Name of the backing image as it shall be written down. */
  readonly backingFile?: string
  /** Format of the backing image; needed with `backingFile`. */
  readonly backingFormat?: string
  /** Leave refcounts behind until the image is closed; default false. */
  readonly lazyRefcounts?: boolean
  /** 16-byte L2 entries with subclusters; default false. */
  readonly extendedL2?: boolean
  /** Compression of clusters; default zlib. */
  readonly compressionType?: 'zlib' | 'zstd'
  /** Name of an external data file as it shall be written down. */
  readonly dataFile?: string
  /** Keep the data file readable as a raw image. */
  readonly dataFileRaw?: boolean
}

/** Where an image can be written: a node's edge, a backend, or anything like them. */
export interface CreateTarget {
  /** Writes at an offset, beyond the end too. */
  pwrite(offset: number, buf: Uint8Array): Pending
  /** Makes it stable. */
  flush(): Pending
}

const FEATURES: readonly (readonly [number, number, string])[] = [
  [0, 0, 'dirty bit'],
  [0, 1, 'corrupt bit'],
  [0, 2, 'external data file'],
  [0, 3, 'compression type'],
  [0, 4, 'extended L2 entries'],
  [1, 0, 'lazy refcounts'],
  [2, 0, 'bitmaps'],
  [2, 1, 'raw external data'],
]
const MAX_BYTES = 2 ** 53

function refuse(words: string): never {
  throw new BlockError('EINVAL', words)
}

const powerOfTwo = (n: number): boolean => Number.isInteger(Math.log2(n))

function check(options: Qcow2CreateOptions): void {
  const { size, clusterSize = 65536, refcountBits = 16, version = 3 } = options
  if (!powerOfTwo(clusterSize) || clusterSize < 512 || clusterSize > 2 * 1024 * 1024)
    refuse('Cluster size must be a power of two between 512 and 2048k')
  if (!powerOfTwo(refcountBits) || refcountBits < 1 || refcountBits > 64)
    refuse('Refcount width must be a power of two and may not exceed 64 bits')
  if (size % 512 !== 0 || size < 0) refuse('Image size must be a multiple of 512 bytes')
  const needsV3 = (what: string): never =>
    refuse(`${what} compatibility level 1.1 and above (use version=v3 or greater)`)
  if (version < 3) {
    if (options.lazyRefcounts === true) needsV3('Lazy refcounts only supported with')
    if (options.extendedL2 === true) needsV3('Extended L2 entries are only supported with')
    if (options.compressionType === 'zstd')
      needsV3('Non-zlib compression type is only supported with')
    if (refcountBits !== 16)
      refuse(
        'Different refcount widths than 16 bits require compatibility level 1.1 or above ' +
          '(use version=v3 or greater)',
      )
    if (options.dataFile !== undefined) needsV3('External data files are only supported with')
  }
  if (options.extendedL2 === true && clusterSize < 16384)
    refuse('Extended L2 entries are only supported with cluster sizes of at least 16384 bytes')
  if (options.dataFileRaw === true && options.dataFile === undefined)
    refuse('data-file-raw requires data-file')
  if (options.backingFile !== undefined && options.backingFormat === undefined)
    refuse('Backing file specified without backing format')
  const entries = Math.ceil(size / (clusterSize * (clusterSize / (options.extendedL2 ? 16 : 8))))
  if (size > MAX_BYTES || entries * 8 > MAX_L1_BYTES)
    refuse("The image size is too large for file format 'qcow2' (try using a larger cluster size)")
}

function featureNames(): Uint8Array {
  const bytes = new Uint8Array(FEATURES.length * 48)
  for (const [i, [kind, bit, name]] of FEATURES.entries()) {
    bytes[i * 48] = kind
    bytes[i * 48 + 1] = bit
    bytes.set(Buffer.from(name), i * 48 + 2)
  }
  return bytes
}

function extensionsOf(options: Qcow2CreateOptions, clusterBytes: number): Extension[] {
  const list: Extension[] = []
  const text = (type: number, value: string | undefined): void => {
    if (value !== undefined) list.push({ type, data: Buffer.from(value) })
  }
  if (options.backingFile !== undefined) text(EXTENSION.BACKING_FORMAT, options.backingFormat)
  text(EXTENSION.DATA_FILE, options.dataFile)
  if ((options.version ?? 3) >= 3 && clusterBytes > 512)
    list.push({ type: EXTENSION.FEATURE_NAMES, data: featureNames() })
  return list
}

interface Layout {
  readonly tableClusters: number
  readonly blocks: number
  readonly l1Bytes: number
}

/** How many clusters the refcount structures need to count themselves and the L1 table. */
function layoutOf(header: Header): Layout {
  const { clusterBytes, l2Coverage } = header.geometry
  const l1Bytes = Math.ceil(header.size / l2Coverage) * 8
  const perBlock = (clusterBytes * 8) >> header.refcountOrder
  let tableClusters = 1
  let blocks = 1
  for (;;) {
    const used = 1 + tableClusters + blocks + Math.ceil(l1Bytes / clusterBytes)
    const needBlocks = Math.ceil(used / perBlock)
    const needTable = Math.ceil((needBlocks * 8) / clusterBytes)
    if (needBlocks <= blocks && needTable <= tableClusters) break
    blocks = Math.max(blocks, needBlocks)
    tableClusters = Math.max(tableClusters, needTable)
  }
  return { tableClusters, blocks, l1Bytes }
}

/** The bytes of a new image, from offset 0 to its end. */
export function encodeNewImage(options: Qcow2CreateOptions): Uint8Array {
  check(options)
  const clusterBytes = options.clusterSize ?? 65536
  const zstd = options.compressionType === 'zstd'
  const header: Header = {
    version: options.version ?? 3,
    geometry: geometryOf(Math.log2(clusterBytes), options.extendedL2 === true),
    size: options.size,
    l1Size: 0,
    l1Offset: 0,
    reftableOffset: clusterBytes,
    reftableClusters: 0,
    snapshots: 0,
    snapshotsOffset: 0,
    incompatible:
      (options.dataFile === undefined ? 0 : INCOMPAT.DATA_FILE) |
      (zstd ? INCOMPAT.COMPRESSION : 0) |
      (options.extendedL2 === true ? INCOMPAT.EXTENDED_L2 : 0),
    compatible: options.lazyRefcounts === true ? COMPAT_LAZY_REFCOUNTS : 0,
    autoclear: options.dataFileRaw === true ? AUTOCLEAR.RAW_DATA : 0,
    refcountOrder: Math.log2(options.refcountBits ?? 16),
    headerBytes: 0,
    compression: zstd ? 1 : 0,
    backingFile: options.backingFile,
    backingFormat: options.backingFormat,
    dataFile: options.dataFile,
    extensions: extensionsOf(options, clusterBytes),
    unknown: new Uint8Array(0),
  }
  return encodeTables(header, layoutOf(header))
}

function encodeTables(header: Header, layout: Layout): Uint8Array {
  const { clusterBytes } = header.geometry
  const { tableClusters, blocks, l1Bytes } = layout
  const firstBlock = 1 + tableClusters
  const l1Cluster = firstBlock + blocks
  header.reftableClusters = tableClusters
  header.l1Offset = l1Cluster * clusterBytes
  header.l1Size = l1Bytes / 8
  const image = new Uint8Array(l1Cluster * clusterBytes + l1Bytes)
  image.set(encodeHeader(header))
  const table = viewOf(image.subarray(clusterBytes, firstBlock * clusterBytes))
  for (let i = 0; i < blocks; i++) write64(table, i * 8, (firstBlock + i) * clusterBytes)
  const perBlock = (clusterBytes * 8) >> header.refcountOrder
  const used = l1Cluster + Math.ceil(l1Bytes / clusterBytes)
  for (let c = 0; c < used; c++) {
    const at = (firstBlock + Math.floor(c / perBlock)) * clusterBytes
    setRefcount(image.subarray(at, at + clusterBytes), header.refcountOrder, c % perBlock, 1)
  }
  return image
}

/**
 * Writes a new image to a path (the file is made, or emptied) or onto an open node.
 * Errors: EINVAL for options, `Could not create '…'` for a path.
 */
export async function createQcow2(
  target: string | CreateTarget,
  options: Qcow2CreateOptions,
): Promise<void> {
  const bytes = encodeNewImage(options)
  if (typeof target === 'string') {
    try {
      await fs.promises.writeFile(target, bytes)
    } catch (thrown) {
      const { code } = asBlockError(thrown)
      const words = `Could not create '${target}': ${codeWords(code)}`
      throw new BlockError(code, words, { path: target }, thrown)
    }
    return
  }
  const written = target.pwrite(0, bytes)
  if (written !== undefined) await written
  const flushed = target.flush()
  if (flushed !== undefined) await flushed
}
