/**
 * Reopening nodes with other options: prepare all, check all, then switch all.
 *
 * Invariants:
 * - Every node of the transaction is drained and flushed before anything is prepared.
 * - Permissions are checked against the flags and edges as they will be.
 * - A failure before the switch leaves nothing changed; the switch itself cannot fail.
 */
import { asBlockError, assert, BlockError } from '../util/errors.ts'
import type { BlockChild } from './child.ts'
import type { BlockdevOptions, PreparedReopen } from './driver.ts'
import { nodeFlush } from './flush.ts'
import type { BlockGraph } from './graph.ts'
import type { BlockNode } from './node.ts'
import { checkDetectZeroes, inheritedOptions, wouldCircle } from './open.ts'
import { loosenPermissions, updatePermissions } from './permissions.ts'
import { cannotChange, checkReset, checkUnchanged } from './reopen-options.ts'
import { hasJobAbove, isBelow } from './replace.ts'

/** One node of a reopen. */
export interface ReopenEntry {
  readonly node: BlockNode
  /** All options of the node afterwards; children by name, inline or `null`. */
  readonly options: BlockdevOptions
  /** The part of them that is to be remembered as the user's; default all. */
  readonly given?: BlockdevOptions
  /** Leave the children as they are, whatever the options say. */
  readonly keepChildren?: boolean
}

/** A change of one edge; `to` undefined cuts it, `edge` undefined makes a new one. */
interface EdgeChange {
  readonly node: BlockNode
  readonly name: string
  readonly edge: BlockChild | undefined
  /** What the edge led to before. */
  readonly from: BlockNode | undefined
  readonly to: BlockNode | undefined
}

/** What becomes of the edges of an entry, or why it cannot be. */
interface EdgePlan {
  readonly changes: readonly EdgeChange[]
  readonly error?: unknown
}

/** The edges that a reopen may move to another node. */
const MOVABLE = ['file', 'backing']

function isOptions(ref: unknown): ref is BlockdevOptions {
  return typeof ref === 'object' && ref !== null
}

/** The options of inline children follow those of the node they were written in. */
function expand(entries: readonly ReopenEntry[]): ReopenEntry[] {
  const all: ReopenEntry[] = []
  const visit = (entry: ReopenEntry): void => {
    if (all.some((e) => e.node === entry.node)) return
    all.push(entry)
    for (const edge of entry.node.children.values()) {
      const child = edge.node
      if (child.inheritsFrom !== entry.node) continue
      const written = entry.options[edge.name]
      // Whoever keeps its children says nothing of what they are by now.
      const inline = isOptions(written) && entry.keepChildren !== true ? written : undefined
      const kept = inline === undefined
      if (edge.role === 'backing' && kept) continue
      if (entries.some((e) => e.node === child)) continue
      const given = inline ?? child.given
      visit({
        node: child,
        given,
        options: { ...inheritedOptions(entry.options, edge.role), ...given },
        keepChildren: kept,
      })
    }
  }
  for (const entry of entries) visit(entry)
  return all
}

/** A node that is given more than once gets all that was said of it, of each option the last. */
function oneOfEach(entries: readonly ReopenEntry[]): ReopenEntry[] {
  const all = new Map<BlockNode, ReopenEntry>()
  for (const entry of entries) {
    const options = { ...all.get(entry.node)?.options, ...entry.options }
    all.set(entry.node, { ...entry, options })
  }
  return [...all.values()]
}

/** The image itself names a backing image, whether or not one is attached. */
async function namesBacking(node: BlockNode): Promise<boolean> {
  const info = await node.driver?.info?.()
  return info?.backingFilename !== undefined
}

/** What a user put there, below the filters that jobs put over it. */
function withoutImplicit(node: BlockNode): BlockNode {
  let at = node
  while (at.implicit && at.chainNext !== undefined) at = at.chainNext
  return at
}

