/**
 * Permissions: what each user of a node may do and what it lets others do.
 *
 * Invariants:
 * - Updates go over the affected part of the graph in topological order, every node after all of
 *   its parents, and are all applied or all taken back.
 * - After an update no edge takes what another edge of the same node does not share, and no
 *   read-only node has a writer.
 */
import { BlockError } from '../util/errors.ts'
import type { BlockChild } from './child.ts'
import type { ChildRole, DriverDefinition, Permissions } from './driver.ts'
import { PERM } from './driver.ts'
import type { BlockNode } from './node.ts'

const SECTOR_BYTES = 512

const WORDS: readonly (readonly [number, string])[] = [
  [PERM.CONSISTENT_READ, 'consistent read'],
  [PERM.WRITE, 'write'],
  [PERM.WRITE_UNCHANGED, 'write unchanged'],
  [PERM.RESIZE, 'resize'],
]

/** The words messages use for permission bits. */
export function permissionWords(perm: number): string {
  return WORDS.filter(([bit]) => (perm & bit) !== 0)
    .map(([, word]) => word)
    .join(', ')
}

/** What all users of a node take and share together. */
export function cumulative(node: BlockNode): Permissions {
  let perm = 0
  let shared: number = PERM.ALL
  for (const edge of node.parents) {
    perm |= edge.perm
    shared &= edge.shared
  }
  return { perm, shared }
}

/** The usual mapping for one child of a filter or a format. */
export function defaultChildPermissions(
  definition: DriverDefinition,
  role: ChildRole,
  above: Permissions,
  readOnly: boolean,
): Permissions {
  if (role === 'backing') {
    const sharedWrite = (above.shared & PERM.WRITE) !== 0 ? PERM.WRITE | PERM.RESIZE : 0
    return {
      perm: above.perm & PERM.CONSISTENT_READ,
      shared: PERM.CONSISTENT_READ | PERM.WRITE_UNCHANGED | sharedWrite,
    }
  }
  if (role === 'data') {
    // Nothing but what users write lies there, so it is written, and grows, only with them; a
    // format that shrinks also clears the rest of its last cluster.
    const cuts = definition.kind === 'format' ? PERM.RESIZE : 0
    const writes = above.perm & (PERM.WRITE | PERM.WRITE_UNCHANGED | cuts)
    return {
      perm: above.perm | (writes === 0 ? 0 : PERM.WRITE | PERM.RESIZE),
      shared: (above.shared & ~PERM.RESIZE) | PERM.WRITE_UNCHANGED,
    }
  }
  if (definition.kind === 'filter')
    return { perm: above.perm, shared: above.shared | PERM.WRITE_UNCHANGED }
  const writer = readOnly ? 0 : PERM.WRITE | PERM.RESIZE
  return {
    perm: above.perm | writer | PERM.CONSISTENT_READ,
    shared: (above.shared & ~(PERM.WRITE | PERM.RESIZE)) | PERM.WRITE_UNCHANGED,
  }
}

/** Read-only flags as a reopen in progress will leave them. */
export type FutureReadOnly = ReadonlyMap<BlockNode, boolean>

/** What an edge takes and shares that is not in use yet. */
const NOTHING: Permissions = { perm: 0, shared: PERM.ALL }

const NO_FUTURE: FutureReadOnly = new Map()

/** Nodes below and including the given ones, parents before children. */
function topological(roots: Iterable<BlockNode>): BlockNode[] {
  const order: BlockNode[] = []
  const seen = new Set<BlockNode>()
  const visit = (node: BlockNode): void => {
    if (seen.has(node)) return
    seen.add(node)
    for (const edge of node.children.values()) visit(edge.node)
    order.unshift(node)
  }
  for (const root of roots) visit(root)
  return order
}

function conflict(a: BlockChild, b: BlockChild): BlockError | undefined {
  const bits = a.perm & ~b.shared
  if (bits === 0) return undefined
  const node = a.node.name
  return new BlockError(
    'EPERM',
    `Permission conflict on node '${node}': permissions '${permissionWords(bits)}' are both ` +
      `required by ${a.owner.ownerDescription} (uses node '${node}' as '${a.name}' child) and ` +
      `unshared by ${b.owner.ownerDescription} (uses node '${node}' as '${b.name}' child).`,
    { node },
  )
}

/** The last block of a disk that may not grow must be whole, or a write to it could not be. */
function checkWholeBlocks(node: BlockNode, perm: number): void {
  if ((perm & PERM.WRITE) === 0 || (perm & PERM.RESIZE) !== 0) return
  if (node.driver === undefined || node.driver.cutsLastBlock === true) return
  const sectors = Math.ceil(node.driver.length() / SECTOR_BYTES)
  if ((sectors * SECTOR_BYTES) % node.driver.limits.requestAlignment === 0) return
  throw new BlockError(
    'EPERM',
    "Cannot get 'write' permission without 'resize': Image size is not a multiple of request " +
      'alignment',
    { node: node.name },
  )
}

function checkNode(node: BlockNode, future: FutureReadOnly): void {
  const edges = [...node.parents].reverse()
  for (const a of edges)
    for (const b of edges) {
      // What the newest user refuses is told first.
      const error = a === b ? undefined : conflict(b, a)
      if (error !== undefined) throw error
    }
  const { perm, shared } = cumulative(node)
  node.driver?.checkPermissions?.(perm, shared)
  checkWholeBlocks(node, perm)
  const writes = perm & (PERM.WRITE | PERM.WRITE_UNCHANGED)
  const readOnly = future.get(node) ?? node.readOnly
  if (writes === 0 || !readOnly) return
  if (node.readOnly) throw new BlockError('EPERM', 'Block node is read-only', { node: node.name })
  throw new BlockError(
    'EPERM',
    `Read-only block node '${node.name}' cannot support read-write users`,
    { node: node.name },
  )
}

/**
 * Recomputes the permissions of everything below `roots`. Throws EPERM and changes nothing when
 * two users would be in conflict.
 */
export function updatePermissions(
  roots: Iterable<BlockNode>,
  future: FutureReadOnly = NO_FUTURE,
): void {
  const undo: (() => void)[] = []
  try {
    for (const node of topological(roots)) {
      checkNode(node, future)
      const above = cumulative(node)
      const readOnly = future.get(node) ?? node.readOnly
      for (const edge of node.children.values()) {
        const next =
          (node.appending ? NOTHING : undefined) ??
          node.definition.childPermissions?.(node, edge, above, readOnly) ??
          defaultChildPermissions(node.definition, edge.role, above, readOnly)
        const { perm, shared } = edge
        undo.push(() => {
          edge.perm = perm
          edge.shared = shared
        })
        edge.perm = next.perm
        edge.shared = edge.node.options['force-share'] === true ? PERM.ALL : next.shared
      }
    }
  } catch (error) {
    for (const step of undo.reverse()) step()
    throw error
  }
}

/** Recomputes after something was loosened; a failure leaves the tighter old state. */
export function loosenPermissions(roots: Iterable<BlockNode>): void {
  try {
    updatePermissions(roots)
  } catch (error) {
    if (!(error instanceof BlockError)) throw error
  }
}
