/**
 * One open qcow2 image: header, tables, caches, and the order in which changes reach the file.
 *
 * Invariants:
 * - Refcounts are stable before an L2 entry that needs them is written, data before the entry that
 *   shows them, L2 tables before the L1 entry that points at them.
 * - Clusters are given up only after the removal of the last pointer is stable and every request that
 *   may still use them has ended.
 * - After corruption was found nothing is written any more.
 */
import type { BlockChild } from '../../block/child.ts'
import type { BlockNode } from '../../block/node.ts'
import type { Pending } from '../../coroutine/coroutine.ts'
import { BlockError, ioError } from '../../util/errors.ts'
import { raiseDebugEvent } from '../debug-event.ts'
import { FifoLock } from './fifo-lock.ts'
import type { Geometry } from './format.ts'
import { INCOMPAT, viewOf, write64 } from './format.ts'
import type { Header } from './header.ts'
import { encodeHeader } from './header.ts'
import { Refcounts } from './refcounts.ts'
import { decodeTable } from './table-bytes.ts'
import { TableCache } from './table-cache.ts'

const SECTOR_BYTES = 512

interface Freed {
  readonly first: number
  readonly clusters: number
  /** Requests numbered below this may still use them. */
  readonly barrier: number
}

/** A row of metadata bytes. */
export interface MetadataPlace {
  /** Its name in messages. */
  readonly what: string
  readonly offset: number
  readonly bytes: number
}

/** What caches may take. */
export interface CacheSizes {
  /** Bytes of cached L2 tables. */
  readonly l2Bytes: number
  /** Bytes of cached refcount blocks. */
  readonly refcountBytes: number
}

/** The image. */
export class Qcow2Image {
  readonly node: BlockNode
  /** Where metadata (and without a data file also data) live. */
  readonly file: BlockChild
  /** Where data live. */
  readonly data: BlockChild
  readonly header: Header
  readonly geometry: Geometry
  /** The active L1 table as in the file. */
  l1: Uint8Array
  l1View: DataView
  readonly l2: TableCache
  readonly refcounts: Refcounts
  /** What lies in a metadata cluster, by cluster number. */
  readonly metadata: Map<number, string> = new Map()
  /** Metadata of snapshots: their table, inactive L1 tables. */
  #extraMetadata: readonly MetadataPlace[] = []
  /** Host bytes at and beyond this were never written, so they are zero. */
  virginFrom: number
  /** The image may be changed. */
  writable: boolean
  /** Nothing works any more after fatal corruption. */
  dead = false
  /** A change of counts stopped half way; the dirty mark stays, so that the next opening repairs. */
  needsRepair = false
  /** Entries are changed under the dirty mark, refcounts reach the file at the end only. */
  lazy = false
  readonly #writeLock = new FifoLock()
  readonly #l1Dirty = new Set<number>()
  readonly #refcountCache: TableCache
  #freed: Freed[] = []
  /** Clusters that wait to be given up. */
  freedClusters = 0
  readonly #requests = new Set<number>()
  #nextRequest = 1
  #corruptionTold = false
  #marking: Pending
  #dirtying: Pending
  /** Writes to metadata are looked for; off with `overlap-check=none`. */
  overlapCheck = true

  constructor(
    node: BlockNode,
    file: BlockChild,
    data: BlockChild,
    header: Header,
    l1: Uint8Array,
    sizes: CacheSizes,
  ) {
    this.node = node
    this.file = file
    this.data = data
    this.header = header
    this.geometry = header.geometry
    this.l1 = l1
    this.l1View = viewOf(l1)
    this.virginFrom = file.length()
    this.writable = !node.readOnly
    const bytes = this.geometry.clusterBytes
    const read = (event: string) => (offset: number, into: Uint8Array) =>
      this.#readMeta(event, offset, into)
    const back = (): Promise<void> => this.writeBack()
    this.l2 = new TableCache(bytes, tables(sizes.l2Bytes, bytes), read('l2_load'), back)
    const blocks = tables(sizes.refcountBytes, bytes)
    this.#refcountCache = new TableCache(bytes, blocks, read('refblock_load'), back)
    this.refcounts = new Refcounts(this, this.#refcountCache)
  }

  /** Changes the bounds of the caches. */
  setCacheSizes(sizes: CacheSizes): void {
    this.l2.limit = tables(sizes.l2Bytes, this.geometry.clusterBytes)
    this.#refcountCache.limit = tables(sizes.refcountBytes, this.geometry.clusterBytes)
  }

  async #readMeta(event: string, offset: number, into: Uint8Array): Promise<void> {
    raiseDebugEvent(this.file, event)
    const pending = this.file.pread(offset, into)
    if (pending !== undefined) await pending
  }

