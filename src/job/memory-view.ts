/**
 * A memory disk as a worker sees it: the shared bytes and the shared allocation map.
 *
 * Invariants:
 * - A cluster's bytes are in place before the map says so.
 * - An empty cluster that is written in part becomes zeroes around it: only disks without a backing
 *   image are written in parts, as whoever attaches them sees to.
 */
import type { Pending } from '../coroutine/coroutine.ts'
import { type AllocationMap, CLUSTER, type ClusterState } from '../sync/allocation-map.ts'
import type { DiskView, ViewStatus } from './view.ts'

/** What a view needs of the store behind a memory disk. */
export interface ClusterStore {
  readonly size: number
  readonly clusterSize: number
  readonly map: AllocationMap
  run(offset: number, bytes: number): { readonly state: ClusterState; readonly bytes: number }
  slice(offset: number, bytes: number): Uint8Array | undefined
  read(offset: number, buf: Uint8Array): void
  copyIn(offset: number, buf: Uint8Array): void
  zeroIn(offset: number, bytes: number): void
  writeClusters(offset: number, buf: Uint8Array): void
}

const KIND: Readonly<Record<ClusterState, ViewStatus['kind']>> = {
  [CLUSTER.EMPTY]: 'unallocated',
  [CLUSTER.DATA]: 'data',
  [CLUSTER.ZERO]: 'zero',
}

class MemoryView implements DiskView {
  readonly attached = true
  readonly blind = false
  readonly length: number
  readonly #store: ClusterStore

  constructor(store: ClusterStore) {
    this.#store = store
    this.length = store.size
  }

  status(offset: number, bytes: number): ViewStatus {
    const run = this.#store.run(offset, bytes)
    return { kind: KIND[run.state], bytes: run.bytes }
  }

  inPlace(offset: number, bytes: number): Uint8Array | undefined {
    return this.#store.slice(offset, bytes)
  }

  pread(offset: number, buf: Uint8Array): Pending {
    this.#store.read(offset, buf)
    return undefined
  }

  pwrite(offset: number, buf: Uint8Array): Pending {
    this.#split(
      offset,
      buf.length,
      (at, bytes) => this.#store.writeClusters(at, buf.subarray(at - offset, at - offset + bytes)),
      (at, bytes) => this.#part(at, bytes, buf.subarray(at - offset, at - offset + bytes)),
    )
    return undefined
  }

  pwriteZeroes(offset: number, bytes: number): Pending {
    const { map, clusterSize } = this.#store
    this.#split(
      offset,
      bytes,
      (at, count) => map.setRun(at / clusterSize, Math.ceil(count / clusterSize), CLUSTER.ZERO),
      (at, count) => this.#part(at, count, undefined),
    )
    return undefined
  }

  close(): void {
    // The memory goes when the last thread lets it go.
  }

  /** Whole clusters go to `whole` in one run; a head or a tail within a cluster goes to `part`. */
  #split(
    offset: number,
    bytes: number,
    whole: (at: number, bytes: number) => void,
    part: (at: number, bytes: number) => void,
  ): void {
    const { clusterSize, size } = this.#store
    const end = offset + bytes
    const start = Math.min(end, Math.ceil(offset / clusterSize) * clusterSize)
    const cut = end === size ? end : Math.max(start, Math.floor(end / clusterSize) * clusterSize)
    if (start > offset) part(offset, start - offset)
    if (cut > start) whole(start, cut - start)
    if (end > cut) part(cut, end - cut)
  }

  #part(offset: number, bytes: number, buf: Uint8Array | undefined): void {
    const store = this.#store
    const cluster = Math.floor(offset / store.clusterSize)
    const start = cluster * store.clusterSize
    const state = store.map.state(cluster)
    if (state !== CLUSTER.DATA) {
      store.zeroIn(start, Math.min(store.clusterSize, store.size - start))
    }
    if (buf === undefined) store.zeroIn(offset, bytes)
    else store.copyIn(offset, buf)
    store.map.set(cluster, CLUSTER.DATA)
  }
}

/** A view of an attached store. */
export function memoryView(store: ClusterStore): DiskView {
  return new MemoryView(store)
}
