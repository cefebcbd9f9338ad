/**
 * Changing the length of a node.
 *
 * Invariants:
 * - What a node gains reads as zeroes, also over a backing image that reaches further than it did.
 * - No other request of the gained range runs before that is so.
 */
import { assert, BlockError } from '../util/errors.ts'
import type { BlockChild } from './child.ts'
import type { BlockDriver } from './driver.ts'
import { PERM } from './driver.ts'
import type { BlockNode } from './node.ts'
import { tracked, wrote, zeroPieces } from './request.ts'

/**
 * Gives the node of an edge, which took RESIZE, another length in bytes; a filter passes it on.
 * Errors: ENOMEDIUM, EINVAL, EACCES when read-only, ENOTSUP, the driver's.
 */
export async function nodeTruncate(edge: BlockChild, size: number): Promise<void> {
  const { node } = edge
  const context = { node: node.name, op: 'truncate' }
  const { driver } = node
  if (driver === undefined) throw new BlockError('ENOMEDIUM', 'No medium inserted', context)
  if (size < 0) throw new BlockError('EINVAL', 'Image size cannot be negative', context)
  if (node.readOnly) throw new BlockError('EACCES', 'Image is read-only', context)
  assert(
    (edge.perm & PERM.RESIZE) !== 0,
    `${edge.owner.ownerDescription} took the permission to resize '${node.name}'`,
  )
  if (node.definition.kind === 'filter')
    for (const below of node.children.values())
      if (below.role === 'filtered') return nodeTruncate(below, size)
  if (driver.truncate === undefined)
    throw new BlockError('ENOTSUP', 'Image format driver does not support resize', context)
  const before = driver.length()
  if (size <= before) {
    await tracked(node, size, before - size, true, async () => driver.truncate?.(size))
    return
  }
  await tracked(node, before, size - before, true, () => grow(node, driver, before, size))
}

async function grow(
  node: BlockNode,
  driver: BlockDriver,
  before: number,
  size: number,
): Promise<void> {
  await driver.truncate?.(size)
  const backing = node.child('backing')
  const stale = backing === undefined ? 0 : Math.min(size, backing.length()) - before
  if (stale <= 0) return
  try {
    await zeroPieces(node, driver, before, stale, 0)
  } finally {
    wrote(node, before, stale)
  }
}