  /** Writes metadata to the file. */
  async writeMeta(offset: number, bytes: Uint8Array): Promise<void> {
    if (this.dead) throw ioError('EIO', { node: this.node.name, op: 'write' })
    this.virginFrom = Math.max(this.virginFrom, offset + bytes.length)
    const pending = this.file.pwrite(offset, bytes)
    if (pending !== undefined) await pending
  }

  /** Makes everything written to the children stable, unless the node ignores flushes. */
  async sync(): Promise<void> {
    if (this.node.noFlush) return
    if (this.data !== this.file) {
      const pending = this.data.flush()
      if (pending !== undefined) await pending
    }
    const pending = this.file.flush()
    if (pending !== undefined) await pending
  }

  /** Rewrites the header and its extensions; what was behind them in the cluster goes. */
  async writeHeader(): Promise<void> {
    await this.writeMeta(0, encodeHeader(this.header))
  }

  /** Writes the feature bits (they share a sector). */
  async writeFeatures(): Promise<void> {
    const bytes = new Uint8Array(24)
    const view = viewOf(bytes)
    view.setUint32(4, this.header.incompatible)
    view.setUint32(12, this.header.compatible)
    view.setUint32(20, this.header.autoclear)
    await this.writeMeta(72, bytes)
  }

  /** Sets the dirty mark before the first change that leaves refcounts behind. */
  async markDirty(): Promise<void> {
    if (this.#dirtying !== undefined) return this.#dirtying
    if (this.header.version < 3 || (this.header.incompatible & INCOMPAT.DIRTY) !== 0) return
    this.#dirtying = this.#setDirty()
    try {
      await this.#dirtying
    } finally {
      this.#dirtying = undefined
    }
  }

  async #setDirty(): Promise<void> {
    this.header.incompatible |= INCOMPAT.DIRTY
    try {
      await this.writeFeatures()
      await this.sync()
    } catch (error) {
      this.header.incompatible &= ~INCOMPAT.DIRTY
      throw error
    }
  }

  /** Takes the dirty mark away; everything else is stable already. */
  async markClean(): Promise<void> {
    if (this.needsRepair || (this.header.incompatible & INCOMPAT.DIRTY) === 0) return
    this.header.incompatible &= ~INCOMPAT.DIRTY
    await this.writeFeatures()
  }

  /** Entry `index` of the active L1 table. */
  setL1(index: number, hi: number, lo: number): void {
    this.l1View.setUint32(index * 8, hi >>> 0)
    this.l1View.setUint32(index * 8 + 4, lo >>> 0)
    this.l1Touched(index)
  }

  /** Notes that an L1 entry changed. */
  l1Touched(index: number): void {
    this.#l1Dirty.add(Math.floor((index * 8) / SECTOR_BYTES))
  }

  /** Replaces the L1 table in memory; the file has it already. */
  replaceL1(l1: Uint8Array, offset: number): void {
    this.l1 = l1
    this.l1View = viewOf(l1)
    this.header.l1Offset = offset
    this.header.l1Size = l1.length / 8
    this.#l1Dirty.clear()
  }

  /** The whole L1 table in the file may differ from ours. */
  l1TouchedAll(): void {
    for (let index = 0; index < this.l1.length / 8; index++) this.l1Touched(index)
  }

  /** Runs `body` while no write-back runs. */
  exclusive<T>(body: () => Promise<T>): Promise<T> {
    return this.#writeLock.run(body)
  }

