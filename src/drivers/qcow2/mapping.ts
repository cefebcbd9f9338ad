/**
 * From guest offsets to host places: the L1 and L2 tables.
 *
 * Invariants:
 * - `lookup` answers a run that is uniform in kind, contiguous on the host, and within one L2 table.
 * - An L2 table is changed only when the active L1 alone points at it.
 * - A table is used only in the step in which it was peeked.
 */
import type { BlockError } from '../../util/errors.ts'
import { FifoLock } from './fifo-lock.ts'
import {
  COMPRESSED_HI,
  COPIED_HI,
  compressedPlace,
  hiOf,
  loOf,
  offsetOf,
  ZERO_LO,
} from './format.ts'
import type { Qcow2Image } from './image.ts'
import type { Table } from './table-cache.ts'

/** What a run of guest bytes is. */
export const KIND = {
  /** Nothing here: the backing image shows. */
  UNALLOCATED: 0,
  /** Zeroes without a host cluster. */
  ZERO: 1,
  /** Zeroes with a host cluster kept for later. */
  ZERO_KEPT: 2,
  /** Data on the host. */
  NORMAL: 3,
  COMPRESSED: 4,
} as const

/** A hexadecimal number as messages about images show it. */
export const hex = (value: number): string => `0x${value.toString(16)}`

/** Tables of one image. */
export class Mapping {
  /** Answer of the last `lookup`, valid until the next. */
  kind = 0
  /** Host byte of the first guest byte, for NORMAL, ZERO_KEPT (within the cluster). */
  host = 0
  /** The cluster is used once and may be written in place. */
  copied = false
  /** Guest bytes of the run. */
  bytes = 0
  /** Host byte where the next compressed cluster may follow the last one; 0 = nowhere. */
  packedEnd = 0
  readonly #image: Qcow2Image
  readonly #lock = new FifoLock()

  constructor(image: Qcow2Image) {
    this.#image = image
  }

  /** The L1 index of a guest offset. */
  l1Index(offset: number): number {
    return Math.floor(offset / this.#image.geometry.l2Coverage)
  }

  /** The L2 index of a guest offset. */
  l2Index(offset: number): number {
    const { clusterBytes, l2Entries } = this.#image.geometry
    return Math.floor(offset / clusterBytes) % l2Entries
  }

  /** Host offset of the L2 table that covers a guest offset; 0 = none. Errors: EIO on a bad entry. */
  l2Offset(offset: number): number {
    const { l1View, geometry } = this.#image
    const index = this.l1Index(offset)
    if (index * 8 >= l1View.byteLength) return 0
    const table = offsetOf(l1View.getUint32(index * 8), l1View.getUint32(index * 8 + 4))
    if (table % geometry.clusterBytes !== 0)
      throw this.#image.corrupt(`L2 table offset ${hex(table)} unaligned (L1 index: ${hex(index)})`)
    return table
  }

  /**
   * Looks a run up into `kind`, `host`, `copied` and `bytes`.
   * False: the L2 table must be loaded first (`load`).
   */
  lookup(offset: number, maxBytes: number): boolean {
    const { geometry, l2 } = this.#image
    const tableOffset = this.l2Offset(offset)
    const inTable = geometry.l2Coverage - (offset % geometry.l2Coverage)
    const want = Math.min(maxBytes, inTable)
    if (tableOffset === 0) {
      this.kind = KIND.UNALLOCATED
      this.host = 0
      this.copied = false
      this.bytes = want
      return true
    }
    const table = l2.peek(tableOffset)
    if (table === undefined) return false
    this.#run(table, offset, want)
    return true
  }

  /** Brings in the L2 table that `lookup` missed. */
  load(offset: number): Promise<void> {
    return this.#image.l2.load(this.l2Offset(offset))
  }

  #run(table: Table, offset: number, want: number): void {
    const { unitBytes } = this.#image.geometry
    const inUnit = offset % unitBytes
    this.#unit(table, offset - inUnit)
    const { kind, copied } = this
    const host = this.host
    const hosted = kind === KIND.NORMAL || kind === KIND.ZERO_KEPT
    let bytes = unitBytes
    while (bytes - inUnit < want && kind !== KIND.COMPRESSED) {
      this.#unit(table, offset - inUnit + bytes)
      if (this.kind !== kind || this.copied !== copied) break
      if (hosted && this.host !== host + bytes) break
      bytes += unitBytes
    }
    this.kind = kind
    this.copied = copied
    this.host = hosted ? host + inUnit : host
    this.bytes = Math.min(want, bytes - inUnit)
  }

