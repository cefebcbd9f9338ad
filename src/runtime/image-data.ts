/**
 * What is in images: where the data lies, whether two hold the same, and copies in another format.
 *
 * Invariants:
 * - Ranges without data are skipped by what the images say of them, never read.
 * - A copy's target is written only where the source has something else than zeroes, unless the
 *   target was there before: then zeroes are written too.
 */
import { existsSync, statSync, unlinkSync } from 'node:fs'
import type { BlockBackend } from '../block/backend.ts'
import { FLAG, STATUS } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { nodeStatus } from '../block/status.ts'
import { nodeFilename } from '../qmp/node-filename.ts'
import { BlockError } from '../util/errors.ts'
import {
  createImage,
  type ImageCreateOptions,
  type ImageFormat,
  type ImageOptions,
  isNbdUri,
  openImage,
} from './images.ts'
import { Runtime } from './runtime.ts'

/** A run of a disk that one image decides in one way. */
export interface ImageExtent {
  /** First byte on the disk. */
  readonly start: number
  /** Bytes. */
  readonly length: number
  /** Which image decides: 0 = the one that was named, 1 = the one below it … */
  readonly depth: number
  /** That image holds the run; false where no image does and the last one of the chain is shown. */
  readonly present: boolean
  /** It reads as zeroes. */
  readonly zero: boolean
  /** There are bytes for it in a file. */
  readonly data: boolean
  /** Where they begin in `file`; absent for compressed data and where nothing lies in a file. */
  readonly offset?: number
  /** The file that holds them. */
  readonly file?: string
}

/** What `compareImages` found. */
export interface ImageComparison {
  /** Both show the same bytes; what one has beyond the end of the other is zero. */
  readonly equal: boolean
  /** One is longer. */
  readonly sizesDiffer: boolean
  /** Length of the shorter one in bytes. */
  readonly commonLength: number
  /** First sector (its first byte) with other content. */
  readonly mismatchOffset?: number
}

/** What `convertImage` takes. */
export interface ImageConvertOptions extends Omit<ImageCreateOptions, 'size'> {
  /** Format of the source; default: found out. */
  readonly sourceFormat?: ImageFormat
  /** Write into an image that exists and is long enough; default false: make it. */
  readonly existing?: boolean
  /** Write compressed clusters; the target is qcow2. */
  readonly compress?: boolean
  /** Told how far the copy is, in bytes of the disk. */
  readonly onProgress?: (done: number, total: number) => void
}

const PIECE_BYTES = 1024 * 1024
const ZERO_GRAIN = 4096
const SECTOR_BYTES = 512
/** Pieces of a copy under way at once. */
const LANES = 4
/** As long as the largest cluster. */
const ZEROES = Buffer.alloc(2 * PIECE_BYTES)

/** Where the data of an image lies, neighbours of one kind as one. Errors: those of opening it. */
export async function* mapImage(
  image: string,
  options: ImageOptions = {},
): AsyncGenerator<ImageExtent> {
  await using runtime = await Runtime.create()
  const node = await openImage(runtime, image, options)
  const length = node.length()
  let held: ImageExtent | undefined
  for (let at = 0; at < length; ) {
    const next = await extentAt(node, at, length - at)
    at += next.length
    if (held !== undefined && continues(held, next))
      held = { ...held, length: held.length + next.length }
    else {
      if (held !== undefined) yield held
      held = next
    }
  }
  yield held ?? { start: 0, length: 0, depth: 0, present: false, zero: false, data: false }
}

function continues(one: ImageExtent, next: ImageExtent): boolean {
  const same =
    one.depth === next.depth &&
    one.present === next.present &&
    one.zero === next.zero &&
    one.data === next.data &&
    one.file === next.file
  const end = one.offset === undefined ? undefined : one.offset + one.length
  return same && end === next.offset
}

async function extentAt(top: BlockNode, start: number, bytes: number): Promise<ImageExtent> {
  const nothing = { present: false, zero: true, data: false }
  let want = bytes
  let depth = 0
  for (let node = top; ; depth++) {
    // Beyond the end of a short image the one above it decides.
    if (start >= node.length()) return { start, length: want, depth: depth - 1, ...nothing }
    const status = await nodeStatus(node, start, want)
    want = Math.min(want, status.bytes)
    const { flags, file, map } = status
    if ((flags & (STATUS.ALLOCATED | STATUS.RAW)) !== 0)
      return { start, depth, present: true, ...(await placeOf(want, flags, file?.node, map)) }
    const below = node.chainNext
    if (below === undefined) return { start, length: want, depth, ...nothing }
    node = below
  }
}