/** The edges that an entry moves, makes or cuts. */
async function edgeChanges(graph: BlockGraph, entry: ReopenEntry): Promise<EdgeChange[]> {
  if (entry.keepChildren === true) return []
  const { node, options } = entry
  const changes: EdgeChange[] = []
  // What is wrong with the backing image is told first.
  const mayBack = node.definition.supportsBacking === true
  const names = new Set([...(mayBack ? ['backing'] : []), ...node.children.keys()])
  for (const name of names) {
    const edge = node.children.get(name)
    const ref = options[name]
    const missing = ref === undefined && name === 'backing'
    if (missing && (edge !== undefined || (await namesBacking(node))))
      throw new BlockError('EINVAL', `backing is missing for '${node.name}'`, { node: node.name })
    if (ref === undefined) continue
    const to = changeTarget(graph, node, name, edge, ref)
    if (to === edge?.node || (edge !== undefined && to === withoutImplicit(edge.node))) continue
    if (name === 'backing' && edge?.node.implicit === true)
      throw new BlockError(
        'EPERM',
        `Cannot change backing link if '${node.name}' has an implicit backing file`,
        { node: node.name },
      )
    if (edge !== undefined && (edge.frozen || edge.pins > 0))
      throw new BlockError(
        'EPERM',
        `Cannot change frozen '${name}' link from '${node.name}' to '${edge.node.name}'`,
        { node: node.name },
      )
    if (name === 'file' && hasJobAbove(node))
      throw new BlockError('EBUSY', `Cannot change '${name}' link of '${node.name}' under a job`, {
        node: node.name,
      })
    if (to !== undefined && isBelow(to, node)) throw wouldCircle(node, name, to)
    changes.push({ node, name, edge, from: edge?.node, to })
  }
  return changes
}

function changeTarget(
  graph: BlockGraph,
  node: BlockNode,
  name: string,
  edge: BlockChild | undefined,
  ref: unknown,
): BlockNode | undefined {
  if (ref === null && name === 'backing') return undefined
  if (typeof ref === 'string') {
    const to = graph.find(ref)
    if (to !== undefined && (to === edge?.node || MOVABLE.includes(name))) return to
    if (!MOVABLE.includes(name)) throw cannotChange(node, name)
    throw new BlockError('EINVAL', `Cannot find device='' nor node-name='${ref}'`, {
      node: node.name,
    })
  }
  if (edge !== undefined && withoutImplicit(edge.node).inheritsFrom === node) return edge.node
  throw cannotChange(node, `${name}.driver`)
}

async function prepare(entry: ReopenEntry): Promise<PreparedReopen> {
  const { node, options } = entry
  checkDetectZeroes(options)
  const driver = node.needDriver()
  if (driver.reopenPrepare === undefined)
    throw new BlockError(
      'ENOTSUP',
      `Block format '${node.definition.name}' used by node '${node.name}' does not support ` +
        'reopening files',
      { node: node.name, op: 'reopen' },
    )
  checkReset(node, options)
  return driver.reopenPrepare({ options, readOnly: options['read-only'] === true })
}

/** Makes one change of an edge; the answer takes it back. */
function applyEdge(graph: BlockGraph, { node, name, edge, from, to }: EdgeChange): () => void {
  if (edge !== undefined && from !== undefined && to !== undefined) {
    graph.moveEdgeNow(edge, to)
    return () => {
      graph.moveEdgeNow(edge, from)
      graph.unref(to)
      graph.unref(from)
    }
  }
  if (edge !== undefined) {
    node.children.delete(name)
    edge.node.parents.delete(edge)
    return () => {
      node.children.set(name, edge)
      edge.node.parents.add(edge)
    }
  }
  if (to === undefined) return () => undefined
  const made = graph.linkNow(node, to, name, name === 'backing' ? 'backing' : 'file')
  return () => graph.detach(made)
}

/** See `BlockGraph.reopen`. Errors: EINVAL, EPERM, ENOTSUP, those of the drivers. */
export async function reopenNodes(graph: BlockGraph, given: readonly ReopenEntry[]): Promise<void> {
  const entries = expand(oneOfEach(given))
  const held: BlockNode[] = []
  const hold = async (node: BlockNode): Promise<void> => {
    held.push(node)
    await graph.drainedBegin(node)
  }
  let plans: readonly EdgePlan[] = []
  try {
    for (const { node } of entries) await hold(node)
    plans = await holdChanges(graph, entries, held, hold)
    await reopenDrained(graph, entries, plans)
  } finally {
    for (const node of held.reverse()) graph.drainedEnd(node)
  }
  // A node that nobody uses any more is gone when the command returns.
  if (plans.some(({ changes }) => changes.length > 0)) await graph.settled()
}

