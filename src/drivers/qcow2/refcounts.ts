/**
 * Reference counts of host clusters: lookup, allocation, release, and the growth of their tables.
 *
 * Invariants:
 * - Everything that changes counts runs under one lock, in memory; `writeOut` brings it to the file.
 * - A refcount table entry reaches the file only after the block it points at.
 * - The header points at a moved table only after the table is stable.
 */
import type { MaybePromise } from '../../coroutine/coroutine.ts'
import { BlockError, ioError } from '../../util/errors.ts'
import { FifoLock } from './fifo-lock.ts'
import { viewOf, write64 } from './format.ts'
import type { Header } from './header.ts'
import { getRefcount, maxRefcount, setRefcount } from './refcount-bits.ts'
import type { DirtyPiece, Table, TableCache } from './table-cache.ts'

const SECTOR_ENTRIES = 64

/** What the counts need of the image. */
export interface RefcountHost {
  readonly header: Header
  /** What lies in a metadata cluster, by cluster number; nothing else may be written there. */
  readonly metadata: Map<number, string>
  /** Writes metadata. */
  writeMeta(offset: number, bytes: Uint8Array): Promise<void>
  /** Makes everything written stable. */
  sync(): Promise<void>
  /** Gives clusters up once nothing on the disk points at them. */
  freeLater(firstCluster: number, clusters: number): void
}

interface TablePlace {
  readonly offset: number
  readonly clusters: number
}

/** Counts of one image. */
export class Refcounts {
  /** Offsets of the refcount blocks; 0 = absent, all its counts are 0. */
  table: number[] = []
  readonly #host: RefcountHost
  readonly #cache: TableCache
  readonly #lock = new FifoLock()
  readonly #order: number
  /** Clusters that one block counts. */
  readonly blockEntries: number
  #changed = new Set<number>()
  #moved: TablePlace | undefined
  #hint = 1

  constructor(host: RefcountHost, cache: TableCache) {
    this.#host = host
    this.#cache = cache
    this.#order = host.header.refcountOrder
    this.blockEntries = (host.header.geometry.clusterBytes * 8) >> this.#order
  }