  /** Decodes one cluster or subcluster. */
  #unit(table: Table, offset: number): void {
    const { geometry } = this.#image
    const at = this.l2Index(offset) * geometry.entryBytes
    const hi = table.view.getUint32(at)
    const lo = table.view.getUint32(at + 4)
    this.host = 0
    this.copied = (hi & COPIED_HI) !== 0
    if ((hi & COMPRESSED_HI) !== 0) {
      this.kind = KIND.COMPRESSED
      return
    }
    const host = offsetOf(hi, lo)
    if (host % geometry.clusterBytes !== 0) throw this.#unaligned(table, at, host)
    const present = host !== 0 || (this.copied && this.#image.data !== this.#image.file)
    if (geometry.extended) {
      this.#subcluster(table, at, offset % geometry.clusterBytes, host, present)
      return
    }
    this.host = host
    const zero = (lo & ZERO_LO) !== 0 && this.#image.header.version >= 3
    if (zero) this.kind = present ? KIND.ZERO_KEPT : KIND.ZERO
    else if (present) this.kind = KIND.NORMAL
    else {
      this.kind = KIND.UNALLOCATED
      this.copied = false
    }
  }

  #subcluster(table: Table, at: number, inside: number, host: number, present: boolean): void {
    const { unitBytes } = this.#image.geometry
    const bit = 1 << Math.floor(inside / unitBytes)
    const zero = (table.view.getUint32(at + 8) & bit) !== 0
    const allocated = (table.view.getUint32(at + 12) & bit) !== 0
    if (zero && allocated)
      throw this.#image.corrupt(`Invalid subcluster bitmap at L2 offset ${hex(table.offset + at)}`)
    this.host = host + inside
    if (zero) this.kind = present ? KIND.ZERO_KEPT : KIND.ZERO
    else if (allocated && present) this.kind = KIND.NORMAL
    else this.kind = KIND.UNALLOCATED
  }

  #unaligned(table: Table, at: number, host: number): BlockError {
    const index = hex(at / this.#image.geometry.entryBytes)
    return this.#image.corrupt(
      `Cluster allocation offset ${hex(host)} unaligned ` +
        `(L2 offset: ${hex(table.offset)}, L2 index: ${index})`,
    )
  }

  /** The table that covers `offset`, if it is cached and may be changed. */
  writable(offset: number): Table | undefined {
    const { l1View, l2 } = this.#image
    const index = this.l1Index(offset)
    if ((l1View.getUint32(index * 8) & COPIED_HI) === 0) return undefined
    return l2.peek(this.l2Offset(offset))
  }

  /** Makes the table that covers `offset` changeable: loads, copies or creates it. */
  makeWritable(offset: number): Promise<void> {
    return this.#lock.run(async () => {
      const image = this.#image
      const index = this.l1Index(offset)
      const old = this.l2Offset(offset)
      const copied = (image.l1View.getUint32(index * 8) & COPIED_HI) !== 0
      if (old !== 0 && copied) {
        await image.l2.load(old)
        return
      }
      const { clusterBytes } = image.geometry
      const cluster = await image.refcounts.allocate(1)
      const bytes = new Uint8Array(clusterBytes)
      for (let source = image.l2.peek(old); old !== 0; source = image.l2.peek(old)) {
        if (source !== undefined) {
          bytes.set(source.bytes)
          break
        }
        await image.l2.load(old)
      }
      image.l2.add(cluster * clusterBytes, bytes)
      image.metadata.set(cluster, 'active L2 table')
      image.setL1(
        index,
        (COPIED_HI | hiOf(cluster * clusterBytes)) >>> 0,
        loOf(cluster * clusterBytes),
      )
      if (old === 0) return
      image.metadata.delete(old / clusterBytes)
      image.freeLater(old / clusterBytes, 1)
    })
  }

  /** Stores an entry; `zeroBits` and `dataBits` are the subcluster words of extended entries. */
  store(
    table: Table,
    offset: number,
    hi: number,
    lo: number,
    zeroBits: number,
    dataBits: number,
  ): void {
    const { entryBytes, extended } = this.#image.geometry
    const at = this.l2Index(offset) * entryBytes
    table.view.setUint32(at, hi >>> 0)
    table.view.setUint32(at + 4, lo >>> 0)
    if (extended) {
      table.view.setUint32(at + 8, zeroBits >>> 0)
      table.view.setUint32(at + 12, dataBits >>> 0)
    }
    this.#image.l2.touch(table, at, entryBytes)
  }

  /** The raw entry words of the cluster at `offset`. */
  entry(table: Table, offset: number): { hi: number; lo: number } {
    const at = this.l2Index(offset) * this.#image.geometry.entryBytes
    return { hi: table.view.getUint32(at), lo: table.view.getUint32(at + 4) }
  }

  /** Gives up whatever host clusters an entry uses. */
  release(hi: number, lo: number): void {
    const image = this.#image
    const { clusterBits, clusterBytes } = image.geometry
    if (image.data !== image.file) return
    if ((hi & COMPRESSED_HI) !== 0) {
      // The host cluster that was packed last may be the one that goes.
      this.packedEnd = 0
      const { offset, bytes } = compressedPlace(hi, lo, clusterBits)
      const first = Math.floor(offset / clusterBytes)
      const last = Math.floor((offset + bytes - 1) / clusterBytes)
      image.freeLater(first, last - first + 1)
      return
    }
    const host = offsetOf(hi, lo)
    if (host !== 0) image.freeLater(host / clusterBytes, 1)
  }
}
