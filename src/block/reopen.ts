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
import type { BlockGraph } from './graph.ts'
import type { BlockNode } from './node.ts'
import { inheritedOptions } from './open.ts'
import { loosenPermissions, updatePermissions } from './permissions.ts'
import { isBelow } from './replace.ts'
import { nodeFlush } from './request.ts'

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
  readonly to: BlockNode | undefined
}

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

function checkFixed(node: BlockNode, options: BlockdevOptions): void {
  if (options.driver !== node.definition.name)
    throw new BlockError('EINVAL', "Cannot change the option 'driver'", { node: node.name })
  const name = options['node-name']
  if (name !== undefined && name !== node.name)
    throw new BlockError('EINVAL', "Cannot change the option 'node-name'", { node: node.name })
}

/** The image itself names a backing image, whether or not one is attached. */
async function namesBacking(node: BlockNode): Promise<boolean> {
  const info = await node.driver?.info?.()
  return info?.backingFilename !== undefined
}

/** The edges that an entry moves, makes or cuts. */
async function edgeChanges(graph: BlockGraph, entry: ReopenEntry): Promise<EdgeChange[]> {
  if (entry.keepChildren === true) return []
  const { node, options } = entry
  const changes: EdgeChange[] = []
  const names = new Set([...node.children.keys()])
  if (node.definition.supportsBacking === true) names.add('backing')
  for (const name of names) {
    const edge = node.children.get(name)
    const ref = options[name]
    const missing = ref === undefined && name === 'backing'
    if (missing && (edge !== undefined || (await namesBacking(node))))
      throw new BlockError('EINVAL', `backing is missing for '${node.name}'`, { node: node.name })
    if (ref === undefined) continue
    const to = changeTarget(graph, node, name, edge, ref)
    if (to === edge?.node) continue
    if (edge?.frozen === true)
      throw new BlockError(
        'EPERM',
        `Cannot change frozen '${name}' link from '${node.name}' to '${edge.node.name}'`,
        { node: node.name },
      )
    if (to !== undefined && isBelow(to, node))
      throw new BlockError(
        'EINVAL',
        `Making '${to.name}' a ${name} child of '${node.name}' would create a cycle`,
        { node: node.name },
      )
    changes.push({ node, name, edge, to })
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
    if (to !== undefined) return to
    throw new BlockError('EINVAL', `Cannot find device='${ref}' nor node-name='${ref}'`, {
      node: node.name,
    })
  }
  if (edge !== undefined && edge.node.inheritsFrom === node) return edge.node
  throw new BlockError('EINVAL', `Cannot change the option '${name}'`, { node: node.name })
}

async function prepare(entry: ReopenEntry): Promise<PreparedReopen> {
  const { node, options } = entry
  const driver = node.needDriver()
  if (driver.reopenPrepare === undefined)
    throw new BlockError(
      'ENOTSUP',
      `Block format '${node.definition.name}' used by node '${node.name}' does not support ` +
        'reopening files',
      { node: node.name, op: 'reopen' },
    )
  return driver.reopenPrepare({ options, readOnly: options['read-only'] === true })
}

function applyEdges(graph: BlockGraph, changes: readonly EdgeChange[]): (() => void)[] {
  return changes.map(({ node, name, edge, to }) => {
    if (edge !== undefined && to !== undefined) {
      const from = edge.node
      graph.moveEdgeNow(edge, to)
      return () => graph.moveEdgeNow(edge, from)
    }
    if (edge !== undefined) {
      node.children.delete(name)
      edge.node.parents.delete(edge)
      return () => {
        node.children.set(name, edge)
        edge.node.parents.add(edge)
      }
    }
    return () => undefined
  })
}

/** See `BlockGraph.reopen`. Errors: EINVAL, EPERM, ENOTSUP, those of the drivers. */
export async function reopenNodes(graph: BlockGraph, given: readonly ReopenEntry[]): Promise<void> {
  for (const entry of given) checkFixed(entry.node, entry.options)
  const entries = expand(given)
  for (const entry of entries) checkFixed(entry.node, entry.options)
  const changes: EdgeChange[] = []
  for (const entry of entries) changes.push(...(await edgeChanges(graph, entry)))
  for (const { node } of entries) await graph.drainedBegin(node)
  for (const { to } of changes) if (to !== undefined) await graph.drainedBegin(to)
  try {
    await reopenDrained(graph, entries, changes)
  } finally {
    for (const { to } of changes) if (to !== undefined) graph.drainedEnd(to)
    for (const { node } of entries) graph.drainedEnd(node)
  }
}

async function reopenDrained(
  graph: BlockGraph,
  entries: readonly ReopenEntry[],
  changes: readonly EdgeChange[],
): Promise<void> {
  for (const { node } of entries) await flushFor(node)
  const prepared: PreparedReopen[] = []
  let undoEdges: (() => void)[] = []
  const nodes = entries.map((e) => e.node)
  const future = new Map(entries.map((e) => [e.node, e.options['read-only'] === true] as const))
  try {
    for (const entry of entries) prepared.push(await prepare(entry))
    undoEdges = applyEdges(graph, changes)
    updatePermissions([...nodes, ...changes.flatMap((c) => (c.to ? [c.to] : []))], future)
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
  for (const change of changes) await finishEdge(graph, change)
  loosenPermissions(nodes)
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

/** References and blockers of an edge that was moved, made or cut. */
async function finishEdge(graph: BlockGraph, { node, name, edge, to }: EdgeChange): Promise<void> {
  if (edge === undefined && to !== undefined) {
    to.refs++
    await graph.attach(node, to, name, name === 'backing' ? 'backing' : 'file')
  } else if (edge !== undefined && to === undefined) {
    edge.node.parents.add(edge)
    graph.detach(edge)
  } else if (edge !== undefined) edge.node.graph.drains.kick()
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
