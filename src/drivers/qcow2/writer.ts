/**
 * Writing guest data of a qcow2 image.
 *
 * Invariants:
 * - A guest cluster that is being given a host cluster belongs to one request; others wait for it.
 * - An entry is changed after its data are written; a failed write leaves the old entry.
 * - A write into a cluster that is ours already, with its table cached, goes through inline.
 */
import type { Pending } from '../../coroutine/coroutine.ts'
import { raiseDebugEvent } from '../debug-event.ts'
import type { Claims } from './claims.ts'
import { COMPRESSED_HI, COPIED_HI, hiOf, loOf, offsetOf } from './format.ts'
import type { Qcow2Image } from './image.ts'
import type { Mapping } from './mapping.ts'
import { KIND } from './mapping.ts'
import { allSettled, inPieces, type PieceWorker } from './pieces.ts'
import type { Reader } from './reader.ts'

/** Longest row of clusters that one step allocates. */
const STEP_BYTES = 16 * 1024 * 1024
/** Up to this size old and new data are written at once. */
const MERGE_BYTES = 2 * 1024 * 1024
/** With more freed clusters waiting than this, an allocation flushes first. */
const FREED_LIMIT = 4096
const ALL_BITS = 0xffffffff

/** Changes. */
export class Writer implements PieceWorker {
  readonly #image: Qcow2Image
  readonly #mapping: Mapping
  readonly #reader: Reader
  readonly #claims: Claims
  took = 0

  constructor(image: Qcow2Image, mapping: Mapping, reader: Reader, claims: Claims) {
    this.#image = image
    this.#mapping = mapping
    this.#reader = reader
    this.#claims = claims
  }

  /** Stores `buf` at guest byte `offset`. */
  write(offset: number, buf: Uint8Array): Pending {
    this.#image.checkAlive()
    const waits = inPieces(this, offset, buf)
    return waits === undefined ? undefined : this.#image.numbered(() => allSettled(waits))
  }