  /** Replaces what is known of the metadata of snapshots. */
  setExtraMetadata(places: readonly MetadataPlace[]): void {
    const { clusterBytes } = this.geometry
    for (const { offset, bytes } of this.#extraMetadata) {
      const last = Math.ceil((offset + bytes) / clusterBytes)
      for (let c = Math.floor(offset / clusterBytes); c < last; c++) this.metadata.delete(c)
    }
    this.#extraMetadata = places
    for (const { what, offset, bytes } of places) this.#noteMetadata(offset, bytes, what)
  }

  #noteMetadata(offset: number, bytes: number, what: string): void {
    const { clusterBytes } = this.geometry
    const last = Math.ceil((offset + bytes) / clusterBytes)
    for (let c = Math.floor(offset / clusterBytes); c < last; c++) this.metadata.set(c, what)
  }

  /** Notes anew which clusters hold metadata. */
  mapMetadata(): void {
    const { clusterBytes } = this.geometry
    const note = (offset: number, bytes: number, what: string): void =>
      this.#noteMetadata(offset, bytes, what)
    this.metadata.clear()
    for (const table of decodeTable(this.l1))
      if (table !== 0) note(table, clusterBytes, 'active L2 table')
    for (const block of this.refcounts.table)
      if (block !== 0) note(block, clusterBytes, 'refcount block')
    const { header } = this
    note(header.reftableOffset, header.reftableClusters * clusterBytes, 'refcount table')
    note(header.l1Offset, this.l1.length, 'active L1 table')
    for (const { what, offset, bytes } of this.#extraMetadata) note(offset, bytes, what)
    note(0, clusterBytes, 'qcow2_header')
  }

  /** Something of the metadata is not in the file yet, or clusters wait to be given up. */
  get dirty(): boolean {
    return this.#freed.length > 0 || this.#unwritten
  }

  get #unwritten(): boolean {
    return this.#l1Dirty.size > 0 || this.l2.dirty || this.refcounts.dirty
  }

  /** Brings all metadata changed until now to the file, in the safe order; the last is not synced. */
  writeBack(): Promise<void> {
    return this.#writeLock.run(() => this.#writeBack(true))
  }

  /** The counts may stay behind: the dirty mark says that they are to be made anew. */
  get #countsCanWait(): boolean {
    return this.lazy && (this.header.incompatible & INCOMPAT.DIRTY) !== 0
  }

  async #writeBack(withCounts: boolean): Promise<void> {
    // One step for everything: later changes belong to the next round, with their own order.
    const tablesDirty = this.l2.takeDirty()
    const l1 = this.#takeL1()
    const counts = withCounts ? this.refcounts.writeOut() : undefined
    let written = false
    try {
      await counts
      if (tablesDirty.length > 0) {
        await this.sync()
        raiseDebugEvent(this.file, 'l2_update')
        for (const { offset, bytes } of tablesDirty) await this.writeMeta(offset, bytes)
      }
      if (l1.length > 0) {
        await this.sync()
        raiseDebugEvent(this.file, 'l1_update')
        for (const { offset, bytes } of l1) await this.writeMeta(offset, bytes)
      }
      written = true
    } finally {
      this.l2.settle(tablesDirty, written)
      if (!written) for (const { sector } of l1) this.#l1Dirty.add(sector)
    }
  }

  #takeL1(): { sector: number; offset: number; bytes: Uint8Array }[] {
    const taken = [...this.#l1Dirty].map((sector) => ({
      sector,
      offset: this.header.l1Offset + sector * SECTOR_BYTES,
      bytes: this.l1.slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES),
    }))
    this.#l1Dirty.clear()
    return taken
  }

  /** Writes metadata back and gives up what may be given up. */
  flush(): Promise<void> {
    return this.#flush(!this.#countsCanWait)
  }

  async #flush(withCounts: boolean): Promise<void> {
    const barrier = this.#nextRequest
    const ready = [...this.#freed]
    if (this.#unwritten) await this.#writeLock.run(() => this.#writeBack(withCounts))
    if (ready.length === 0) return
    await this.sync()
    await this.#release(ready, barrier)
  }

  async #release(ready: readonly Freed[], barrier: number): Promise<void> {
    const oldest = this.#requests.values().next().value ?? Number.MAX_SAFE_INTEGER
    const due = ready.filter((f) => f.barrier <= Math.min(oldest, barrier))
    const gone = new Set(due)
    const mine = this.#freed.filter((f) => gone.has(f))
    this.#freed = this.#freed.filter((f) => !gone.has(f))
    for (const { first, clusters } of mine) {
      this.freedClusters -= clusters
      await this.refcounts.change(first, clusters, -1)
    }
  }

  /** Gives clusters up once that is safe. */
  freeLater(first: number, clusters: number): void {
    this.#freed.push({ first, clusters, barrier: this.#nextRequest })
    this.freedClusters += clusters
  }

  /** Forgets clusters that wait to be given up; their counts were reset as a whole. */
  forgetFreed(): void {
    this.#freed = []
    this.freedClusters = 0
  }

  /** Numbers a request that goes on after this step. */
  beginRequest(): number {
    const request = this.#nextRequest++
    this.#requests.add(request)
    return request
  }

  /** Ends a numbered request. */
  endRequest(request: number): void {
    this.#requests.delete(request)
  }

  /** Runs work that goes on after this step as a numbered request. */
  async numbered(body: () => Promise<void>): Promise<void> {
    const request = this.beginRequest()
    try {
      await body()
    } finally {
      this.endRequest(request)
    }
  }

  /** Writes everything and gives up what waits for it, durably. */
  async flushAll(): Promise<void> {
    for (let round = 0; this.dirty && round < 8; round++) await this.#flush(true)
    await this.sync()
  }

  /** Writes everything, at the end of use or before going read-only. */
  async settle(): Promise<void> {
    if (this.#marking !== undefined) await this.#marking
    if (!this.writable || this.dead) return
    await this.flushAll()
    await this.markClean()
    await this.sync()
  }

  /** Refuses to go on with an image found corrupt. */
  checkAlive(): void {
    if (this.dead) throw ioError('ENOMEDIUM', { node: this.node.name })
  }

  /** Stops a write that would hit metadata. Errors: EIO, and the image is marked corrupt. */
  checkOverlap(offset: number, bytes: number): void {
    if (this.data !== this.file || !this.overlapCheck) return
    const { clusterBytes } = this.geometry
    const last = Math.floor((offset + bytes - 1) / clusterBytes)
    for (let c = Math.floor(offset / clusterBytes); c <= last; c++) {
      const what = this.metadata.get(c)
      if (what === undefined) continue
      const words = `Preventing invalid write on metadata (overlaps with ${what})`
      throw this.corrupt(words, offset, bytes)
    }
  }

  /** Notes corruption, once loudly, marks a writable image, and answers the error to fail with. */
  corrupt(words: string, offset?: number, bytes?: number): BlockError {
    const fatal = this.writable
    if (!this.#corruptionTold || (fatal && !this.dead)) {
      this.#corruptionTold = true
      const place = offset === undefined || bytes === undefined ? {} : { offset, size: bytes }
      this.node.graph.events.emit('BLOCK_IMAGE_CORRUPTED', {
        device: '',
        'node-name': this.node.name,
        msg: words,
        ...place,
        fatal,
      })
    }
    if (fatal && !this.dead) {
      this.header.incompatible |= INCOMPAT.CORRUPT
      if (this.header.version >= 3) this.#marking = this.writeFeatures().catch(() => undefined)
      this.dead = true
    }
    return new BlockError('EIO', 'Input/output error', { node: this.node.name }, words)
  }
}

function tables(bytes: number, tableBytes: number): number {
  return Math.max(4, Math.floor(bytes / tableBytes))
}

/** Stores a 12-byte header field: a count and an offset that must change together. */
export function l1Field(entries: number, offset: number): Uint8Array {
  const bytes = new Uint8Array(12)
  viewOf(bytes).setUint32(0, entries)
  write64(viewOf(bytes), 4, offset)
  return bytes
}
