/**
 * The driver `qcow2`: opens images and puts their parts behind the driver contract.
 *
 * Invariants:
 * - An image is not touched before all of its header was found good.
 * - Opening for writing first repairs what a crash left, and clears features it cannot keep up.
 * - A closed image has no dirty mark and no leaked cluster of ours.
 */
import type { BlockChild } from '../../block/child.ts'
import type {
  BlockDriver,
  BlockdevOptions,
  BlockdevRef,
  BlockLimits,
  BlockStatus,
  ChildOpener,
  DriverDefinition,
  ImageInfo,
  PreparedReopen,
  ReopenTarget,
} from '../../block/driver.ts'
import { FLAG, NO_LIMITS, STATUS } from '../../block/driver.ts'
import type { BlockNode } from '../../block/node.ts'
import type { MaybePromise, Pending } from '../../coroutine/coroutine.ts'
import { asBlockError, BlockError } from '../../util/errors.ts'
import { raiseDebugEvent } from '../debug-event.ts'
import { setDirectoryPlace } from './bitmap-format.ts'
import { hasValidBitmaps, ImageBitmaps } from './bitmaps.ts'
import { readHeader } from './check.ts'
import { Claims } from './claims.ts'
import { Eraser } from './eraser.ts'
import { AUTOCLEAR, INCOMPAT } from './format.ts'
import { type Header, setBackingName } from './header.ts'
import { Qcow2Image } from './image.ts'
import { imageInfo } from './info.ts'
import { makeEmptyImage } from './make-empty.ts'
import { KIND, Mapping } from './mapping.ts'
import { backingOptions, besideImage, cacheSizes, lazyOption, overlapOption } from './options.ts'
import { Packer } from './packer.ts'
import { Reader } from './reader.ts'
import { repairImage } from './repair.ts'
import { resizeImage } from './resize.ts'
import { SnapshotStore } from './snapshot-store.ts'
import type { Snapshot } from './snapshots.ts'
import { readSnapshots } from './snapshots.ts'
import { decodeTable } from './table-bytes.ts'
import { readBytes } from './walk.ts'
import { Writer } from './writer.ts'

class Qcow2Driver implements BlockDriver {
  readonly limits: BlockLimits
  readonly writeFlags = FLAG.WRITE_COMPRESSED
  readonly zeroesFlags = FLAG.MAY_UNMAP
  readonly #image: Qcow2Image
  readonly internalSnapshots: SnapshotStore
  readonly #bitmaps: ImageBitmaps
  readonly storesBitmaps: boolean
  readonly #mapping: Mapping
  readonly #reader: Reader
  readonly #writer: Writer
  readonly #eraser: Eraser
  readonly #packer: Packer

  constructor(image: Qcow2Image, snapshots: SnapshotStore, bitmaps: ImageBitmaps) {
    const { clusterBytes } = image.geometry
    this.#image = image
    this.internalSnapshots = snapshots
    this.#bitmaps = bitmaps
    this.storesBitmaps = image.header.version >= 3
    this.#mapping = new Mapping(image)
    this.#reader = new Reader(image, this.#mapping, () => image.node.children.get('backing'))
    const claims = new Claims()
    this.#writer = new Writer(image, this.#mapping, this.#reader, claims)
    this.#eraser = new Eraser(image, this.#mapping, this.#reader, claims)
    this.#packer = new Packer(image, this.#mapping, this.#writer, claims)
    this.limits = {
      ...NO_LIMITS,
      clusterSize: clusterBytes,
      zeroesAlignment: clusterBytes,
      discardAlignment: clusterBytes,
    }
  }

  length(): number {
    return this.#image.header.size
  }

  filename(): string {
    return this.#image.file.node.driver?.filename?.() ?? ''
  }

  backingFilename(): string | undefined {
    const name = this.#image.header.backingFile
    if (name === undefined || /^(json:|nbd)/.test(name)) return name
    return besideImage(this.filename(), name)
  }

  pread(offset: number, buf: Uint8Array): Pending {
    return this.#reader.read(offset, buf)
  }

