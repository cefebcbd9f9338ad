/**
 * Memory disks: thin, shared between threads, with an optional backing image.
 *
 * Invariants:
 * - A read or write whose backing image is not needed, or answers inline, never leaves the stack.
 * - A cluster filled from below is merged and published in one step, so that two requests that
 *   fill it at once both keep their bytes.
 * - Emptying costs the same whatever was written.
 */
import type { BlockChild } from '../block/child.ts'
import {
  type BlockDriver,
  type BlockdevOptions,
  type BlockdevRef,
  type BlockLimits,
  type BlockStatus,
  type DriverDefinition,
  NO_LIMITS,
  type PreparedReopen,
  type ReopenTarget,
  STATUS,
} from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { CLUSTER } from '../sync/allocation-map.ts'
import { BlockError, ioError } from '../util/errors.ts'
import { type MemoryDescription, MemoryStore } from './memory-store.ts'

/** Default cluster size in bytes: writes of a page never need to be filled from below. */
const CLUSTER_BYTES = 4096
const SIZE_MAX = 2 ** 44

/** Options of a memory disk, besides the common ones. */
export interface MemoryOptions extends BlockdevOptions {
  readonly driver: 'memory'
  /** Length in bytes; a multiple of 512, up to 16 TiB. */
  readonly size: number
  /** Unit of allocation in bytes; a power of two from 512 to 2 MiB; default 4096. */
  readonly 'cluster-size'?: number
  /** What shows where this disk holds nothing; absent or null: zeroes. */
  readonly backing?: BlockdevRef | null
}

function checked(options: BlockdevOptions): { size: number; clusterSize: number } {
  const size = options.size
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0)
    throw new BlockError('EINVAL', "Parameter 'size' expects a size in bytes")
  if (size % 512 !== 0)
    throw new BlockError('EINVAL', `The size ${size} is not a multiple of 512 bytes`)
  if (size > SIZE_MAX) throw new BlockError('EINVAL', `The size ${size} is above 16 TiB`)
  const clusterSize = options['cluster-size'] ?? CLUSTER_BYTES
  if (
    typeof clusterSize !== 'number' ||
    Math.log2(clusterSize) % 1 !== 0 ||
    clusterSize < 512 ||
    clusterSize > 2 * 1024 * 1024
  )
    throw new BlockError('EINVAL', 'Cluster size must be a power of two between 512 and 2048k')
  return { size, clusterSize }
}

class MemoryDisk implements BlockDriver {
  readonly limits: BlockLimits
  readonly writeFlags = 0
  readonly zeroesFlags = 0
  readonly #store: MemoryStore
  readonly #node: BlockNode

  constructor(node: BlockNode, store: MemoryStore) {
    this.#node = node
    this.#store = store
    const unit = store.clusterSize
    this.limits = { ...NO_LIMITS, clusterSize: unit, zeroesAlignment: unit, discardAlignment: unit }
  }