/** Follows a run to the file that holds it. */
async function placeOf(
  bytes: number,
  flags: number,
  file: BlockNode | undefined,
  map: number | undefined,
): Promise<Pick<ImageExtent, 'length' | 'zero' | 'data' | 'offset' | 'file'>> {
  const zero = (flags & STATUS.ZERO) !== 0
  const data = (flags & STATUS.DATA) !== 0
  if (file === undefined || map === undefined) return { length: bytes, zero, data }
  const place = { offset: map, file: nodeFilename(file) }
  if (zero) return { length: bytes, zero, data, ...place }
  const below = await nodeStatus(file, map, bytes)
  const shownByFile = (flags & STATUS.RAW) !== 0
  return {
    length: Math.min(bytes, below.bytes),
    zero: (below.flags & STATUS.ZERO) !== 0,
    data: shownByFile ? (below.flags & STATUS.DATA) !== 0 : data,
    ...((below.flags & STATUS.OFFSET_VALID) === 0 && shownByFile ? {} : place),
  }
}

/** Compares what two images show. Errors: those of opening and of reading them. */
export async function compareImages(
  one: string,
  other: string,
  options: { readonly formats?: readonly [ImageOptions, ImageOptions] } = {},
): Promise<ImageComparison> {
  await using runtime = await Runtime.create()
  const [first = {}, second = {}] = options.formats ?? []
  const a = await runtime.openBackend(await openImage(runtime, one, first))
  const b = await runtime.openBackend(await openImage(runtime, other, second))
  const [short, long] = a.length() <= b.length() ? [a, b] : [b, a]
  const commonLength = short.length()
  const sizesDiffer = commonLength !== long.length()
  const buffers = [Buffer.alloc(PIECE_BYTES), Buffer.alloc(PIECE_BYTES)] as const
  for (let at = 0; at < long.length(); ) {
    const inner = at < short.length()
    const end = inner ? short.length() : long.length()
    const bytes = Math.min(PIECE_BYTES, end - at)
    const piece = await pieceAt(long, inner ? short : undefined, at, bytes)
    if (!piece.zero) {
      const [x, y] = [buffers[0].subarray(0, piece.bytes), buffers[1].subarray(0, piece.bytes)]
      await long.pread(at, x)
      if (inner) await short.pread(at, y)
      else y.fill(0)
      if (!x.equals(y)) {
        const mismatchOffset = at + firstOtherSector(x, y)
        return { equal: false, sizesDiffer, commonLength, mismatchOffset }
      }
    }
    at += piece.bytes
  }
  return { equal: true, sizesDiffer, commonLength }
}

/** The start of a range that is zero in both images as a whole, or has to be read. */
async function pieceAt(
  long: BlockBackend,
  short: BlockBackend | undefined,
  at: number,
  bytes: number,
): Promise<{ readonly zero: boolean; readonly bytes: number }> {
  const one = await long.blockStatus(at, bytes)
  const other = short === undefined ? undefined : await short.blockStatus(at, bytes)
  const zero = (one.flags & (other?.flags ?? STATUS.ZERO) & STATUS.ZERO) !== 0
  return { zero, bytes: Math.min(one.bytes, other?.bytes ?? bytes) }
}

function firstOtherSector(x: Buffer, y: Buffer): number {
  for (let at = 0; at < x.length; at += SECTOR_BYTES) {
    const end = at + SECTOR_BYTES
    if (!x.subarray(at, end).equals(y.subarray(at, end))) return at
  }
  return 0
}

/**
 * Copies what an image shows into another, which holds all of it, whatever lies below it. Errors: EINVAL for a target that is
 * the source or is too small, those of both images.
 */
