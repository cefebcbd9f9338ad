/**
 * Replacing one node by another in everything that uses it.
 *
 * Invariants:
 * - A job's edge never moves, nor does the edge of a user that the new node stands on: that keeps a
 *   filter over what it filters.
 * - An edge that somebody relies on only moves over or off filters of the disk it leads to.
 * - Either every other edge moves and all permissions hold, or none moves.
 */
import { BlockError } from '../util/errors.ts'
import type { BlockChild } from './child.ts'
import type { BlockGraph } from './graph.ts'
import type { BlockNode } from './node.ts'
import { loosenPermissions, updatePermissions } from './permissions.ts'

/** `bs` is `top` or lies below it through any children. */
export function isBelow(top: BlockNode, bs: BlockNode): boolean {
  if (top === bs) return true
  for (const edge of top.children.values()) if (isBelow(edge.node, bs)) return true
  return false
}

/** `base` lies on the chain of `top` (or is it). */
export function chainContains(top: BlockNode, base: BlockNode): boolean {
  for (let n: BlockNode | undefined = top; n !== undefined; n = n.chainNext)
    if (n === base) return true
  return false
}

/**
 * A job works on the node or on something above it. Its workers may have the data attached as they
 * lie now, so where the data lie must not change.
 */
export function hasJobAbove(node: BlockNode): boolean {
  for (const edge of node.parents) {
    if (edge.role === 'job') return true
    if (edge.owner.ownerKind === 'node' && hasJobAbove(edge.owner as BlockNode)) return true
  }
  return false
}

/** What a node is about: the first node below filters. */
function diskOf(node: BlockNode): BlockNode {
  let at = node
  while (at.definition.kind === 'filter' && at.chainNext !== undefined) at = at.chainNext
  return at
}

function mayMove(edge: BlockChild, to: BlockNode): boolean {
  if (edge.role === 'job') return false
  if (edge.owner.ownerKind !== 'node') return true
  return !isBelow(to, edge.owner as BlockNode)
}

/** See `BlockGraph.replace`. */
export async function replaceNode(
  graph: BlockGraph,
  from: BlockNode,
  to: BlockNode,
): Promise<void> {
  if (from === to) return
  await graph.drainedBegin(from)
  try {
    // Users of `to` that are moved must not meet a request on its way.
    await graph.withDrained(to, () => moveAll(graph, from, to))
  } finally {
    graph.drainedEnd(from)
  }
}

function moveAll(graph: BlockGraph, from: BlockNode, to: BlockNode): void {
  const edges = [...from.parents].filter((edge) => mayMove(edge, to))
  for (const edge of edges)
    if (edge.frozen || (edge.pins > 0 && diskOf(from) !== diskOf(to)))
      throw new BlockError('EPERM', `Cannot change '${edge.name}' link to '${from.name}'`, {
        node: from.name,
      })
  for (const edge of edges) graph.moveEdgeNow(edge, to)
  try {
    updatePermissions([...parentsOf(edges), to, from])
  } catch (error) {
    for (const edge of edges) graph.moveEdgeNow(edge, from)
    for (let i = 0; i < edges.length; i++) graph.unref(to)
    for (let i = 0; i < edges.length; i++) graph.unref(from)
    loosenPermissions([...parentsOf(edges), to, from])
    throw error
  }
  for (let i = 0; i < edges.length; i++) graph.unref(from)
}

function parentsOf(edges: readonly BlockChild[]): BlockNode[] {
  return edges
    .filter((edge) => edge.owner.ownerKind === 'node')
    .map((edge) => edge.owner as BlockNode)
}
