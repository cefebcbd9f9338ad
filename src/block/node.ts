/**
 * A node of the block graph: one open image, protocol or filter, with what the block layer keeps of it.
 *
 * Invariants:
 * - `driver` is there from the end of opening to the beginning of closing; without it every request
 *   fails with ENOMEDIUM.
 * - The gate's quiesce count is the number of drained sections plus the number of quiesced child edges.
 * - Every parent edge holds one reference, the monitor one more.
 *
 * Shared words: the gate (see `sync/gate.ts`); requests of any thread count in it, only the main
 * thread quiesces.
 */
import { Gate } from '../sync/gate.ts'
import { assert, ioError } from '../util/errors.ts'
import { OpBlockers } from './blockers.ts'
import type { BlockChild, EdgeOwner } from './child.ts'
import type { BlockDriver, BlockdevOptions, DriverDefinition } from './driver.ts'
import type { BlockGraph } from './graph.ts'
import { NodeBitmaps } from './named-bitmap.ts'
import { TrackedRequests } from './tracked.ts'

/** Called after a write-class request ended, successfully or not. */
export type WriteListener = (offset: number, bytes: number) => void

/** One node. */
export class BlockNode implements EdgeOwner {
  readonly ownerKind = 'node'
  /** Unique in the graph. */
  readonly name: string
  /** The graph it belongs to. */
  readonly graph: BlockGraph
  /** What kind of driver it has. */
  readonly definition: DriverDefinition
  /** Options in force: the given ones over the inherited ones. */
  options: BlockdevOptions
  /** Options as the user wrote them; what they leave out is inherited anew at every reopen. */
  given: BlockdevOptions
  /** Fixed at open and reopen. */
  readOnly: boolean
  /** Drop flushes (`cache.no-flush`). */
  noFlush: boolean
  /** Let discards through (`discard=unmap`). */
  unmap: boolean
  /** What to do with writes of zero data. */
  detectZeroes: 'off' | 'on' | 'unmap'
  /** The open driver; undefined before and after. */
  driver: BlockDriver | undefined
  /** A user asked for this node by `blockdev-add`. */
  monitorOwned = false
  /** Inserted by a job or by replication, without a user's name. */
  implicit = false
  /** Being put over its child: until the users of the child come, it takes nothing and shares all. */
  appending = false
  /** The node whose options this one was written in; it follows that node's reopens. */
  inheritsFrom: BlockNode | undefined
  /** References: edges, the monitor, whoever holds the node across a wait. */
  refs = 0
  /** Edges to what this node uses, by name. */
  readonly children: Map<string, BlockChild> = new Map()
  /** Edges of whoever uses this node; newest last. */
  readonly parents: Set<BlockChild> = new Set()
  /** Quiesce count and in-flight count, shared between threads. */
  readonly gate: Gate = Gate.create()
  /** Reasons against operations. */
  readonly blockers: OpBlockers = new OpBlockers()
  /** Requests that wait for something. */
  readonly tracked: TrackedRequests
  /** Told of every write-class request after it ended (dirty bitmaps). */
  readonly writeListeners: Set<WriteListener> = new Set()
  /** Named dirty bitmaps. */
  readonly bitmaps: NodeBitmaps = new NodeBitmaps(this)
  /** Where the write that reached furthest ended, also one that failed. */
  writtenEnd = 0
  /** Counts ended writes; flush compares. */
  writeGeneration = 0
  /** The generation that the last successful flush covered. */
  flushedGeneration = 0
  /** The flush that runs now. */
  activeFlush: Promise<void> | undefined

  constructor(
    graph: BlockGraph,
    definition: DriverDefinition,
    name: string,
    options: BlockdevOptions,
    readOnly: boolean,
  ) {
    this.graph = graph
    this.tracked = new TrackedRequests(graph.ctx)
    this.definition = definition
    this.name = name
    this.options = options
    this.given = options
    this.readOnly = readOnly
    this.noFlush = options.cache?.['no-flush'] === true
    this.unmap = options.discard === 'unmap'
    this.detectZeroes = options['detect-zeroes'] ?? 'off'
  }

  /** How permission messages name it. */
  get ownerDescription(): string {
    return `node '${this.name}'`
  }

  /** The driver, or ENOMEDIUM when the node is closed. */
  needDriver(): BlockDriver {
    if (this.driver === undefined) throw ioError('ENOMEDIUM', { node: this.name })
    return this.driver
  }

  /** Length in bytes. */
  length(): number {
    return this.needDriver().length()
  }

  /** The edge of that name. */
  child(name: string): BlockChild | undefined {
    return this.children.get(name)
  }

  /** The node whose content shows where this one holds nothing: a filter's child or the backing image. */
  get chainNext(): BlockNode | undefined {
    for (const edge of this.children.values()) {
      if (edge.role === 'backing') return edge.node
      if (this.definition.kind === 'filter' && edge.role === 'filtered') return edge.node
    }
    return undefined
  }

  /** Some backend uses this node; one that reads for a job over its filter does not count. */
  get hasBackend(): boolean {
    for (const { role, owner } of this.parents)
      if (role === 'root' && owner.readsForJob !== true) return true
    return false
  }

  /** Every user is a backend (a node nobody uses qualifies). */
  get isRootNode(): boolean {
    for (const edge of this.parents) if (edge.role !== 'root') return false
    return true
  }

  /** Raises the quiesce count; on the first, stops everyone above. */
  quiesce(): void {
    if (this.gate.quiesce() !== 1) return
    this.driver?.drainBegin?.()
    for (const edge of this.parents) this.quiesceParent(edge)
  }

  /** Lowers the quiesce count; on the last, lets everyone above go on. */
  unquiesce(): void {
    assert(this.gate.quiesceCount > 0, `unquiesce of ${this.name} without quiesce`)
    if (this.gate.unquiesce() !== 0) return
    this.driver?.drainEnd?.()
    for (const edge of [...this.parents]) this.unquiesceParent(edge)
  }

  /** Stops one parent through its edge, unless that edge holds it already. */
  quiesceParent(edge: BlockChild): void {
    if (edge.quiescedParent) return
    edge.quiescedParent = true
    edge.owner.drainedBegin(edge)
  }

  /** Lets one parent go on, if this edge held it. */
  unquiesceParent(edge: BlockChild): void {
    if (!edge.quiescedParent) return
    edge.quiescedParent = false
    edge.owner.drainedEnd(edge)
  }

  drainedBegin(): void {
    this.quiesce()
  }

  drainedPoll(): boolean {
    return this.busy()
  }

  drainedEnd(): void {
    this.unquiesce()
  }

  /** Requests are in flight here, or may still come from above. */
  busy(): boolean {
    if (this.gate.inFlight > 0) return true
    for (const edge of this.parents) if (edge.owner.drainedPoll(edge)) return true
    return false
  }
}
