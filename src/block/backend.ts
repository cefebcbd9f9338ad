/**
 * A backend: the root user of a tree of nodes, through which guests, exports and jobs do their I/O.
 *
 * Invariants:
 * - A request is in flight from its first step to its last; while the root is drained, new requests
 *   wait in order without counting, and count again from the instant they are woken.
 * - A fenced backend refuses every request that would change data.
 * - Reads, writes, flushes and discards are counted when they end; see `accounting.ts`.
 */
import type { Coroutine, MaybePromise, Pending } from '../coroutine/coroutine.ts'
import { run } from '../coroutine/inline.ts'
import { assert, type BlockError, ioError } from '../util/errors.ts'
import { Accounting, type BackendStatistics, type Operation, type Tally } from './accounting.ts'
import type { BlockChild, EdgeOwner } from './child.ts'
import { FLAG, PERM, type Permissions } from './driver.ts'
import type { BlockGraph } from './graph.ts'
import type { BlockNode } from './node.ts'
import { updatePermissions } from './permissions.ts'
import { canPrefetch, nodePrefetch } from './prefetch.ts'
import { type ChainStatus, chainStatus } from './status.ts'

/** A prefetch without a backing image reads in pieces of this, so that filters below see the range. */
const READ_AHEAD_BYTES = 1024 * 1024

/** Longest read or write: the largest multiple of a sector in 31 bits. Other requests move no data. */
const REQUEST_MAX_BYTES = 2 ** 31 - 512

/** What a backend is for. */
export interface BackendOptions extends Permissions {
  /** Name for commands and messages; empty for none. */
  readonly name?: string
  /** How permission messages name it. */
  readonly description?: string
  /** A job's backend: its requests run also while drained, since the drain waits for the job. */
  readonly disableQueuing?: boolean
  /** It reads for a job over the job's own filter: it does not count as a user of the node. */
  readonly readsForJob?: boolean
  /** What others may not do is asked for only once it is in; which refusal is told depends on it. */
  readonly sharesAllFirst?: boolean
  /** What else has to hold, asked for between the two; what it throws ends the backend again. */
  readonly whenIn?: () => void
  /** Every write carries FUA. */
  readonly writethrough?: boolean
}

/** What the user of a backend does when it is drained. */
export interface BackendHooks {
  /** The root became quiesced. */
  readonly drainedBegin?: () => void
  /** Requests of the user may still be on their way. */
  readonly drainedPoll?: () => boolean
  /** The root is open again. */
  readonly drainedEnd?: () => void
}

/** Root user of a node. Main thread only. */
export class BlockBackend implements EdgeOwner, AsyncDisposable {
  readonly ownerKind = 'backend'
  /** Name for commands; may be empty. */
  readonly name: string
  readonly ownerDescription: string
  readonly readsForJob: boolean
  /** Its counters, for those who answer or refuse requests without it; see `statistics`. */
  readonly accounting: Accounting
  readonly #graph: BlockGraph
  readonly #options: BackendOptions
  #root: BlockChild | undefined
  #inFlight = 0
  #quiesced = 0
  #hooks: BackendHooks = {}
  #fence: BlockError | undefined
  #queue: (() => void)[] = []

  private constructor(graph: BlockGraph, options: BackendOptions) {
    this.#graph = graph
    this.#options = options
    this.accounting = new Accounting(graph.ctx.clock)
    this.name = options.name ?? ''
    this.readsForJob = options.readsForJob === true
    this.ownerDescription =
      options.description ??
      (this.name === '' ? 'an unnamed block device' : `block device '${this.name}'`)
  }

  /** Makes a backend over a node. Errors: EPERM when its permissions meet a conflict. */
  static async create(
    graph: BlockGraph,
    node: BlockNode,
    options: BackendOptions,
  ): Promise<BlockBackend> {
    const backend = new BlockBackend(graph, options)
    graph.backends.add(backend)
    node.refs++
    const { perm, shared } = options
    const first = options.sharesAllFirst === true ? PERM.ALL : shared
    try {
      backend.#root = await graph.attach(backend, node, 'root', 'root', { perm, shared: first })
    } catch (error) {
      graph.backends.delete(backend)
      throw error
    }
    if (first === shared) return backend
    try {
      options.whenIn?.()
      backend.#root.shared = shared
      updatePermissions([node])
    } catch (error) {
      await backend.close()
      throw error
    }
    return backend
  }

