/**
 * Copy-before-write: before a range of `file` changes, its old content is copied to `target`.
 *
 * Invariants:
 * - No write reaches a cluster of `file` whose old content is not on `target`, in any epoch.
 * - A copy belongs to the epoch it started in: the epoch moves only while nothing is being copied.
 * - A failed copy fails only the write that asked for it; its clusters are untouched again.
 * - A copy excludes every reader of the same range of `target`, which may still be on its way to
 *   the data below.
 * - Once protection is lost, every write fails until `rearm`.
 */

import type { BlockChild } from '../block/child.ts'
import type { ClusterCopier } from '../block/cluster-copier.ts'
import type { BlockDriver, BlockdevRef, BlockLimits, DriverDefinition } from '../block/driver.ts'
import { FLAG, NO_LIMITS, PERM } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { CopyMap } from '../sync/copy-map.ts'
import type { DirtyBitmap } from '../sync/dirty-bitmap.ts'
import { asBlockError, BlockError, ioError } from '../util/errors.ts'
import { EdgeCopier } from './cbw-edge-copier.ts'
import { type CbwOptions, cbwOptions } from './cbw-options.ts'

/** Smallest unit that is copied, in bytes. */
const CLUSTER_MIN = 65536
/** Longest run that is copied at once, in bytes; a longer write is copied in turns. */
const RUN_BYTES = 4 * 1024 * 1024

/** What the filter did so far. */
export interface CopyCounters {
  /** Bytes copied in the current epoch: how full the target gets until the next checkpoint. */
  readonly epochBytes: number
  /** Bytes copied altogether. */
  readonly totalBytes: number
  /** Copies that failed. */
  readonly failures: number
  /** Clusters that are being copied now. */
  readonly inFlight: number
  /** Writes that had to wait for a copy. */
  readonly writesHeld: number
}

/** The open filter. Main thread only. */
export class CopyBeforeWrite implements BlockDriver {
  readonly limits: BlockLimits = NO_LIMITS
  readonly writeFlags: number = FLAG.FUA | FLAG.WRITE_UNCHANGED
  readonly zeroesFlags: number = FLAG.FUA | FLAG.MAY_UNMAP | FLAG.WRITE_UNCHANGED | FLAG.NO_FALLBACK
  /** Unit of copying in bytes. */
  readonly clusterSize: number
  readonly #node: BlockNode
  readonly #file: BlockChild
  readonly #options: CbwOptions
  readonly #map: CopyMap
  readonly #edges: ClusterCopier
  readonly #target: BlockChild
  readonly #copies = new Set<Promise<void>>()
  #copier: ClusterCopier | undefined
  #lost: BlockError | undefined
  #snapshotError: BlockError | undefined
  #ordered = false
  #saved: (() => Pending) | undefined
  /** One for each cluster that no snapshot keeps; undefined: all are kept. */
  #outside: Uint8Array | undefined
  #epochBytes = 0
  #totalBytes = 0
  #failures = 0
  #writesHeld = 0

  constructor(node: BlockNode, file: BlockChild, target: BlockChild, options: CbwOptions) {
    this.#node = node
    this.#file = file
    this.#options = options
    this.clusterSize = Math.max(CLUSTER_MIN, target.node.driver?.limits.clusterSize ?? 0)
    this.#map = CopyMap.create(Math.ceil(file.length() / this.clusterSize))
    this.#target = target
    this.#edges = new EdgeCopier(file, target, options.compress)
  }

  /** Who copies; absent or undefined: the filter itself, through its edges. */
  setCopier(copier: ClusterCopier | undefined): void {
    this.#copier = copier
  }

  /** Every write fails with this cause from now on. Copies that run are awaited by their writes. */
  loseProtection(cause: BlockError): void {
    this.#copier = undefined
    this.#lost = new BlockError(
      cause.code === 'ECANCELED' ? 'EIO' : cause.code,
      `The protection of node '${this.#file.node.name}' is lost: ${cause.message}`,
      { node: this.#node.name, op: 'copy-before-write' },
      cause,
    )
  }

  /** Writes are protected again, by a new copier or by the filter itself. */
  rearm(copier?: ClusterCopier): void {
    this.#copier = copier
    this.#lost = undefined
    this.#snapshotError = undefined
  }

