/**
 * Named dirty bitmaps of a node: what users see and jobs work by.
 *
 * Invariants:
 * - An enabled bitmap has a bit for every write-class request that ended since it was enabled or
 *   cleared, failed ones too.
 * - A bitmap in use by a job is changed by that job only.
 */
import { DirtyBitmap } from '../sync/dirty-bitmap.ts'
import { BlockError } from '../util/errors.ts'
import type { BlockNode } from './node.ts'

/** Bounds of the default granularity in bytes. */
const GRANULARITY_MIN = 4096
const GRANULARITY_MAX = 65536
/** Longest name in bytes; the image format has room for no more. */
const NAME_MAX = 1023

/** What a new bitmap is to be. */
export interface NamedBitmapOptions {
  readonly name: string
  /** Bytes a bit stands for; a power of two from 512; default: the node's cluster size, bounded. */
  readonly granularity?: number
  /** Keep it in the image. */
  readonly persistent?: boolean
  /** Do not record yet. */
  readonly disabled?: boolean
}

/** A job's grip on a bitmap. */
export interface BitmapHold {
  /**
   * Lets go: writes that came meanwhile join what of the bits before is still dirty, which is all,
   * nothing or what `rest` says. Once.
   */
  end(rest: 'all' | 'none' | DirtyBitmap): void
}

