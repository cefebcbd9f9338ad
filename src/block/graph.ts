/**
 * The block graph: all nodes of one runtime, their names, and every change to who uses whom.
 *
 * Invariants:
 * - The graph changes only on the main thread; an edge moves only while its node is drained.
 * - A name belongs to one node; it is free again before the node closes.
 * - A change either happens whole, with valid permissions, or leaves everything as it was.
 */
import type { AioContext } from '../aio/aio-context.ts'
import { assert, BlockError } from '../util/errors.ts'
import type { BlockBackend } from './backend.ts'
import { BlockChild, type EdgeOwner } from './child.ts'
import { Closings } from './close.ts'
import { Drains } from './drain.ts'
import type {
  BlockdevOptions,
  BlockdevRef,
  ChildRole,
  DriverDefinition,
  Permissions,
} from './driver.ts'
import { BlockEvents } from './events.ts'
import type { BlockNode } from './node.ts'
import { openNode } from './open.ts'
import { loosenPermissions, updatePermissions } from './permissions.ts'
import { type ReopenEntry, reopenNodes, setNodeReadOnly } from './reopen.ts'
import { replaceNode } from './replace.ts'

/** What a graph is made of. */
export interface BlockGraphOptions {
  /** The event loop that runs its coroutines. */
  readonly ctx: AioContext
  /** The drivers it can open. */
  readonly drivers: Iterable<DriverDefinition>
}

/** All nodes of one runtime. Main thread only. */
export class BlockGraph {
  /** The event loop of the main thread. */
  readonly ctx: AioContext
  /** What happened, under monitor names. */
  readonly events: BlockEvents = new BlockEvents()
  /** Drained sections. */
  readonly drains: Drains = new Drains(this)
  /** Drivers by name. */
  readonly drivers: Map<string, DriverDefinition>
  /** Further names that a node may not take (backends, jobs share one space with nodes). */
  readonly reservedNames: Set<string> = new Set()
  /** Open backends, the oldest first. */
  readonly backends: Set<BlockBackend> = new Set()
  readonly #nodes = new Map<string, BlockNode>()
  readonly #closings = new Closings()

  constructor(options: BlockGraphOptions) {
    this.ctx = options.ctx
    this.drivers = new Map([...options.drivers].map((d) => [d.name, d]))
  }