  pwrite(offset: number, buf: Uint8Array, flags: number): Pending {
    if (this.#bitmaps.mustMark) return this.#marked(() => this.pwrite(offset, buf, flags))
    const { clusterBytes } = this.#image.geometry
    const end = offset + buf.length
    const whole = end % clusterBytes === 0 || end === this.length()
    if ((flags & FLAG.WRITE_COMPRESSED) !== 0 && offset % clusterBytes === 0 && whole)
      return this.#packer.write(offset, buf)
    return this.#writer.write(offset, buf)
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Pending {
    if (this.#bitmaps.mustMark) return this.#marked(() => this.pwriteZeroes(offset, bytes, flags))
    return this.#eraser.zero(offset, bytes, (flags & FLAG.MAY_UNMAP) !== 0)
  }

  pdiscard(offset: number, bytes: number): Pending {
    if (this.#bitmaps.mustMark) return this.#marked(() => this.pdiscard(offset, bytes))
    return this.#eraser.discard(offset, bytes, false)
  }

  async #marked(change: () => Pending): Promise<void> {
    await this.#bitmaps.mark()
    const pending = change()
    if (pending !== undefined) await pending
  }

  flush(toDisk: boolean): Pending {
    const image = this.#image
    const split = toDisk && image.data !== image.file
    if (!image.dirty && !split) return undefined
    return this.#flush(split)
  }

  async #flush(split: boolean): Promise<void> {
    await this.#image.flush()
    if (split) await this.#image.sync()
  }

  blockStatus(offset: number, bytes: number): MaybePromise<BlockStatus> {
    this.#image.checkAlive()
    if (!this.#mapping.lookup(offset, bytes)) return this.#statusLater(offset, bytes)
    const { kind, host, bytes: run } = this.#mapping
    if (kind === KIND.UNALLOCATED) return { flags: 0, bytes: run }
    if (kind === KIND.ZERO) return { flags: STATUS.ZERO | STATUS.ALLOCATED, bytes: run }
    if (kind === KIND.COMPRESSED) return { flags: STATUS.DATA | STATUS.ALLOCATED, bytes: run }
    const content = kind === KIND.NORMAL ? STATUS.DATA : STATUS.ZERO
    const flags = content | STATUS.ALLOCATED | STATUS.OFFSET_VALID
    return { flags, bytes: run, map: host, file: this.#image.data }
  }

  async #statusLater(offset: number, bytes: number): Promise<BlockStatus> {
    await this.#mapping.load(offset)
    return this.blockStatus(offset, bytes)
  }

  async makeEmpty(): Promise<void> {
    if (this.#bitmaps.mustMark) await this.#bitmaps.mark()
    await makeEmptyImage(this.#image, this.#mapping, this.#eraser)
  }

  async truncate(size: number): Promise<void> {
    await this.internalSnapshots.pinSizes()
    if (this.#bitmaps.mustMark) await this.#bitmaps.mark()
    const drop = (offset: number, bytes: number): Pending =>
      this.#eraser.discard(offset, bytes, true)
    const { clusterBytes } = this.#image.geometry
    const end = Math.min(this.length(), Math.ceil(size / clusterBytes) * clusterBytes)
    // What lies behind the end in the last cluster must not come back when the image grows.
    const odd = end > size && size % 512 === 0
    const pending = odd ? this.pwrite(size, new Uint8Array(end - size), 0) : undefined
    if (pending !== undefined) await pending
    await resizeImage(this.#image, size, drop)
    this.#image.node.bitmaps.fitLength()
  }

  async changeBackingFile(filename: string | undefined, format: string | undefined): Promise<void> {
    await writeBackingName(this.#image, filename, format)
  }

  /** Makes counts and COPIED bits true. Errors: EIO when pointers themselves are damaged. */
  async repair(): Promise<void> {
    await repairImage(this.#image, this.internalSnapshots.all)
  }

  info(): Promise<ImageInfo> {
    return imageInfo(this.#image, this.#bitmaps.info(), this.internalSnapshots.all)
  }

  async reopenPrepare(target: ReopenTarget): Promise<PreparedReopen> {
    const image = this.#image
    const sizes = cacheSizes(target.options, image.header)
    const lazy = lazyOption(target.options, image.header)
    if (!target.readOnly && (image.header.incompatible & INCOMPAT.CORRUPT) !== 0)
      throw new BlockError('EACCES', "Can't make a corrupt image writable", {
        node: image.node.name,
      })
    const wasWritable = image.writable
    if (target.readOnly && wasWritable) await this.#settle()
    else if (image.lazy && !lazy) await image.settle()
    return {
      commit: () => {
        image.writable = !target.readOnly
        this.#bitmaps.setReadOnly(target.readOnly)
        image.lazy = lazy && !target.readOnly
        image.overlapCheck = overlapOption(target.options)
        image.setCacheSizes(sizes)
      },
      abort: noop,
      afterCommit: async () => {
        if (image.writable && !wasWritable) await becomeWritable(image, this.internalSnapshots.all)
      },
    }
  }

  async #settle(): Promise<void> {
    const image = this.#image
    try {
      if (image.writable && !image.dead) await this.#bitmaps.store()
    } finally {
      await image.settle()
    }
  }

  async close(): Promise<void> {
    try {
      await this.#settle()
    } catch {
      // The last flush told whoever waited for it; what is missing now are counts at most.
    }
  }
}

function noop(): void {}

async function writeBackingName(
  image: Qcow2Image,
  file: string | undefined,
  format: string | undefined,
): Promise<void> {
  const { backingFile, backingFormat } = image.header
  setBackingName(image.header, file, format)
  try {
    await image.writeHeader()
  } catch (error) {
    setBackingName(image.header, backingFile, backingFormat)
    throw error
  }
  await image.sync()
}

/** What opening for writing owes the format. */
async function becomeWritable(image: Qcow2Image, snapshots: readonly Snapshot[]): Promise<void> {
  const { header } = image
  const raw = image.data === image.file ? 0 : header.autoclear & AUTOCLEAR.RAW_DATA
  const bitmaps = hasValidBitmaps(image)
  const kept = raw | (bitmaps ? AUTOCLEAR.BITMAPS : 0)
  if (header.autoclear !== kept) {
    header.autoclear = kept
    await image.writeFeatures()
  }
  // Bitmaps that somebody let fall behind the guest data are good for nothing.
  if (!bitmaps && setDirectoryPlace(header, undefined)) await image.writeHeader()
  if ((header.incompatible & INCOMPAT.DIRTY) !== 0) await repairImage(image, snapshots)
}

async function openData(
  node: BlockNode,
  options: BlockdevOptions,
  opener: ChildOpener,
  header: Header,
  file: BlockChild,
): Promise<BlockChild> {
  const given = options['data-file']
  const external = (header.incompatible & INCOMPAT.DATA_FILE) !== 0
  if (!external) {
    if (given === undefined) return file
    const words = "'data-file' can only be set for images with an external data file"
    throw new BlockError('EINVAL', words, { node: node.name })
  }
  if (given !== undefined) return opener.open('data-file', given as BlockdevRef, 'data')
  if (header.dataFile === undefined)
    throw new BlockError('EINVAL', "'data-file' is required for this image", { node: node.name })
  const filename = besideImage(file.node.driver?.filename?.(), header.dataFile)
  return opener.open('data-file', { driver: 'file', filename }, 'data')
}

async function openBacking(
  options: BlockdevOptions,
  opener: ChildOpener,
  header: Header,
  file: BlockChild,
): Promise<void> {
  const given = options.backing
  if (given === null || (given === undefined && header.backingFile === undefined)) return
  const ref =
    given === undefined
      ? backingOptions(header, file.node.driver?.filename?.())
      : (given as BlockdevRef)
  await opener.open('backing', ref, 'backing')
}

async function openImage(
  node: BlockNode,
  options: BlockdevOptions,
  opener: ChildOpener,
): Promise<BlockDriver> {
  const file = await opener.open('file', options.file as BlockdevRef, 'file')
  const header = await readImageHeader(file)
  const corrupt = (header.incompatible & INCOMPAT.CORRUPT) !== 0
  if (corrupt && !node.readOnly)
    throw new BlockError('EACCES', 'qcow2: Image is corrupt; cannot be opened read/write', {
      node: node.name,
    })
  const sizes = cacheSizes(options, header)
  const lazy = lazyOption(options, header)
  const { clusterBytes } = header.geometry
  const l1 = await readTable(file, header.l1Offset, header.l1Size * 8, 'Could not read L1 table')
  const tableBytes = header.reftableClusters * clusterBytes
  const where = 'Could not initialize refcount handling'
  raiseDebugEvent(file, 'reftable_load')
  const counts = await readTable(file, header.reftableOffset, tableBytes, where)
  const snapshots = await readSnapshots(file, header)
  const data = await openData(node, options, opener, header, file)
  await openBacking(options, opener, header, file)
  const image = new Qcow2Image(node, file, data, header, l1, sizes)
  image.refcounts.table = decodeTable(counts)
  image.lazy = lazy && !node.readOnly
  image.overlapCheck = overlapOption(options)
  image.mapMetadata()
  const store = new SnapshotStore(image, snapshots)
  if (!node.readOnly) await becomeWritable(image, snapshots)
  return new Qcow2Driver(image, store, await ImageBitmaps.load(image))
}

async function readImageHeader(file: BlockChild): Promise<Header> {
  try {
    return await readHeader(file)
  } catch (thrown) {
    const error = asBlockError(thrown)
    if (error.code !== 'EIO') throw error
    const words = `Could not read qcow2 header: ${error.message}`
    throw new BlockError(error.code, words, error.context, thrown)
  }
}

async function readTable(
  file: BlockChild,
  offset: number,
  bytes: number,
  failure: string,
): Promise<Uint8Array> {
  if (bytes > 0 && offset > file.length())
    throw new BlockError('EIO', `${failure}: Input/output error`)
  try {
    return await readBytes(file, offset, bytes)
  } catch (thrown) {
    const error = asBlockError(thrown)
    throw new BlockError(error.code, `${failure}: ${error.message}`, error.context, thrown)
  }
}

/** Repairs an open image that is writable and has no user. Errors: EIO, ENOTSUP for another node. */
export async function repairQcow2(node: BlockNode): Promise<void> {
  const { driver } = node
  if (!(driver instanceof Qcow2Driver))
    throw new BlockError('ENOTSUP', 'This image format does not support repairs', {
      node: node.name,
    })
  await driver.repair()
}

const CHANGEABLE = [
  ...['lazy-refcounts', 'pass-discard-request', 'pass-discard-snapshot', 'pass-discard-other'],
  ...['overlap-check', 'cache-size', 'l2-cache-size', 'l2-cache-entry-size'],
  ...['refcount-cache-size', 'cache-clean-interval'],
]

/**
 * Driver `qcow2`; options `file`, `backing` (`null` for none), `data-file`, `lazy-refcounts`,
 * `overlap-check`, `cache-size`, `l2-cache-size`, `refcount-cache-size` (bytes).
 */
export const qcow2Driver: DriverDefinition = {
  name: 'qcow2',
  kind: 'format',
  supportsBacking: true,
  changeable: CHANGEABLE,
  open: openImage,
}