  /** The edge to the root node; ENOMEDIUM after `close`. */
  get root(): BlockChild {
    if (this.#root === undefined) throw ioError('ENOMEDIUM')
    return this.#root
  }

  /** It has a root node: it is made and not closed. */
  get attached(): boolean {
    return this.#root !== undefined
  }

  /** The root node as it is now. */
  get node(): BlockNode {
    return this.root.node
  }

  /** Writes are refused by the node. */
  get readOnly(): boolean {
    return this.node.readOnly
  }

  /** Requests on their way. */
  get inFlight(): number {
    return this.#inFlight
  }

  /** Requests that wait for the end of a drained section. */
  get queued(): number {
    return this.#queue.length
  }

  /** The root is drained: new requests wait. */
  get quiesced(): boolean {
    return this.#quiesced > 0
  }

  /** Requests of other multiples cost more: they are made whole by reading. */
  get requestAlignment(): number {
    return Math.max(1, this.node.driver?.limits.requestAlignment ?? 1)
  }

  /** Length in bytes. */
  length(): number {
    return this.node.length()
  }

  /** What to do when the root is drained. */
  setHooks(hooks: BackendHooks): void {
    this.#hooks = hooks
  }

  /** What it did so far. */
  statistics(): BackendStatistics {
    return this.accounting.report()
  }

  /**
   * Counts how long the requests of a kind take from now on: `statistics` shows them in bins between
   * these boundaries, ascending nanoseconds; undefined stops it. Errors: EINVAL.
   */
  setLatencyHistogram(kind: Operation, boundaries: readonly number[] | undefined): void {
    this.accounting.setHistogram(kind, boundaries)
  }

  /** From now on every write-class request fails with this error. */
  fence(error: BlockError): void {
    this.#fence = error
  }

  /** Lets writes pass again. */
  unfence(): void {
    this.#fence = undefined
  }

  /** Reads `buf.length` bytes. Errors: EIO out of range, ENOMEDIUM, the node's. */
  pread(offset: number, buf: Uint8Array): Pending {
    const tally = this.accounting.read
    if (this.#mustQueue()) return this.#later(tally, () => this.pread(offset, buf))
    this.#checkRange(offset, buf.length, 'read', 'read')
    const root = this.root
    const from = this.accounting.begin(tally)
    this.#inFlight++
    let pending: Pending
    try {
      pending = root.pread(offset, buf)
    } catch (error) {
      this.accounting.failed(tally, from)
      this.#done()
      throw error
    }
    return this.#finish(pending, tally, buf.length, from)
  }

  /** Writes `buf`. Errors: as `pread`, EPERM on a read-only node, the fence's. */
  pwrite(offset: number, buf: Uint8Array, flags = 0): Pending {
    const tally = this.accounting.write
    if (this.#mustQueue()) return this.#later(tally, () => this.pwrite(offset, buf, flags))
    this.#checkWrite(offset, buf.length, 'write', 'write')
    const root = this.root
    const from = this.accounting.begin(tally)
    this.#inFlight++
    let pending: Pending
    try {
      pending = root.pwrite(offset, buf, this.#writeFlags(flags))
    } catch (error) {
      this.accounting.failed(tally, from)
      this.#done()
      throw error
    }
    return this.#finish(pending, tally, buf.length, from)
  }

  /** Makes a range read as zeroes. */
  pwriteZeroes(offset: number, bytes: number, flags = 0): Pending {
    const tally = this.accounting.write
    if (this.#mustQueue()) return this.#later(tally, () => this.pwriteZeroes(offset, bytes, flags))
    this.#checkWrite(offset, bytes, 'write-zeroes', 'write')
    return this.#run(tally, bytes, (root) =>
      root.pwriteZeroes(offset, bytes, this.#writeFlags(flags)),
    )
  }

  /** Gives a range up. */
  pdiscard(offset: number, bytes: number): Pending {
    const tally = this.accounting.unmap
    if (this.#mustQueue()) return this.#later(tally, () => this.pdiscard(offset, bytes))
    this.#checkWrite(offset, bytes, 'discard', 'unmap')
    return this.#run(tally, bytes, (root) => root.pdiscard(offset, bytes))
  }

  /** Makes every completed write stable. */
  flush(): Pending {
    const tally = this.accounting.flush
    if (this.#mustQueue()) return this.#later(tally, () => this.flush())
    return this.#run(tally, 0, (root) => root.flush())
  }

  /** Copies what the range shows of a backing image into the root node; without one, reads it. */
  prefetch(offset: number, bytes: number): Pending {
    const tally = this.accounting.read
    if (this.#mustQueue()) return this.#later(tally, () => this.prefetch(offset, bytes))
    this.#checkRange(offset, bytes, 'read', 'read')
    if (this.#fence !== undefined || !canPrefetch(this.node)) return this.#readAhead(offset, bytes)
    return this.#run(tally, bytes, (root) => nodePrefetch(root.node, offset, bytes))
  }

  /** Who decides the content of the start of the range, over the whole chain. */
  blockStatus(offset: number, bytes: number): MaybePromise<ChainStatus> {
    if (this.#mustQueue()) return this.#statusLater(offset, bytes)
    this.#checkRange(offset, bytes, 'block-status')
    this.#inFlight++
    let status: MaybePromise<ChainStatus>
    try {
      status = chainStatus(this.node, undefined, offset, bytes)
    } catch (error) {
      this.#done()
      throw error
    }
    if (status instanceof Promise) return status.finally(() => this.#done())
    this.#done()
    return status
  }

  /** Coroutine form of `pread`. */
  coPread(offset: number, buf: Uint8Array): Coroutine<void> {
    return run(this.pread(offset, buf))
  }

  /** Coroutine form of `pwrite`. */
  coPwrite(offset: number, buf: Uint8Array, flags = 0): Coroutine<void> {
    return run(this.pwrite(offset, buf, flags))
  }

  /** Coroutine form of `pwriteZeroes`. */
  coPwriteZeroes(offset: number, bytes: number, flags = 0): Coroutine<void> {
    return run(this.pwriteZeroes(offset, bytes, flags))
  }

  /** Coroutine form of `pdiscard`. */
  coPdiscard(offset: number, bytes: number): Coroutine<void> {
    return run(this.pdiscard(offset, bytes))
  }

  /** Coroutine form of `flush`. */
  coFlush(): Coroutine<void> {
    return run(this.flush())
  }

  /** Waits for its requests, then lets the node go. Further requests fail with ENOMEDIUM. */
  async close(): Promise<void> {
    const root = this.#root
    if (root === undefined) return
    const node = root.node
    await this.#graph.drainedBegin(node)
    // Somebody else may have closed it while the requests ended.
    if (this.#root === root) {
      this.#root = undefined
      this.#graph.detach(root)
    }
    this.#graph.drainedEnd(node)
    this.#graph.backends.delete(this)
    const queue = this.#queue
    this.#queue = []
    for (const wake of queue) {
      this.#inFlight++
      wake()
    }
    await this.#graph.settled()
  }

  /** The same as `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  drainedBegin(): void {
    if (++this.#quiesced === 1) this.#hooks.drainedBegin?.()
  }

  drainedPoll(): boolean {
    return this.#inFlight > 0 || this.#hooks.drainedPoll?.() === true
  }

  drainedEnd(): void {
    assert(this.#quiesced > 0, 'a backend ends only drained sections that it began')
    if (--this.#quiesced > 0) return
    this.#hooks.drainedEnd?.()
    const queue = this.#queue
    this.#queue = []
    for (const wake of queue) {
      this.#inFlight++
      wake()
    }
  }

  async #readAhead(offset: number, bytes: number): Promise<void> {
    const scratch = new Uint8Array(Math.min(bytes, READ_AHEAD_BYTES))
    for (let at = 0; at < bytes; at += scratch.length) {
      const pending = this.pread(offset + at, scratch.subarray(0, bytes - at))
      if (pending !== undefined) await pending
    }
  }

  #mustQueue(): boolean {
    return this.#quiesced > 0 && this.#options.disableQueuing !== true
  }

  /** Waits for the end of the drained section; whoever wakes counts the request as in flight. */
  #opened(): Promise<void> {
    return new Promise((resolve) => this.#queue.push(resolve))
  }

  async #later(tally: Tally, again: () => Pending): Promise<void> {
    const from = this.accounting.start()
    await this.#opened()
    let pending: Pending
    try {
      // The count taken at the wake-up passes to the request itself, or back to the queue.
      pending = this.accounting.resume(tally, from, again)
    } finally {
      this.#done()
    }
    if (pending !== undefined) await pending
  }

  async #statusLater(offset: number, bytes: number): Promise<ChainStatus> {
    await this.#opened()
    let status: MaybePromise<ChainStatus>
    try {
      status = this.blockStatus(offset, bytes)
    } finally {
      this.#done()
    }
    return await status
  }

  #writeFlags(flags: number): number {
    return this.#options.writethrough === true ? flags | FLAG.FUA : flags
  }

  #checkRange(offset: number, bytes: number, op: string, kind?: Operation): void {
    const length = this.node.length()
    const tooLong = bytes > REQUEST_MAX_BYTES && (op === 'read' || op === 'write')
    if (!tooLong && offset >= 0 && offset + bytes <= length) return
    if (kind !== undefined) this.accounting.refused(kind)
    throw ioError('EIO', { node: this.node.name, offset, bytes, op })
  }

  #checkWrite(offset: number, bytes: number, op: string, kind: Operation): void {
    if (this.#fence !== undefined) {
      const tally = this.accounting[kind]
      this.accounting.failed(tally, this.accounting.begin(tally))
      throw this.#fence
    }
    this.#checkRange(offset, bytes, op, kind)
  }

  #run(tally: Tally, bytes: number, start: (root: BlockChild) => Pending): Pending {
    const root = this.root
    const from = this.accounting.begin(tally)
    this.#inFlight++
    let pending: Pending
    try {
      pending = start(root)
    } catch (error) {
      this.accounting.failed(tally, from)
      this.#done()
      throw error
    }
    return this.#finish(pending, tally, bytes, from)
  }

  #finish(pending: Pending, tally: Tally, bytes: number, from: number): Pending {
    if (pending === undefined) {
      this.accounting.done(tally, bytes, from)
      this.#done()
      return undefined
    }
    return this.#wait(pending, tally, bytes, this.accounting.waits(from))
  }

  async #wait(pending: Promise<void>, tally: Tally, bytes: number, from: number): Promise<void> {
    try {
      await pending
    } catch (error) {
      this.accounting.waitedInVain(tally, from)
      this.#done()
      throw error
    }
    this.accounting.waited(tally, bytes, from)
    this.#done()
  }

  #done(): void {
    if (--this.#inFlight === 0 && this.#quiesced > 0) this.#graph.drains.kick()
  }
}