  /** The count of a cluster. */
  async get(cluster: number): Promise<number> {
    const index = Math.floor(cluster / this.blockEntries)
    for (;;) {
      const offset = this.table[index] ?? 0
      if (offset === 0) return 0
      const block = this.#cache.peek(offset)
      if (block !== undefined)
        return getRefcount(block.bytes, this.#order, cluster % this.blockEntries)
      await this.#cache.load(offset)
    }
  }

  /** The count of a cluster, if it is known without waiting. */
  peek(cluster: number): number | undefined {
    const offset = this.table[Math.floor(cluster / this.blockEntries)] ?? 0
    if (offset === 0) return 0
    const block = this.#cache.peek(offset)
    if (block === undefined) return undefined
    return getRefcount(block.bytes, this.#order, cluster % this.blockEntries)
  }

  /** Takes `clusters` free clusters in one row; answers the first. */
  allocate(clusters: number): Promise<number> {
    return this.#lock.run(() => this.#allocate(clusters))
  }

  /** As `allocate`, without waiting: undefined when the next row cannot be had at once. */
  allocateNow(clusters: number): number | undefined {
    const first = this.#hint
    const index = Math.floor(first / this.blockEntries)
    const offset = this.table[index] ?? 0
    const at = first % this.blockEntries
    if (this.#lock.busy || offset === 0 || at + clusters > this.blockEntries) return undefined
    const block = this.#cache.peek(offset)
    if (block === undefined) return undefined
    for (let i = at; i < at + clusters; i++)
      if (getRefcount(block.bytes, this.#order, i) !== 0) return undefined
    for (let i = at; i < at + clusters; i++) this.#store(block, i, 1)
    this.#hint = first + clusters
    return first
  }

  #store(block: Table, at: number, count: number): void {
    setRefcount(block.bytes, this.#order, at, count)
    const byte = Math.floor((at << this.#order) / 8)
    this.#cache.touch(block, byte, Math.max(1, (1 << this.#order) >> 3))
  }

  /**
   * Adds `delta` to the counts of a row of clusters, all of them or none.
   * Errors: EINVAL beyond what the width holds.
   */
  change(first: number, clusters: number, delta: number): Promise<void> {
    return this.#lock.run(async () => {
      let c = first
      try {
        for (; c < first + clusters; c++) {
          const pending = this.#add(c, delta)
          if (pending !== undefined) await pending
        }
      } catch (error) {
        while (--c >= first) await this.#add(c, -delta)
        throw error
      }
    })
  }

  #add(cluster: number, delta: number): MaybePromise<void> {
    const count = this.peek(cluster)
    if (count === undefined) return this.#addLater(cluster, delta)
    if (count + delta >= 0) this.#setNow(cluster, count + delta)
  }

  async #addLater(cluster: number, delta: number): Promise<void> {
    const count = (await this.get(cluster)) + delta
    if (count >= 0) await this.#set(cluster, count)
  }

  /** Adds one user to a cluster in use; false when it has none or no more can be counted. */
  share(cluster: number): Promise<boolean> {
    return this.#lock.run(async () => {
      const count = await this.get(cluster)
      if (count === 0 || count >= maxRefcount(this.#order)) return false
      await this.#set(cluster, count + 1)
      return true
    })
  }

  /** Sets one count, as a repair does. */
  assign(cluster: number, count: number): Promise<void> {
    return this.#lock.run(async () => {
      await this.#ensureBlocks(cluster, 1)
      await this.#set(cluster, count)
    })
  }

  /** Nothing below this cluster is looked at for allocation; a repair keeps away from old data. */
  allocateFrom(cluster: number): void {
    this.#hint = Math.max(1, cluster)
  }

  /** A table of another size or place is on its way. */
  get moving(): boolean {
    return this.#moved !== undefined
  }

  /** Writes the whole table, whatever changed. */
  async writeTable(): Promise<void> {
    const { header } = this.#host
    await this.#host.writeMeta(header.reftableOffset, this.#encodeAll(header.reftableClusters))
  }

  /** Forgets a block that cannot be trusted: its counts are 0 until set. */
  dropBlock(index: number): void {
    this.#cache.drop(this.table[index] ?? 0)
    this.table[index] = 0
    this.#changed.add(index)
  }

  /** Something waits for `writeOut`. */
  get dirty(): boolean {
    return this.#changed.size > 0 || this.#moved !== undefined || this.#cache.dirty
  }

  /** Forgets all counts: one block at `blockOffset` counts `used` clusters, all others are free. */
  reset(blockOffset: number, used: number): void {
    const bytes = new Uint8Array(this.#host.header.geometry.clusterBytes)
    for (let c = 0; c < used; c++) setRefcount(bytes, this.#order, c, 1)
    this.#cache.clear()
    this.#cache.add(blockOffset, bytes)
    this.table = [blockOffset]
    this.#changed.clear()
    this.#moved = undefined
    this.#hint = used
  }

  async #allocate(clusters: number): Promise<number> {
    let extra = 0
    for (;;) {
      const start = await this.#find(clusters + extra)
      const missing = this.#missing(start, clusters + extra)
      if (missing.length > extra) {
        extra = missing.length
        continue
      }
      this.#addBlocks(missing, start)
      const used = missing.length + clusters
      for (let c = start; c < start + used; c++) await this.#set(c, 1)
      await this.#growTable()
      return start + missing.length
    }
  }

  async #ensureBlocks(first: number, clusters: number): Promise<void> {
    if (this.#missing(first, clusters).length === 0) return
    const missing = this.#missing(first, clusters)
    const place = await this.#allocate(missing.length)
    const still = missing.filter((index) => (this.table[index] ?? 0) === 0)
    this.#addBlocks(still, place)
    await this.#growTable()
  }

  async #find(clusters: number): Promise<number> {
    let start = this.#hint
    let firstFree = -1
    for (let c = start; c - start < clusters; ) {
      const index = Math.floor(c / this.blockEntries)
      const base = index * this.blockEntries
      const offset = this.table[index] ?? 0
      if (offset === 0) {
        if (firstFree < 0) firstFree = c
        c = base + this.blockEntries
        continue
      }
      const block = this.#cache.peek(offset)
      if (block === undefined) {
        await this.#cache.load(offset)
        continue
      }
      for (; c < base + this.blockEntries && c - start < clusters; c++) {
        if (getRefcount(block.bytes, this.#order, c - base) !== 0) start = c + 1
        else if (firstFree < 0) firstFree = c
      }
    }
    this.#hint = firstFree === start ? start + clusters : firstFree
    return start
  }

  #missing(first: number, clusters: number): number[] {
    const missing: number[] = []
    const last = Math.floor((first + clusters - 1) / this.blockEntries)
    for (let index = Math.floor(first / this.blockEntries); index <= last; index++)
      if ((this.table[index] ?? 0) === 0) missing.push(index)
    return missing
  }

  #addBlocks(indexes: readonly number[], firstCluster: number): void {
    const { clusterBytes } = this.#host.header.geometry
    let cluster = firstCluster
    for (const index of indexes) {
      while (this.table.length <= index) this.table.push(0)
      this.table[index] = cluster * clusterBytes
      this.#cache.add(cluster * clusterBytes, new Uint8Array(clusterBytes))
      this.#host.metadata.set(cluster, 'refcount block')
      this.#changed.add(index)
      cluster++
    }
  }

  async #set(cluster: number, count: number): Promise<void> {
    const index = Math.floor(cluster / this.blockEntries)
    while (!this.#setNow(cluster, count)) await this.#cache.load(this.table[index] ?? 0)
  }

  /** Sets a count if its block is cached. */
  #setNow(cluster: number, count: number): boolean {
    if (count > maxRefcount(this.#order)) throw ioError('EINVAL', { op: 'refcount' })
    const offset = this.table[Math.floor(cluster / this.blockEntries)] ?? 0
    if (offset === 0) throw new BlockError('CORRUPT_IMAGE', 'A used cluster has no refcount block')
    const block = this.#cache.peek(offset)
    if (block === undefined) return false
    this.#store(block, cluster % this.blockEntries, count)
    if (count === 0 && cluster < this.#hint) this.#hint = cluster
    return true
  }

  get #capacity(): number {
    const { header } = this.#host
    const clusters = this.#moved?.clusters ?? header.reftableClusters
    return (clusters * header.geometry.clusterBytes) / 8
  }

  async #growTable(): Promise<void> {
    const { header, metadata } = this.#host
    const { clusterBytes } = header.geometry
    while (this.table.length > this.#capacity) {
      const old = this.#moved
      const clusters = Math.ceil((this.table.length * 8 * 1.5) / clusterBytes)
      // The table that is on its way is given up before the next one is looked for.
      this.#moved = { offset: 0, clusters }
      const first = await this.#allocate(clusters)
      if (old !== undefined && old.offset > 0) {
        for (let c = 0; c < old.clusters; c++) {
          metadata.delete(old.offset / clusterBytes + c)
          await this.#set(old.offset / clusterBytes + c, 0)
        }
      }
      if (this.#moved.clusters !== clusters) {
        // Looking for room made the table grow again, so this place is too small by now.
        for (let c = first; c < first + clusters; c++) await this.#set(c, 0)
        continue
      }
      for (let c = first; c < first + clusters; c++) metadata.set(c, 'refcount table')
      this.#moved = { offset: first * clusterBytes, clusters }
    }
  }

  /** Writes blocks, then the table, then (if it moved) the header; what was changed until now. */
  async writeOut(): Promise<void> {
    const blocks = this.#cache.takeDirty()
    const changed = this.#changed
    // A move that still looks for its place is left for the next time, with all that lies beyond
    // the old table; nothing that was handed out depends on it yet.
    const moved = this.#moved?.offset === 0 ? undefined : this.#moved
    const { header } = this.#host
    const limit = (header.reftableClusters * header.geometry.clusterBytes) / 8
    this.#changed = new Set(moved === undefined ? [...changed].filter((i) => i >= limit) : [])
    const sectors = moved === undefined ? this.#encodeChanged(changed, limit) : []
    const whole = moved === undefined ? undefined : this.#encodeAll(moved.clusters)
    let written = false
    try {
      for (const { offset, bytes } of blocks) await this.#host.writeMeta(offset, bytes)
      if (sectors.length > 0 || whole !== undefined) await this.#host.sync()
      for (const { offset, bytes } of sectors) await this.#host.writeMeta(offset, bytes)
      if (moved !== undefined && whole !== undefined) await this.#switchTable(moved, whole)
      written = true
    } finally {
      this.#cache.settle(blocks, written)
      if (!written) for (const index of changed) this.#changed.add(index)
    }
  }

  #encodeChanged(
    changed: ReadonlySet<number>,
    limit: number,
  ): Pick<DirtyPiece, 'offset' | 'bytes'>[] {
    const inside = [...changed].filter((index) => index < limit)
    const sectors = new Set(inside.map((index) => Math.floor(index / SECTOR_ENTRIES)))
    return [...sectors].map((sector) => ({
      offset: this.#host.header.reftableOffset + sector * SECTOR_ENTRIES * 8,
      bytes: this.#encode(sector * SECTOR_ENTRIES, SECTOR_ENTRIES),
    }))
  }

  #encodeAll(clusters: number): Uint8Array {
    return this.#encode(0, (clusters * this.#host.header.geometry.clusterBytes) / 8)
  }

  #encode(from: number, entries: number): Uint8Array {
    const bytes = new Uint8Array(entries * 8)
    const view = viewOf(bytes)
    for (let i = 0; i < entries; i++) write64(view, i * 8, this.table[from + i] ?? 0)
    return bytes
  }

  async #switchTable(moved: TablePlace, whole: Uint8Array): Promise<void> {
    const host = this.#host
    const { header } = host
    await host.writeMeta(moved.offset, whole)
    await host.sync()
    const field = new Uint8Array(12)
    write64(viewOf(field), 0, moved.offset)
    viewOf(field).setUint32(8, moved.clusters)
    await host.writeMeta(48, field)
    await host.sync()
    const old = header.reftableOffset / header.geometry.clusterBytes
    for (let c = old; c < old + header.reftableClusters; c++) host.metadata.delete(c)
    host.freeLater(old, header.reftableClusters)
    header.reftableOffset = moved.offset
    header.reftableClusters = moved.clusters
    if (this.#moved === moved) this.#moved = undefined
  }
}