/** The edges to change, once everything they will lead to is drained as well. */
async function holdChanges(
  graph: BlockGraph,
  entries: readonly ReopenEntry[],
  held: readonly BlockNode[],
  hold: (node: BlockNode) => Promise<void>,
): Promise<EdgePlan[]> {
  for (;;) {
    const plans: EdgePlan[] = []
    for (const entry of entries) plans.push(await planEdges(graph, entry))
    const changes = plans.flatMap((plan) => plan.changes)
    const fresh = changes.find(({ to }) => to !== undefined && !held.includes(to))?.to
    if (fresh === undefined) return plans
    // What is found may change while it is being drained: look again.
    await hold(fresh)
  }
}

// What the driver has to say of its options comes before what is wrong with the children.
async function planEdges(graph: BlockGraph, entry: ReopenEntry): Promise<EdgePlan> {
  try {
    return { changes: await edgeChanges(graph, entry) }
  } catch (error) {
    return { changes: [], error }
  }
}

async function reopenDrained(
  graph: BlockGraph,
  entries: readonly ReopenEntry[],
  plans: readonly EdgePlan[],
): Promise<void> {
  for (const { node } of entries) await flushFor(node)
  const changes = plans.flatMap((plan) => plan.changes)
  const prepared: PreparedReopen[] = []
  const undoEdges: (() => void)[] = []
  const nodes = entries.map((e) => e.node)
  // Whoever loses a user takes less of what is below.
  const touched = changes.flatMap(({ edge, to }) => [edge?.node, to])
  const future = new Map(entries.map((e) => [e.node, e.options['read-only'] === true] as const))
  try {
    for (const [index, entry] of entries.entries()) {
      prepared.push(await prepare(entry))
      const plan = plans[index]
      if (plan?.error !== undefined) throw plan.error
      checkUnchanged(entry.node, entry.options)
    }
    for (const change of changes) undoEdges.push(applyEdge(graph, change))
    updatePermissions([...nodes, ...touched.filter((n) => n !== undefined)], future)
  } catch (error) {
    for (const undo of undoEdges.reverse()) undo()
    loosenPermissions(nodes)
    for (const one of prepared.reverse()) one.abort()
    throw error
  }
  for (let i = entries.length - 1; i >= 0; i--) {
    prepared[i]?.commit()
    const entry = entries[i]
    assert(entry !== undefined, 'one prepared step for each entry')
    adopt(entry)
  }
  for (const change of changes) finishEdge(graph, change)
  loosenPermissions([...nodes, ...changes.flatMap((c) => (c.from ? [c.from] : []))])
  for (const one of prepared) await one.afterCommit?.()
}

async function flushFor(node: BlockNode): Promise<void> {
  try {
    await nodeFlush(node)
  } catch (error) {
    const { code, message } = asBlockError(error)
    throw new BlockError(code, `Error flushing drive: ${message}`, { node: node.name }, error)
  }
}

function adopt({ node, options, given }: ReopenEntry): void {
  node.options = options
  node.given = given ?? options
  node.readOnly = options['read-only'] === true
  node.noFlush = options.cache?.['no-flush'] === true
  node.unmap = options.discard === 'unmap'
  node.detectZeroes = options['detect-zeroes'] ?? 'off'
}

/** Gives up what a moved or cut edge held before. */
function finishEdge(graph: BlockGraph, { edge, from, to }: EdgeChange): void {
  if (edge === undefined || from === undefined) return
  if (to === undefined) {
    from.parents.add(edge)
    graph.detach(edge)
  } else graph.unref(from)
  graph.drains.kick()
}

/** See `BlockGraph.setReadOnly`. */
export async function setNodeReadOnly(
  graph: BlockGraph,
  node: BlockNode,
  readOnly: boolean,
): Promise<void> {
  if (node.readOnly === readOnly) return
  const options = { ...node.options, driver: node.definition.name, 'read-only': readOnly }
  await graph.reopen([{ node, options, given: node.given, keepChildren: true }])
}
