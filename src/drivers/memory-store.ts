/**
 * The bytes of a memory disk in SharedArrayBuffers, usable from every thread.
 *
 * Invariants:
 * - Only clusters that the allocation map calls DATA have meaningful bytes.
 * - The buffers are made once; the host commits their pages when they are first touched, so an
 *   unused part of a disk costs address space only.
 *
 * Shared words: the allocation map. The bytes belong to whoever holds the request for them.
 */

import type { DiskDescription } from '../block/driver.ts'
import { AllocationMap, CLUSTER, type ClusterState } from '../sync/allocation-map.ts'
import { copyBytes } from '../util/copy.ts'
import { assert } from '../util/errors.ts'

/** Bytes a buffer holds: small enough for every host's limit, large enough to be few. */
const CHUNK_BYTES = 64 * 1024 * 1024
const ZEROES = new Uint8Array(256 * 1024)

/** What another thread needs to attach the same disk. */
export interface MemoryDescription extends DiskDescription {
  readonly kind: 'memory'
  /** Length in bytes. */
  readonly size: number
  /** Cluster size in bytes. */
  readonly clusterSize: number
  /** Words of the allocation map. */
  readonly map: Int32Array
  /** The bytes, `CHUNK_BYTES` each, the last one shorter. */
  readonly chunks: readonly SharedArrayBuffer[]
}

/** One memory disk as one thread sees it. */
export class MemoryStore {
  /** Length in bytes. */
  readonly size: number
  /** Cluster size in bytes; a power of two. */
  readonly clusterSize: number
  /** What is allocated. */
  readonly map: AllocationMap
  readonly #buffers: readonly SharedArrayBuffer[]
  readonly #chunks: readonly Uint8Array[]

  private constructor(
    size: number,
    clusterSize: number,
    map: AllocationMap,
    buffers: readonly SharedArrayBuffer[],
  ) {
    this.size = size
    this.clusterSize = clusterSize
    this.map = map
    this.#buffers = buffers
    this.#chunks = buffers.map((buffer) => new Uint8Array(buffer))
  }

  /** An empty disk of `size` bytes. */
  static create(size: number, clusterSize: number): MemoryStore {
    const buffers: SharedArrayBuffer[] = []
    const rounded = Math.ceil(size / clusterSize) * clusterSize
    for (let at = 0; at < rounded; at += CHUNK_BYTES)
      buffers.push(new SharedArrayBuffer(Math.min(CHUNK_BYTES, rounded - at)))
    const map = AllocationMap.create(Math.max(1, rounded / clusterSize))
    return new MemoryStore(size, clusterSize, map, buffers)
  }

  /** The disk that `describe` described, in another thread. */
  static attach(d: MemoryDescription): MemoryStore {
    return new MemoryStore(d.size, d.clusterSize, new AllocationMap(d.map), d.chunks)
  }

  /** What another thread needs. */
  describe(): MemoryDescription {
    return {
      kind: 'memory',
      size: this.size,
      clusterSize: this.clusterSize,
      map: this.map.words,
      chunks: this.#buffers,
    }
  }

  /** State of the cluster at `offset`, and how many bytes from there share it, at most `bytes`. */
  run(offset: number, bytes: number): { state: ClusterState; bytes: number } {
    const first = Math.floor(offset / this.clusterSize)
    const last = Math.floor((offset + bytes - 1) / this.clusterSize)
    const state = this.map.state(first)
    const end = (first + this.map.run(first, last - first + 1)) * this.clusterSize
    return { state, bytes: Math.min(bytes, end - offset) }
  }

  /**
   * The stored bytes themselves, whatever the map says of them; undefined when the range crosses
   * buffers. Whoever holds the request for the range may look at them and write them.
   */
  slice(offset: number, bytes: number): Uint8Array | undefined {
    const inside = offset % CHUNK_BYTES
    if (inside + bytes > CHUNK_BYTES) return undefined
    return this.#chunkAt(offset).subarray(inside, inside + bytes)
  }

  /** Copies stored bytes out, whatever the map says of them. */
  copyOut(offset: number, buf: Uint8Array): void {
    for (let at = 0; at < buf.length; ) {
      const chunk = this.#chunkAt(offset + at)
      const inside = (offset + at) % CHUNK_BYTES
      const count = Math.min(buf.length - at, chunk.length - inside)
      copyBytes(buf, at, chunk.subarray(inside, inside + count))
      at += count
    }
  }

  /** Copies bytes in; the map is the caller's to update. */
  copyIn(offset: number, buf: Uint8Array): void {
    for (let at = 0; at < buf.length; ) {
      const chunk = this.#chunkAt(offset + at)
      const inside = (offset + at) % CHUNK_BYTES
      const count = Math.min(buf.length - at, chunk.length - inside)
      copyBytes(chunk, inside, count === buf.length ? buf : buf.subarray(at, at + count))
      at += count
    }
  }

  /** Zeroes stored bytes (`set` from a zero buffer: `fill` is slow over shared memory). */
  zeroIn(offset: number, bytes: number): void {
    for (let at = 0; at < bytes; at += ZEROES.length)
      this.copyIn(offset + at, ZEROES.subarray(0, Math.min(ZEROES.length, bytes - at)))
  }

  /** Reads this layer alone: empty and zero clusters read as zeroes. */
  read(offset: number, buf: Uint8Array): void {
    for (let at = 0; at < buf.length; ) {
      const run = this.run(offset + at, buf.length - at)
      const part = buf.subarray(at, at + run.bytes)
      if (run.state === CLUSTER.DATA) this.copyOut(offset + at, part)
      else part.fill(0)
      at += run.bytes
    }
  }

  /** Writes whole clusters (a last one may be cut off by the end of the disk) and publishes them. */
  writeClusters(offset: number, buf: Uint8Array): void {
    assert(offset % this.clusterSize === 0, 'whole clusters start at a cluster')
    this.copyIn(offset, buf)
    this.map.setRun(
      offset / this.clusterSize,
      Math.ceil(buf.length / this.clusterSize),
      CLUSTER.DATA,
    )
  }

  #chunkAt(offset: number): Uint8Array {
    const chunk = this.#chunks[Math.floor(offset / CHUNK_BYTES)]
    assert(chunk !== undefined, `offset ${offset} lies inside the disk`)
    return chunk
  }
}