/** One bitmap. Main thread only; its bits may be shared. */
export class NamedBitmap {
  readonly name: string
  readonly node: BlockNode
  readonly persistent: boolean
  /** The bits; replaced when a merge is undone. */
  bits: DirtyBitmap
  /** The image that holds it is read-only. */
  readOnly = false
  /** It was not stored in order and may miss writes. */
  inconsistent = false
  #enabled = false
  #users = 0
  /** Writes since a job took hold of the bits. */
  #since: DirtyBitmap | undefined
  readonly #heard = (offset: number, bytes: number): void =>
    (this.#since ?? this.bits).setRange(offset, bytes)

  constructor(node: BlockNode, options: NamedBitmapOptions, bits: DirtyBitmap) {
    this.node = node
    this.name = options.name
    this.persistent = options.persistent === true
    this.bits = bits
    if (options.disabled !== true) this.enable()
  }

  /** It records writes. */
  get enabled(): boolean {
    return this.#enabled
  }

  /** A job works with it. */
  get busy(): boolean {
    return this.#users > 0
  }

  /** Bytes a bit stands for. */
  get granularity(): number {
    return this.bits.granularity
  }

  /** Records writes from now on. */
  enable(): void {
    this.#enabled = true
    this.node.writeListeners.add(this.#heard)
  }

  /** Records nothing from now on. */
  disable(): void {
    this.#enabled = false
    this.node.writeListeners.delete(this.#heard)
  }

  /** A job takes it; the answer gives it back. */
  use(): () => void {
    this.#users++
    return () => {
      this.#users--
    }
  }

  /** Keeps the bits as they are for a job; writes are noted apart. Errors: EBUSY, EPERM, EIO. */
  hold(): BitmapHold {
    this.checkChangeable()
    const before = this.bits
    const since = DirtyBitmap.create(before.size, before.granularity)
    this.#since = since
    const recording = this.#enabled
    const hide = this.node.bitmaps.show({ bits: since, recording })
    const release = this.use()
    return {
      end: (rest) => {
        if (rest !== 'all') {
          this.bits = DirtyBitmap.create(before.size, before.granularity)
          if (rest !== 'none') copyBits(rest, this.bits)
        }
        if (this.#since !== undefined) copyBits(this.#since, this.bits)
        this.#since = undefined
        hide()
        release()
      },
    }
  }

  /** Everything that is dirty, also what was noted apart. */
  allBits(): DirtyBitmap {
    if (this.#since === undefined) return this.bits
    const all = DirtyBitmap.create(this.bits.size, this.granularity)
    copyBits(this.bits, all)
    copyBits(this.#since, all)
    return all
  }

  /** Throws EBUSY while a job or an export uses it. */
  checkFree(): void {
    if (!this.busy) return
    throw new BlockError(
      'EBUSY',
      `Bitmap '${this.name}' is currently in use by another operation and cannot be used`,
      { node: this.node.name },
    )
  }

  /** Throws EPERM while the image that holds it is read-only. */
  checkWritable(): void {
    if (!this.readOnly) return
    throw new BlockError('EPERM', `Bitmap '${this.name}' is readonly and cannot be modified`, {
      node: this.node.name,
    })
  }

  /** Throws EBUSY while somebody uses it, EIO when what it says cannot be trusted. */
  checkUsable(): void {
    this.checkFree()
    if (!this.inconsistent) return
    throw new BlockError('EIO', `Bitmap '${this.name}' is inconsistent and cannot be used`, {
      node: this.node.name,
    })
  }

  /** Throws EBUSY while somebody uses it, EPERM or EIO when it cannot be changed. */
  checkChangeable(): void {
    this.checkFree()
    this.checkWritable()
    this.checkUsable()
  }

  /** Covers a disk of another length from now on; new regions are clean. */
  fit(size: number): void {
    if (size === this.bits.size) return
    const bits = DirtyBitmap.create(size, this.granularity)
    copyBits(this.bits, bits)
    this.bits = bits
  }

  /** Makes every region clean; the answer takes that back. */
  clear(): () => void {
    this.checkChangeable()
    const before = this.bits
    this.bits = DirtyBitmap.create(before.size, before.granularity)
    return () => {
      const since = this.bits
      this.bits = before
      copyBits(since, before)
    }
  }

  /** Adds the regions of others; the answer takes that back. Errors: EBUSY, EPERM, EINVAL. */
  merge(others: readonly NamedBitmap[]): () => void {
    this.checkChangeable()
    for (const other of others) {
      if (other !== this) other.checkUsable()
      if (other.bits.size !== this.bits.size)
        throw new BlockError(
          'EINVAL',
          `Bitmaps are of different sizes (destination size is ${this.bits.size}, source size is ${other.bits.size}) and can't be merged`,
        )
    }
    const before = this.bits
    this.bits = DirtyBitmap.create(before.size, before.granularity)
    copyBits(before, this.bits)
    for (const other of others) copyBits(other.bits, this.bits)
    return () => {
      this.bits = before
    }
  }
}

/** Marks in `to` whatever is dirty in `from`. */
export function copyBits(from: DirtyBitmap, to: DirtyBitmap): void {
  for (let at = 0; ; ) {
    const range = from.nextDirty(at)
    if (range === undefined) return
    to.setRange(range.offset, range.bytes)
    at = range.offset + range.bytes
  }
}

/** A bitmap without a name, which a job works with for a while; users see it and cannot touch it. */
export interface WorkingBitmap {
  readonly bits: DirtyBitmap
  /** Writes are noted in it. */
  readonly recording: boolean
}

/** The bitmaps of one node. */
export class NodeBitmaps {
  readonly #node: BlockNode
  readonly #all = new Map<string, NamedBitmap>()
  readonly #working = new Set<WorkingBitmap>()

  constructor(node: BlockNode) {
    this.#node = node
  }

  /** Lets users see a bitmap without a name until the answer is called. */
  show(bitmap: WorkingBitmap): () => void {
    this.#working.add(bitmap)
    return () => void this.#working.delete(bitmap)
  }

  /** The bitmaps without a name, newest first. */
  working(): WorkingBitmap[] {
    return [...this.#working].reverse()
  }

  /** All of them, newest first. */
  list(): NamedBitmap[] {
    return [...this.#all.values()].reverse()
  }

  /** One whose image is read-only, if there is such a one. */
  get readOnly(): NamedBitmap | undefined {
    if (this.#all.size === 0) return undefined
    for (const bitmap of this.#all.values()) if (bitmap.readOnly) return bitmap
    return undefined
  }

  /** The bitmap of that name, if there is one. */
  get(name: string): NamedBitmap | undefined {
    return this.#all.get(name)
  }

  /** The bitmap of that name. Errors: EINVAL. */
  need(name: string): NamedBitmap {
    const bitmap = this.#all.get(name)
    if (bitmap !== undefined) return bitmap
    throw new BlockError('EINVAL', `Dirty bitmap '${name}' not found`, { node: this.#node.name })
  }

  /** Makes one. Errors: EINVAL, EEXIST, ENOTSUP. */
  add(options: NamedBitmapOptions): NamedBitmap {
    const { name } = options
    const context = { node: this.#node.name, op: 'block-dirty-bitmap-add' }
    if (name === '') throw new BlockError('EINVAL', 'Bitmap name cannot be empty', context)
    const granularity = options.granularity ?? defaultGranularity(this.#node)
    if (!Number.isInteger(Math.log2(granularity)) || granularity < 512)
      throw new BlockError('EINVAL', 'Granularity must be power of 2 and at least 512', context)
    if (Buffer.byteLength(name) > NAME_MAX)
      throw new BlockError('EINVAL', `Bitmap name too long: ${name}`, context)
    if (options.persistent === true) this.#checkStorable(name)
    if (this.#all.has(name))
      throw new BlockError('EEXIST', `Bitmap already exists: ${name}`, context)
    const bits = DirtyBitmap.create(this.#node.length(), granularity)
    const bitmap = new NamedBitmap(this.#node, options, bits)
    this.#all.set(name, bitmap)
    return bitmap
  }

  /** Takes over one that an image held; for drivers, whose names and numbers are checked already. */
  adopt(options: NamedBitmapOptions, bits: DirtyBitmap): NamedBitmap {
    const bitmap = new NamedBitmap(this.#node, options, bits)
    this.#all.set(options.name, bitmap)
    return bitmap
  }

  /** Fits all of them to the node's length as it is now. */
  fitLength(): void {
    if (this.#all.size === 0 || this.#node.driver === undefined) return
    for (const bitmap of this.#all.values()) bitmap.fit(this.#node.length())
  }

  /** Takes one away. Errors: EINVAL, EBUSY, EPERM. */
  remove(name: string): NamedBitmap {
    const bitmap = this.need(name)
    bitmap.checkFree()
    bitmap.checkWritable()
    bitmap.disable()
    this.#all.delete(name)
    return bitmap
  }

  #checkStorable(name: string): void {
    const driver = this.#node.needDriver()
    if (driver.storesBitmaps === true) return
    throw new BlockError(
      'ENOTSUP',
      `Can't store persistent bitmaps to ${this.#node.name}: Operation not supported`,
      { node: this.#node.name, op: `bitmap ${name}` },
    )
  }
}

/** The clusters of the image that a layer without clusters of its own shows. */
function defaultGranularity(node: BlockNode): number {
  const { kind, name } = node.definition
  const below = kind === 'filter' || name === 'raw' || name === 'blkdebug'
  const child = below ? (node.child('file') ?? node.child('image')) : undefined
  if (child !== undefined) return defaultGranularity(child.node)
  const cluster = node.driver?.limits.clusterSize ?? 0
  if (cluster === 0) return GRANULARITY_MAX
  return Math.min(GRANULARITY_MAX, Math.max(GRANULARITY_MIN, cluster))
}