  get #backing(): BlockChild | undefined {
    return this.#node.children.get('backing')
  }

  length(): number {
    return this.#store.size
  }

  pread(offset: number, buf: Uint8Array): Pending {
    const store = this.#store
    let waits: Promise<void>[] | undefined
    for (let at = 0; at < buf.length; ) {
      const run = store.run(offset + at, buf.length - at)
      const part = run.bytes === buf.length ? buf : buf.subarray(at, at + run.bytes)
      if (run.state === CLUSTER.DATA) store.copyOut(offset + at, part)
      else {
        const pending = run.state === CLUSTER.EMPTY ? this.#below(offset + at, part) : zero(part)
        if (pending !== undefined) waits = more(waits, pending)
      }
      at += run.bytes
    }
    return waits === undefined ? undefined : allOf(waits)
  }

  #below(offset: number, buf: Uint8Array): Pending {
    const backing = this.#backing
    return backing === undefined ? zero(buf) : backing.pread(offset, buf)
  }

  pwrite(offset: number, buf: Uint8Array): Pending {
    const store = this.#store
    const end = offset + buf.length
    if (end > store.size) throw ioError('EIO', { node: this.#node.name, offset, op: 'write' })
    const unit = store.clusterSize
    const firstEnd = Math.min(end, (Math.floor(offset / unit) + 1) * unit)
    const lastStart = end === store.size ? end : Math.floor(end / unit) * unit
    // All inside one cluster, or its head; then the tail; the middle is whole clusters.
    const head = offset % unit !== 0 || (firstEnd === end && lastStart < end)
    const bodyStart = head ? firstEnd : offset
    const bodyEnd = Math.max(bodyStart, lastStart)
    let waits: Promise<void>[] | undefined
    const wait = (pending: Pending): void => {
      if (pending !== undefined) waits = more(waits, pending)
    }
    if (head) wait(this.#writePart(offset, buf.subarray(0, bodyStart - offset)))
    if (bodyEnd > bodyStart)
      store.writeClusters(bodyStart, buf.subarray(bodyStart - offset, bodyEnd - offset))
    if (end > bodyEnd) wait(this.#writePart(bodyEnd, buf.subarray(bodyEnd - offset)))
    return waits === undefined ? undefined : allOf(waits)
  }

  /** Writes part of one cluster, filling the rest from below when the cluster is not data yet. */
  #writePart(offset: number, part: Uint8Array): Pending {
    const store = this.#store
    const unit = store.clusterSize
    const cluster = Math.floor(offset / unit)
    const state = store.map.state(cluster)
    if (state === CLUSTER.DATA) {
      store.copyIn(offset, part)
      return undefined
    }
    const start = cluster * unit
    const whole = new Uint8Array(Math.min(unit, store.size - start))
    const pending = state === CLUSTER.ZERO ? undefined : this.#below(start, whole)
    if (pending !== undefined) return pending.then(() => this.#merge(start, whole, offset, part))
    this.#merge(start, whole, offset, part)
    return undefined
  }

  #merge(start: number, below: Uint8Array, offset: number, part: Uint8Array): void {
    const store = this.#store
    const cluster = start / store.clusterSize
    const state = store.map.state(cluster)
    if (state === CLUSTER.ZERO) store.zeroIn(start, below.length)
    else if (state === CLUSTER.EMPTY) store.copyIn(start, below)
    store.copyIn(offset, part)
    store.map.set(cluster, CLUSTER.DATA)
  }

  pwriteZeroes(offset: number, bytes: number): Pending {
    const unit = this.#store.clusterSize
    this.#store.map.setRun(offset / unit, Math.ceil(bytes / unit), CLUSTER.ZERO)
    return undefined
  }

  pdiscard(offset: number, bytes: number): Pending {
    const unit = this.#store.clusterSize
    const state = this.#backing === undefined ? CLUSTER.EMPTY : CLUSTER.ZERO
    this.#store.map.setRun(offset / unit, Math.ceil(bytes / unit), state)
    return undefined
  }

  blockStatus(offset: number, bytes: number): BlockStatus {
    const run = this.#store.run(offset, bytes)
    if (run.state === CLUSTER.DATA)
      return { flags: STATUS.DATA | STATUS.ALLOCATED, bytes: run.bytes }
    if (run.state === CLUSTER.ZERO)
      return { flags: STATUS.ZERO | STATUS.ALLOCATED, bytes: run.bytes }
    return { flags: 0, bytes: run.bytes }
  }

  makeEmpty(): void {
    this.#store.map.emptyAll()
  }

  reopenPrepare(target: ReopenTarget): PreparedReopen {
    const { size, clusterSize } = checked({ ...target.options })
    if (size !== this.#store.size)
      throw new BlockError('EINVAL', "Cannot change the option 'size'", { node: this.#node.name })
    if (clusterSize !== this.#store.clusterSize)
      throw new BlockError('EINVAL', "Cannot change the option 'cluster-size'", {
        node: this.#node.name,
      })
    return { commit: () => undefined, abort: () => undefined }
  }

  describe(): MemoryDescription {
    return this.#store.describe()
  }

  filename(): string {
    return `memory:${this.#store.size}`
  }

  close(): void {
    // The buffers go when the last thread that attached them lets them go.
  }
}

function zero(buf: Uint8Array): undefined {
  buf.fill(0)
  return undefined
}

/** The list is made only when there is something to wait for. */
function more(waits: Promise<void>[] | undefined, pending: Promise<void>): Promise<void>[] {
  if (waits === undefined) return [pending]
  waits.push(pending)
  return waits
}

async function allOf(waits: readonly Promise<void>[]): Promise<void> {
  await Promise.all(waits)
}

/** Disks in memory. */
export const memoryDriver: DriverDefinition = {
  name: 'memory',
  kind: 'format',
  supportsBacking: true,
  async open(node, options, opener) {
    const { size, clusterSize } = checked(options)
    const { backing } = options
    if (backing !== undefined && backing !== null)
      await opener.open('backing', backing as BlockdevRef, 'backing')
    return new MemoryDisk(node, MemoryStore.create(size, clusterSize))
  },
}