  piece(offset: number, rest: Uint8Array): Pending {
    if (!this.#image.geometry.extended && this.#inPlace(offset, rest.length)) {
      const { bytes } = this.#mapping
      this.took = bytes
      return this.#writeData(
        this.#mapping.host,
        bytes === rest.length ? rest : rest.subarray(0, bytes),
      )
    }
    const pending = this.#writeNewNow(offset, rest)
    if (this.took > 0) return pending
    this.took = rest.length
    return this.#writeSlow(offset, rest)
  }

  /** The run at `offset` (left in the mapping) is ours alone and nobody works on it. */
  #inPlace(offset: number, bytes: number): boolean {
    if (this.#claims.any && this.#claims.conflict(offset, offset + bytes) !== undefined)
      return false
    const mapping = this.#mapping
    return mapping.lookup(offset, bytes) && mapping.kind === KIND.NORMAL && mapping.copied
  }

  #writeData(host: number, buf: Uint8Array): Pending {
    this.#image.checkOverlap(host, buf.length)
    raiseDebugEvent(this.#image.data, 'write_aio')
    return this.#image.data.pwrite(host, buf)
  }

  async #writeSlow(offset: number, buf: Uint8Array): Promise<void> {
    if (this.#image.lazy) await this.#image.markDirty()
    for (let done = 0; done < buf.length; ) {
      this.#image.checkAlive()
      const at = offset + done
      const claim = this.#claims.conflict(at, at + 1)
      if (claim !== undefined) {
        await claim.ended
        continue
      }
      if (this.#mapping.writable(at) === undefined) {
        await this.#mapping.makeWritable(at)
        continue
      }
      const part = buf.subarray(done)
      // `#inPlace` looks at the first byte only here, so that a long write need not wait as a whole.
      if (this.#inPlace(at, Math.min(part.length, this.#clusterRest(at)))) {
        const bytes = this.#mapping.bytes
        await this.#overwrite(at, this.#mapping.host, part.subarray(0, bytes))
        done += bytes
      } else done += await this.#writeNew(at, part)
    }
  }

  /** With subclusters others may copy the rest of the same cluster, so it is claimed. */
  async #overwrite(offset: number, host: number, buf: Uint8Array): Promise<void> {
    const { extended } = this.#image.geometry
    const last = offset + this.#clusterRest(offset)
    const { clusterBytes } = this.#image.geometry
    const release = extended ? this.#claims.claim(last - clusterBytes, last) : undefined
    try {
      const pending = this.#writeData(host, buf)
      if (pending !== undefined) await pending
    } finally {
      release?.()
    }
  }

  #clusterRest(offset: number): number {
    const { clusterBytes } = this.#image.geometry
    return clusterBytes - (offset % clusterBytes)
  }

  /** Gives host clusters to the start of `buf` and writes it; answers how many bytes it took. */
  async #writeNew(offset: number, buf: Uint8Array): Promise<number> {
    const image = this.#image
    const { clusterBytes } = image.geometry
    const first = offset - (offset % clusterBytes)
    const { clusters, kept } = this.#extent(first, offset + Math.min(buf.length, STEP_BYTES))
    const last = first + clusters * clusterBytes
    const data = buf.subarray(0, Math.min(buf.length, last - offset))
    const release = this.#claims.claim(first, last)
    try {
      if (image.freedClusters > FREED_LIMIT) await image.flush()
      const host = kept ?? (await this.#place(first, clusters))
      try {
        await this.#fill(offset, data, first, last, host, kept === undefined)
      } catch (error) {
        if (kept === undefined && image.data === image.file)
          image.freeLater(host / clusterBytes, clusters)
        throw error
      }
      await this.#point(first, last, host)
    } finally {
      release()
    }
    return data.length
  }

  /** How many clusters from `first` need the same treatment; `kept`: the host cluster to be used. */
  #extent(first: number, end: number): { clusters: number; kept: number | undefined } {
    const image = this.#image
    const { clusterBytes, l2Coverage } = image.geometry
    const table = this.#mapping.writable(first)
    if (table === undefined) return { clusters: 1, kept: undefined }
    const stop = Math.min(end, first - (first % l2Coverage) + l2Coverage)
    let clusters = 0
    for (let at = first; at < stop; at += clusterBytes) {
      const { hi, lo } = this.#mapping.entry(table, at)
      const host = offsetOf(hi, lo)
      const mine = (hi & COPIED_HI) !== 0 && (hi & COMPRESSED_HI) === 0 && host !== 0
      if (mine && image.data === image.file) {
        if (clusters === 0) return { clusters: 1, kept: host }
        break
      }
      if (clusters > 0 && this.#claims.conflict(at, at + clusterBytes) !== undefined) break
      clusters++
    }
    return { clusters, kept: undefined }
  }

  async #place(first: number, clusters: number): Promise<number> {
    const image = this.#image
    if (image.data !== image.file) return first
    raiseDebugEvent(image.file, 'cluster_alloc')
    return (await image.refcounts.allocate(clusters)) * image.geometry.clusterBytes
  }

  /** Writes `data` with what surrounds it in its clusters. */
  async #fill(
    offset: number,
    data: Uint8Array,
    first: number,
    last: number,
    host: number,
    fresh: boolean,
  ): Promise<void> {
    const image = this.#image
    image.checkOverlap(host, last - first)
    const virgin = fresh && image.data === image.file && host >= image.virginFrom
    if (image.data === image.file)
      image.virginFrom = Math.max(image.virginFrom, host + last - first)
    const end = offset + data.length
    const head = await this.#old(first, offset, virgin)
    const tail = await this.#old(end, last, virgin)
    if (head === undefined && tail === undefined) return this.put(host + (offset - first), data)
    if (last - first <= MERGE_BYTES) {
      const whole = new Uint8Array(last - first)
      if (head !== undefined) whole.set(head)
      whole.set(data, offset - first)
      if (tail !== undefined) whole.set(tail, end - first)
      return this.put(host, whole)
    }
    if (head !== undefined) await this.put(host, head)
    await this.put(host + (offset - first), data)
    if (tail !== undefined) await this.put(host + (end - first), tail)
  }

  /** Writes data at a host place, unless metadata are there. */
  async put(host: number, bytes: Uint8Array): Promise<void> {
    const pending = this.#writeData(host, bytes)
    if (pending !== undefined) await pending
  }

  /** Old guest bytes that must be copied; undefined when the fresh place reads the same by itself. */
  async #old(from: number, to: number, virgin: boolean): Promise<Uint8Array | undefined> {
    if (from === to) return undefined
    const end = Math.min(to, this.#image.header.size)
    const bytes = Math.max(0, end - from)
    if (virgin && this.#readsZero(from, bytes)) return undefined
    const old = new Uint8Array(to - from)
    if (bytes > 0) {
      raiseDebugEvent(this.#image.file, 'cow_read')
      const pending = this.#reader.read(from, old.subarray(0, bytes))
      if (pending !== undefined) await pending
    }
    return old
  }

  #readsZero(offset: number, bytes: number): boolean {
    for (let done = 0; done < bytes; done += this.#mapping.bytes) {
      if (!this.#mapping.lookup(offset + done, bytes - done)) return false
      const { kind } = this.#mapping
      if (kind === KIND.NORMAL || kind === KIND.COMPRESSED) return false
      if (kind === KIND.UNALLOCATED && !this.#reader.backingIsZero(offset + done)) return false
    }
    return true
  }

  /** Lets the entries of [first, last) point at `host` and gives up what they pointed at. */
  async #point(first: number, last: number, host: number): Promise<void> {
    for (let at = first; at < last; ) {
      const next = this.#pointNow(at, last, host + (at - first))
      if (next === at) await this.#mapping.makeWritable(at)
      at = next
    }
  }

  /** The same as far as the tables are ready; answers where it stopped. */
  #pointNow(first: number, last: number, host: number): number {
    const { clusterBytes } = this.#image.geometry
    for (let at = first; at < last; at += clusterBytes) {
      const table = this.#mapping.writable(at)
      if (table === undefined) return at
      const { hi, lo } = this.#mapping.entry(table, at)
      const place = host + (at - first)
      const newHi = (COPIED_HI | hiOf(place)) >>> 0
      this.#mapping.store(table, at, newHi, loOf(place), 0, ALL_BITS)
      if (offsetOf(hi, lo) !== place || (hi & COMPRESSED_HI) !== 0) this.#mapping.release(hi, lo)
    }
    return last
  }

  /**
   * As `#writeNew` while nothing has to be waited for but the data themselves.
   * `took` says how many bytes it took; 0: nothing was done.
   */
  #writeNewNow(offset: number, buf: Uint8Array): Pending {
    this.took = 0
    const image = this.#image
    const { clusterBytes, extended } = image.geometry
    const special = extended || image.lazy || image.data !== image.file
    if (special || this.#claims.any || image.freedClusters > FREED_LIMIT) return undefined
    if (this.#mapping.writable(offset) === undefined) return undefined
    const first = offset - (offset % clusterBytes)
    const { clusters, kept } = this.#extent(first, offset + Math.min(buf.length, MERGE_BYTES))
    if (kept !== undefined) return undefined
    const last = first + clusters * clusterBytes
    const data = buf.subarray(0, Math.min(buf.length, last - offset))
    const end = offset + data.length
    const inside = Math.min(last, image.header.size)
    const zero =
      this.#readsZero(first, offset - first) && this.#readsZero(end, Math.max(0, inside - end))
    // Old data that have to be read are left to the way that may wait.
    if (!zero) return undefined
    raiseDebugEvent(image.file, 'cluster_alloc')
    const cluster = image.refcounts.allocateNow(clusters)
    if (cluster === undefined) return undefined
    const host = cluster * clusterBytes
    this.took = data.length
    return this.#putNew(offset, data, first, last, host)
  }

  /** Writes data among zeroes into clusters just taken. */
  #putNew(offset: number, data: Uint8Array, first: number, last: number, host: number): Pending {
    const image = this.#image
    const virgin = host >= image.virginFrom
    let pending: Pending
    try {
      image.checkOverlap(host, last - first)
      image.virginFrom = Math.max(image.virginFrom, host + last - first)
      if (virgin || data.length === last - first)
        pending = this.#writeData(host + (offset - first), data)
      else {
        const whole = new Uint8Array(last - first)
        whole.set(data, offset - first)
        pending = this.#writeData(host, whole)
      }
    } catch (error) {
      image.freeLater(
        host / image.geometry.clusterBytes,
        (last - first) / image.geometry.clusterBytes,
      )
      throw error
    }
    if (pending !== undefined) return this.#putLater(pending, first, last, host)
    const done = this.#pointNow(first, last, host)
    return done === last ? undefined : this.#putLater(Promise.resolve(), first, last, host)
  }

  async #putLater(
    pending: Promise<void>,
    first: number,
    last: number,
    host: number,
  ): Promise<void> {
    const release = this.#claims.claim(first, last)
    const { clusterBytes } = this.#image.geometry
    try {
      try {
        await pending
      } catch (error) {
        this.#image.freeLater(host / clusterBytes, (last - first) / clusterBytes)
        throw error
      }
      await this.#point(first, last, host)
    } finally {
      release()
    }
  }
}