  /** Why writes fail, when protection is lost. */
  get lost(): BlockError | undefined {
    return this.#lost
  }

  /** The copy error that made `target` useless (`on-cbw-error=break-snapshot`). */
  get snapshotError(): BlockError | undefined {
    return this.#snapshotError
  }

  /** What was done so far. */
  get counters(): CopyCounters {
    return {
      epochBytes: this.#epochBytes,
      totalBytes: this.#totalBytes,
      failures: this.#failures,
      inFlight: this.#map.claims,
      writesHeld: this.#writesHeld,
    }
  }

  /**
   * Copies whatever of a cluster-aligned range was not copied yet, as a write there would. Errors:
   * those of the copy, and the cause of lost protection.
   */
  async copyOut(offset: number, bytes: number): Promise<void> {
    if (this.#lost !== undefined) throw this.#lost
    if (this.#snapshotError !== undefined) throw this.#snapshotError
    const end = Math.min(offset + bytes, this.#file.length())
    const last = Math.floor((end - 1) / this.clusterSize)
    await this.#copyRange(Math.floor(offset / this.clusterSize), last)
    if (this.#lost !== undefined) throw this.#lost
  }

  /**
   * Fills `buf` with what the disk held when the epoch began. Writes to clusters that were not
   * copied yet wait while these are read. Errors: those of the disks, and why the snapshot is lost.
   */
  async readSnapshot(offset: number, buf: Uint8Array): Promise<void> {
    for (let at = offset; at < offset + buf.length; ) {
      if (this.#lost !== undefined) throw this.#lost
      if (this.#snapshotError !== undefined) throw this.#broken(this.#snapshotError)
      const cluster = Math.floor(at / this.clusterSize)
      const end = Math.min((cluster + 1) * this.clusterSize, offset + buf.length)
      const piece = buf.subarray(at - offset, end - offset)
      if (this.#outside?.[cluster] === 1)
        throw ioError('EACCES', { node: this.#node.name, offset: at, op: 'read' })
      const state = this.#map.claim(cluster)
      if (state === 'claimed') {
        await this.#map.whenSettled(cluster)
        continue
      }
      if (state === 'copied') await this.#target.pread(at, piece)
      else await this.#readClaimed(cluster, at, piece)
      at = end
    }
  }

  /** Gives up whole clusters of the snapshot: no write copies for them, no reader gets them. */
  async discardSnapshot(offset: number, bytes: number): Promise<void> {
    const [unit, length] = [this.clusterSize, this.#file.length()]
    const [first, all] = [Math.ceil(offset / unit), Math.ceil(length / unit)]
    const end = offset + bytes === length ? all : Math.floor((offset + bytes) / unit)
    this.#outside ??= new Uint8Array(all)
    for (let cluster = first; cluster < end; cluster++) {
      while (this.#map.state(cluster) === 'claimed') await this.#map.whenSettled(cluster)
      this.#outside[cluster] = 1
      if (this.#map.claim(cluster) === 'untouched') this.#map.complete(cluster)
    }
    const until = Math.min(end * unit, length)
    if (end > first) await this.#target.pdiscard(first * unit, until - first * unit)
  }

  /** Discards in the disk below; needs the option `discard-source`. */
  discardSource(offset: number, bytes: number): Pending {
    return this.#file.pdiscard(offset, bytes)
  }

  #broken(cause: BlockError): BlockError {
    const words = `The snapshot of node '${this.#file.node.name}' is broken: ${cause.message}`
    return new BlockError('EACCES', words, { node: this.#node.name, op: 'read' }, cause)
  }

  async #readClaimed(cluster: number, offset: number, into: Uint8Array): Promise<void> {
    const read = async (): Promise<void> => {
      await this.#file.pread(offset, into)
    }
    const reading = read().finally(() => this.#map.abandon(cluster))
    this.#copies.add(reading)
    try {
      await reading
    } finally {
      this.#copies.delete(reading)
    }
  }

  /** Only clusters with something dirty are wanted: no other is copied in this epoch. */
  keepOnly(dirty: DirtyBitmap): void {
    const unit = this.clusterSize
    const clusters = Math.ceil(this.#file.length() / unit)
    this.#outside = new Uint8Array(clusters)
    for (let cluster = 0; cluster < clusters; ) {
      const next = dirty.nextDirty(cluster * unit)
      const until = next === undefined ? clusters : Math.floor(next.offset / unit)
      for (; cluster < until; cluster++) {
        this.#outside[cluster] = 1
        if (this.#map.claim(cluster) === 'untouched') this.#map.complete(cluster)
      }
      if (next !== undefined) cluster = Math.ceil((next.offset + next.bytes) / unit)
    }
  }

  /** Waits until nothing is being copied. Inside a drained section nothing begins meanwhile. */
  async whenIdle(): Promise<void> {
    while (this.#copies.size > 0) await Promise.allSettled(this.#copies)
  }

  /**
   * Makes every cluster untouched again: the next epoch. Nothing may be being copied, as after
   * `whenIdle` in a drained section. One store, whatever was copied.
   */
  resetAll(): void {
    this.#map.bumpEpoch()
    this.#epochBytes = 0
  }

  /** `whenIdle`, then `resetAll`. Inside a drained section only. */
  async checkpoint(): Promise<void> {
    await this.whenIdle()
    this.resetAll()
  }

  length(): number {
    return this.#file.length()
  }

  /**
   * From now on a flush makes what was saved stable before the disk itself; `saved`, when given, is
   * awaited between each copy and the write that needed it.
   */
  keepOrder(saved: (() => Pending) | undefined): void {
    this.#ordered = true
    this.#saved = saved
  }

  flush(): Pending {
    return this.#ordered ? this.#target.flush() : undefined
  }

  pread(offset: number, buf: Uint8Array): Pending {
    return this.#file.pread(offset, buf)
  }

  pwrite(offset: number, buf: Uint8Array, flags: number): Pending {
    const copied = this.#protect(offset, buf.length, flags)
    if (copied === undefined) return this.#file.pwrite(offset, buf, flags)
    return copied.then(() => this.#file.pwrite(offset, buf, flags))
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Pending {
    const copied = this.#protect(offset, bytes, flags)
    if (copied === undefined) return this.#file.pwriteZeroes(offset, bytes, flags)
    return copied.then(() => this.#file.pwriteZeroes(offset, bytes, flags))
  }

  pdiscard(offset: number, bytes: number): Pending {
    const copied = this.#protect(offset, bytes, 0)
    if (copied === undefined) return this.#file.pdiscard(offset, bytes)
    return copied.then(() => this.#file.pdiscard(offset, bytes))
  }

  async close(): Promise<void> {
    await this.whenIdle()
    this.#map.dispose()
  }

  /** Nothing to wait for when every cluster of the range was copied already. */
  #protect(offset: number, bytes: number, flags: number): Pending {
    if ((flags & FLAG.WRITE_UNCHANGED) !== 0) return undefined
    if (this.#lost !== undefined) throw this.#lost
    if (this.#snapshotError !== undefined) return undefined
    const first = Math.floor(offset / this.clusterSize)
    const last = Math.floor((offset + bytes - 1) / this.clusterSize)
    for (let cluster = first; cluster <= last; cluster++) {
      if (this.#map.state(cluster) !== 'copied') return this.#copyFirst(cluster, last)
    }
    return undefined
  }

  async #copyFirst(first: number, last: number): Promise<void> {
    this.#writesHeld += 1
    try {
      const copied = this.#copyRange(first, last)
      await (this.#options.timeoutMs > 0 ? this.#limited(copied) : copied)
    } catch (thrown) {
      if (!this.#options.breakSnapshot || this.#lost !== undefined) throw thrown
      this.#snapshotError ??= asBlockError(thrown)
    }
    if (this.#lost !== undefined) throw this.#lost
  }

  /** Ends waiting after the timeout; the copy itself goes on and keeps its claim. */
  async #limited(copied: Promise<void>): Promise<void> {
    const { ctx } = this.#node.graph
    const sleep = ctx.wakeableSleep(this.#options.timeoutMs)
    let done = false
    const finished = copied.finally(() => {
      done = true
      sleep.wake()
    })
    finished.catch(() => undefined)
    await sleep.done
    if (!done) {
      throw new BlockError('ETIMEDOUT', 'The copy before a write took too long', {
        node: this.#node.name,
      })
    }
    await finished
  }

  async #copyRange(first: number, last: number): Promise<void> {
    for (let cluster = first; cluster <= last; ) {
      const state = this.#map.claim(cluster)
      if (state === 'copied') {
        cluster += 1
      } else if (state === 'claimed') {
        // Its failure is the failure of whoever claimed it; this write tries for itself.
        const settled = this.#map.whenSettled(cluster)
        if (settled !== undefined) await settled
        if (this.#lost !== undefined) throw this.#lost
      } else {
        const end = this.#claimMore(cluster + 1, last)
        await this.#copyClaimed(cluster, end)
        cluster = end
      }
    }
  }

  /** Claims the untouched clusters that follow, up to a run's length; answers where it ends. */
  #claimMore(from: number, last: number): number {
    const most = Math.max(1, RUN_BYTES / this.clusterSize)
    let end = from
    while (end <= last && end - from + 1 < most && this.#map.state(end) === 'untouched') {
      this.#map.claim(end)
      end += 1
    }
    return end
  }

  async #copyClaimed(first: number, end: number): Promise<void> {
    const offset = first * this.clusterSize
    const bytes = Math.min(end * this.clusterSize, this.#file.length()) - offset
    const copy = this.#copyAndSettle(first, end, offset, bytes)
    this.#copies.add(copy)
    try {
      await copy
    } finally {
      this.#copies.delete(copy)
    }
  }

  async #copyAndSettle(first: number, end: number, offset: number, bytes: number): Promise<void> {
    let copied = false
    try {
      await (this.#copier ?? this.#edges).copy(offset, bytes)
      const saved = this.#saved?.()
      if (saved !== undefined) await saved
      copied = true
      this.#epochBytes += bytes
      this.#totalBytes += bytes
    } catch (thrown) {
      this.#failures += 1
      throw thrown
    } finally {
      for (let cluster = first; cluster < end; cluster++) {
        if (copied) this.#map.complete(cluster)
        else this.#map.abandon(cluster)
      }
    }
  }
}

/** The bits of the bitmap that an option names. */
function wantedBits(node: BlockNode, option: unknown): DirtyBitmap | undefined {
  if (typeof option !== 'object' || option === null) return undefined
  const { node: owner, name } = option as { readonly node?: unknown; readonly name?: unknown }
  const noted = node.graph.find(String(owner))
  if (noted === undefined)
    throw new BlockError('EINVAL', `Node '${String(owner)}' not found`, { node: node.name })
  const bitmap = noted.bitmaps.get(String(name))
  if (bitmap === undefined)
    throw new BlockError('EINVAL', `Dirty bitmap '${String(name)}' not found`, { node: node.name })
  bitmap.checkUsable()
  return bitmap.allBits()
}

/**
 * `copy-before-write`: options `file`, `target`, `bitmap` (what is wanted), `on-cbw-error`,
 * `cbw-timeout` (seconds).
 */
export const copyBeforeWriteDriver: DriverDefinition = {
  name: 'copy-before-write',
  kind: 'filter',
  async open(node, options, opener) {
    for (const name of ['file', 'target']) {
      if (options[name] !== undefined) continue
      throw new BlockError('EINVAL', `Parameter '${name}' is missing`)
    }
    const cbw = cbwOptions(options)
    const file = await opener.open('file', options.file as BlockdevRef, 'filtered')
    const target = await opener.open('target', options.target as BlockdevRef, 'target')
    const wanted = wantedBits(node, options.bitmap)
    const filter = new CopyBeforeWrite(node, file, target, cbw)
    if (wanted !== undefined) filter.keepOnly(wanted)
    return filter
  },
  childPermissions(node, child, above) {
    if (child.role === 'target') {
      return { perm: PERM.WRITE, shared: PERM.ALL & ~PERM.RESIZE }
    }
    if (node.parents.size === 0) return { perm: 0, shared: PERM.ALL }
    const reads = (above.perm & PERM.WRITE) !== 0 ? PERM.CONSISTENT_READ : 0
    const discards = node.options['discard-source'] === true ? PERM.WRITE : 0
    return {
      perm: above.perm | reads | discards,
      shared: (above.shared | PERM.WRITE_UNCHANGED) & ~(PERM.WRITE | PERM.RESIZE),
    }
  },
}