export async function convertImage(
  source: string,
  target: string,
  options: ImageConvertOptions,
): Promise<void> {
  await using runtime = await Runtime.create()
  const {
    sourceFormat,
    existing = isNbdUri(target),
    compress = false,
    onProgress,
    ...made
  } = options
  if (sameFile(source, target)) {
    throw new BlockError('EINVAL', 'Source and target are the same file', { path: target })
  }
  if (compress && made.format !== 'qcow2') {
    throw new BlockError('ENOTSUP', 'Compression not supported for this file format')
  }
  const format = sourceFormat === undefined ? {} : { format: sourceFormat }
  const from = await runtime.openBackend(await openImage(runtime, source, format))
  const isNew = !existing && !existsSync(target)
  if (!existing) await createImage(target, { ...made, size: from.length() })
  try {
    const alone = !existing && made.backingFile === undefined
    const node = await openImage(runtime, target, {
      format: made.format,
      writable: true,
      ...(alone ? { backing: null } : {}),
    })
    const to = await runtime.openBackend(node)
    if (to.length() < from.length()) {
      const words = `Target '${target}' is smaller than the source`
      throw new BlockError('EINVAL', words, { path: target })
    }
    await new Copy(from, to, { compress, keepsOld: !alone }).run(onProgress)
    await to.flush()
  } catch (error) {
    if (isNew) unlinkSync(target)
    throw error
  }
}

function sameFile(one: string, other: string): boolean {
  const [a, b] = [one, other].map((name) => statSync(name, { throwIfNoEntry: false }))
  return a !== undefined && b !== undefined && a.dev === b.dev && a.ino === b.ino
}

/** One copy under way. */
class Copy {
  readonly #from: BlockBackend
  readonly #to: BlockBackend
  readonly #keepsOld: boolean
  readonly #compress: boolean
  readonly #grain: number
  #next = 0
  #done = 0

  constructor(
    from: BlockBackend,
    to: BlockBackend,
    how: { readonly compress: boolean; readonly keepsOld: boolean },
  ) {
    this.#from = from
    this.#to = to
    this.#compress = how.compress
    this.#keepsOld = how.keepsOld
    const cluster = to.node.driver?.limits.clusterSize ?? 0
    this.#grain = how.compress && cluster > 0 ? cluster : ZERO_GRAIN
  }

  async run(told: ((done: number, total: number) => void) | undefined): Promise<void> {
    const total = this.#from.length()
    const lane = async (): Promise<void> => {
      const buffer = Buffer.alloc(Math.max(PIECE_BYTES, this.#grain))
      while (this.#next < total) {
        const at = this.#next
        const bytes = Math.min(buffer.length, total - at)
        this.#next += bytes
        await this.#piece(at, buffer.subarray(0, bytes))
        this.#done += bytes
        told?.(this.#done, total)
      }
    }
    const lanes = Array.from({ length: this.#compress ? 1 : LANES }, lane)
    const ends = await Promise.allSettled(lanes)
    for (const end of ends) if (end.status === 'rejected') throw end.reason
  }

  async #piece(start: number, buffer: Buffer): Promise<void> {
    const zero = await this.#readInto(start, buffer)
    if (zero) return this.#zeroes(start, buffer.length)
    for (let at = 0; at < buffer.length; ) {
      const empty = this.#isZero(buffer, at)
      let end = at + this.#grain
      // A compressed cluster is written by itself.
      while (
        end < buffer.length &&
        this.#isZero(buffer, end) === empty &&
        (empty || !this.#compress)
      )
        end += this.#grain
      const run = buffer.subarray(at, end)
      if (empty) await this.#zeroes(start + at, run.length)
      else await this.#to.pwrite(start + at, run, this.#compress ? FLAG.WRITE_COMPRESSED : 0)
      at = end
    }
  }

  /** Reads what has data; true when nothing of the piece has. */
  async #readInto(start: number, buffer: Buffer): Promise<boolean> {
    let nothing = true
    for (let at = 0; at < buffer.length; ) {
      const status = await this.#from.blockStatus(start + at, buffer.length - at)
      const run = buffer.subarray(at, at + status.bytes)
      if ((status.flags & STATUS.ZERO) !== 0) run.fill(0)
      else {
        nothing = false
        await this.#from.pread(start + at, run)
      }
      at += status.bytes
    }
    return nothing
  }

  async #zeroes(offset: number, bytes: number): Promise<void> {
    if (this.#keepsOld) await this.#to.pwriteZeroes(offset, bytes, FLAG.MAY_UNMAP)
  }

  #isZero(buffer: Buffer, at: number): boolean {
    const part = buffer.subarray(at, at + this.#grain)
    return ZEROES.compare(part, 0, part.length, 0, part.length) === 0
  }
}