  /** Every node, newest first. */
  nodes(): BlockNode[] {
    return [...this.#nodes.values()].reverse()
  }

  /** The node of that name. */
  find(name: string): BlockNode | undefined {
    return this.#nodes.get(name)
  }

  /** The node a command names as `device` or `node-name`. Errors: EINVAL. */
  lookup(device: string | undefined, nodeName?: string): BlockNode {
    const node = this.#nodes.get(device ?? '') ?? this.#nodes.get(nodeName ?? '')
    if (node !== undefined) return node
    throw new BlockError(
      'EINVAL',
      `Cannot find device='${device ?? ''}' nor node-name='${nodeName ?? ''}'`,
    )
  }

  /** Opens a node for a user, who owns it until `remove`. Errors: EINVAL, those of the driver. */
  async add(options: BlockdevOptions): Promise<BlockNode> {
    if (options['node-name'] === undefined)
      throw new BlockError('EINVAL', "'node-name' must be specified for the root node")
    const node = await this.open(options)
    node.monitorOwned = true
    return node
  }

  /** Opens a node; the caller holds its one reference (`unref` gives it back). */
  open(options: BlockdevOptions): Promise<BlockNode> {
    return openNode(this, options, {})
  }

  /** Opens a child for a driver or takes an existing node; the answer holds a reference. */
  async take(ref: BlockdevRef, inherited: Partial<BlockdevOptions>): Promise<BlockNode> {
    if (typeof ref !== 'string') return openNode(this, ref, inherited)
    const node = this.#nodes.get(ref)
    // A node that is still being opened cannot be its own child.
    if (node?.driver === undefined)
      throw new BlockError('EINVAL', `Cannot find device='${ref}' nor node-name='${ref}'`)
    node.refs++
    return node
  }

  /** Puts an opened node on the list; for `openNode` only. */
  register(node: BlockNode): void {
    assert(!this.#nodes.has(node.name), `node ${node.name} is registered once`)
    this.#nodes.set(node.name, node)
  }

  /** Takes a node off the list; for opening that failed and for closing. */
  unregister(node: BlockNode): void {
    if (this.#nodes.get(node.name) === node) this.#nodes.delete(node.name)
  }

  /** Gives a user's node up (`blockdev-del`). Errors: EINVAL, EBUSY. */
  async remove(name: string): Promise<void> {
    const node = this.#nodes.get(name)
    if (node === undefined)
      throw new BlockError('EINVAL', `Failed to find node with node-name='${name}'`, { node: name })
    if (node.hasBackend) throw new BlockError('EBUSY', `Node ${name} is in use`, { node: name })
    node.blockers.check('drive-del', name)
    if (!node.monitorOwned)
      throw new BlockError('EBUSY', `Node ${name} is not owned by the monitor`, { node: name })
    if (node.parents.size > 0)
      throw new BlockError('EBUSY', `Block device ${name} is in use`, { node: name })
    node.monitorOwned = false
    this.unref(node)
    await this.gone()
  }

  /** Drops a reference; the last one closes the node (see `settled`). */
  unref(node: BlockNode): void {
    assert(node.refs > 0, `node ${node.name} has a reference to drop`)
    node.refs--
    if (node.refs > 0) return
    this.#closings.add(node)
  }

  /**
   * Waits until every node that was given up has closed, but for one whose driver still ends what it
   * runs: that may be who asks.
   */
  settled(): Promise<void> {
    return this.#closings.settled()
  }

  /** Waits until every node that was given up has closed. Never for a driver that closes. */
  gone(): Promise<void> {
    return this.#closings.gone()
  }

  /** For a driver that closes: does something that edits the graph and waits for it. */
  aside(node: BlockNode, action: () => Promise<void>): Promise<void> {
    return this.#closings.aside(node, action)
  }

  /**
   * Attaches a child. The reference to `node` goes to the edge, also when it fails. `permissions`
   * fixes what a backend or job takes; a node's own edges follow from its driver.
   */
  async attach(
    owner: EdgeOwner,
    node: BlockNode,
    name: string,
    role: ChildRole,
    permissions?: Permissions,
  ): Promise<BlockChild> {
    const edge = new BlockChild(owner, node, name, role)
    if (permissions !== undefined) Object.assign(edge, permissions)
    if (node.gate.quiesceCount > 0) {
      node.quiesceParent(edge)
      await this.drains.until(() => !owner.drainedPoll(edge), [])
      // The section may have ended meanwhile, and did not know of this edge.
      if (node.gate.quiesceCount === 0) node.unquiesceParent(edge)
    }
    const parent = owner.ownerKind === 'node' ? (owner as BlockNode) : undefined
    node.parents.add(edge)
    parent?.children.set(name, edge)
    try {
      updatePermissions(parent === undefined ? [node] : [parent])
    } catch (error) {
      this.#unlink(edge)
      loosenPermissions([node])
      this.unref(node)
      throw error
    }
    if (role === 'backing') blockBacking(edge)
    return edge
  }

  /**
   * Makes an edge between two drained nodes. Takes a reference to `to`; permissions are the caller's
   * to settle, and `detach` takes it back.
   */
  linkNow(owner: BlockNode, to: BlockNode, name: string, role: ChildRole): BlockChild {
    const edge = new BlockChild(owner, to, name, role)
    assert(isHeldBack(edge), `'${name}' of ${owner.ownerDescription} is made while drained`)
    to.refs++
    if (to.gate.quiesceCount > 0) to.quiesceParent(edge)
    to.parents.add(edge)
    owner.children.set(name, edge)
    if (role === 'backing') blockBacking(edge)
    return edge
  }

  /** Cuts an edge and drops its reference. */
  detach(edge: BlockChild): void {
    const node = edge.node
    assert(isHeldBack(edge), `'${edge.name}' of ${edge.owner.ownerDescription} goes while drained`)
    if (edge.role === 'backing') unblockBacking(edge)
    this.#unlink(edge)
    loosenPermissions([node])
    this.unref(node)
  }

  #unlink(edge: BlockChild): void {
    edge.node.parents.delete(edge)
    if (edge.owner.ownerKind === 'node') {
      const parent = edge.owner as BlockNode
      if (parent.children.get(edge.name) === edge) parent.children.delete(edge.name)
    }
    edge.node.unquiesceParent(edge)
    this.drains.kick()
  }

  /**
   * Points an edge at another node while both ends are drained. Takes a reference to `to`; the one to
   * the old node, and permissions, are the caller's to settle.
   */
  moveEdgeNow(edge: BlockChild, to: BlockNode): void {
    assert(isHeldBack(edge), `'${edge.name}' of ${edge.owner.ownerDescription} moves while drained`)
    if (to.gate.quiesceCount > 0) to.quiesceParent(edge)
    if (edge.role === 'backing') unblockBacking(edge)
    edge.node.parents.delete(edge)
    to.refs++
    edge.node = to
    to.parents.add(edge)
    if (edge.role === 'backing') blockBacking(edge)
    if (to.gate.quiesceCount === 0) to.unquiesceParent(edge)
  }

  /** Moves every user of `from` to `to`, except jobs and users that `to` stands on. */
  replace(from: BlockNode, to: BlockNode): Promise<void> {
    return replaceNode(this, from, to)
  }

  /** Opens a filter over `top` (by name, in its options) and moves the users of `top` onto it. */
  async insertFilter(options: BlockdevOptions, top: BlockNode): Promise<BlockNode> {
    return this.withDrained(top, async () => {
      const filter = await openNode(this, options, {}, true)
      filter.implicit = options['node-name'] === undefined
      filter.appending = false
      try {
        await this.replace(top, filter)
      } catch (error) {
        this.unref(filter)
        throw error
      }
      return filter
    })
  }

  /** Moves the users of a filter back to its child and drops the caller's reference to it. */
  async removeFilter(filter: BlockNode): Promise<void> {
    const below = filter.chainNext
    assert(below !== undefined, `filter ${filter.name} has a child to fall back to`)
    below.refs++
    await this.withDrained(filter, () => this.replace(filter, below))
    this.unref(filter)
    this.unref(below)
    await this.settled()
  }

  /** Requests that drains wait for, a line each: the node, the range, the coroutine behind it. */
  report(): string[] {
    return this.nodes().flatMap((node) =>
      node.tracked.report().map((line) => `node '${node.name}': ${line}`),
    )
  }

  /** Begins a drained section on a node. */
  drainedBegin(node: BlockNode): Promise<void> {
    return this.drains.begin(node)
  }

  /** Ends a drained section on a node. */
  drainedEnd(node: BlockNode): void {
    this.drains.end(node)
  }

  /** Runs `body` while the node is drained. */
  async withDrained<T>(node: BlockNode, body: () => T | Promise<T>): Promise<T> {
    await this.drainedBegin(node)
    try {
      return await body()
    } finally {
      this.drainedEnd(node)
    }
  }

  /** Begins a drained section on every node. */
  drainAllBegin(): Promise<void> {
    return this.drains.beginAll()
  }

  /** Ends it. */
  drainAllEnd(): void {
    this.drains.endAll()
  }

  /** Reopens nodes with new options, all or none. */
  reopen(entries: readonly ReopenEntry[]): Promise<void> {
    return reopenNodes(this, entries)
  }

  /** Makes a node read-only or writable. */
  setReadOnly(node: BlockNode, readOnly: boolean): Promise<void> {
    return setNodeReadOnly(this, node, readOnly)
  }

  /** Closes every node that only the monitor holds, users before the used. */
  async close(): Promise<void> {
    for (const node of this.nodes()) {
      if (!node.monitorOwned) continue
      node.monitorOwned = false
      this.unref(node)
    }
    await this.gone()
  }
}

/** No request comes through the edge: its owner is drained, closed, or a job, which sends none. */
function isHeldBack(edge: BlockChild): boolean {
  if (edge.quiescedParent || edge.owner.ownerKind === 'job') return true
  if (edge.owner.ownerKind !== 'node') return false
  const owner = edge.owner as BlockNode
  return owner.gate.quiesceCount > 0 || owner.driver === undefined
}

const backingReasons = new WeakMap<BlockChild, { readonly message: string }>()

function blockBacking(edge: BlockChild): void {
  const overlay = edge.owner.ownerKind === 'node' ? (edge.owner as BlockNode).name : edge.name
  const reason = { message: `node is used as backing hd of '${overlay}'` }
  backingReasons.set(edge, reason)
  edge.node.blockers.blockAll(reason, ['commit-target', 'stream', 'backup-source', 'backup-target'])
}

function unblockBacking(edge: BlockChild): void {
  const reason = backingReasons.get(edge)
  if (reason !== undefined) edge.node.blockers.unblockAll(reason)
  backingReasons.delete(edge)
}
