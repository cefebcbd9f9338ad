/**
 * The disks of a secondary, found from its replication node and checked before a start.
 *
 * Invariants:
 * - Nothing is changed here but the pins of links; every complaint has the words that managers know.
 */
import type { BlockChild } from '../block/child.ts'
import type { BlockNode } from '../block/node.ts'
import { isBelow } from '../block/replace.ts'
import { BlockError } from '../util/errors.ts'

/** The chain below a secondary's replication node. */
export interface SecondaryDisks {
  /** Collects the secondary guest's writes. */
  readonly active: BlockNode
  /** Collects old data of what the primary overwrote. */
  readonly hidden: BlockNode
  /** The primary's current content. */
  readonly secondary: BlockNode
}

function refuse(sentence: string): BlockError {
  return new BlockError('EINVAL', sentence, { op: 'start' })
}

/** The backing child of a node, seen through filters that lie over it. */
function backingOf(node: BlockNode): BlockChild | undefined {
  for (let n: BlockNode | undefined = node; n !== undefined; ) {
    const backing = n.children.get('backing')
    if (backing !== undefined) return backing
    n = n.definition.kind === 'filter' ? n.chainNext : undefined
  }
  return undefined
}

/** The node that can be emptied: the first format below filters. */
export function formatOf(node: BlockNode): BlockNode {
  let n = node
  while (n.definition.kind === 'filter' && n.chainNext !== undefined) n = n.chainNext
  return n
}

/** Finds and checks the disks. Errors: EINVAL with the sentence that names what is wrong. */
export function findDisks(node: BlockNode): SecondaryDisks {
  const active = node.children.get('file')?.node
  const hidden = active === undefined ? undefined : backingOf(active)?.node
  if (active === undefined || hidden === undefined)
    throw refuse("Active disk doesn't have backing file")
  const secondary = backingOf(hidden)?.node
  if (secondary === undefined) throw refuse("Hidden disk doesn't have backing file")
  if (!secondary.hasBackend) throw refuse("The secondary disk doesn't have block backend")
  if (!sameLength(active, hidden, secondary))
    throw refuse("Active disk, hidden disk, secondary disk's length are not the same")
  for (const disk of [active, hidden])
    if (formatOf(disk).driver?.makeEmpty === undefined)
      throw refuse("Active disk or hidden disk doesn't support make_empty")
  return { active, hidden, secondary }
}

function sameLength(...disks: readonly BlockNode[]): boolean {
  const lengths = disks.map((disk) => disk.length())
  return lengths.every((length) => length === lengths[0])
}

/** The node that `top-id` names: a root node that is the replication node or stands on it. */
export function findTop(node: BlockNode, topId: string): BlockNode {
  const top = node.graph.find(topId)
  if (top === undefined || !top.isRootNode || !isBelow(top, node))
    throw refuse('No top_bs or it is invalid')
  return top
}

/** Pins the links from the replication node down to the secondary disk; answers how to let go. */
export function pinChain(node: BlockNode, { secondary }: SecondaryDisks): () => void {
  const pinned: BlockChild[] = []
  let at: BlockNode | undefined = node
  while (at !== undefined && at !== secondary) {
    const below: BlockNode | undefined = at.chainNext
    for (const edge of at.children.values())
      if (edge.node === below && edge.role !== 'data') pinned.push(edge)
    at = below
  }
  for (const edge of pinned) edge.pins++
  return () => {
    for (const edge of pinned.splice(0)) edge.pins--
  }
}
