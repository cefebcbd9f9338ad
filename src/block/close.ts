/**
 * Closing a node after its last reference went.
 *
 * Invariants:
 * - The name is free before anything else happens.
 * - Nothing is in flight when the driver closes, and what was written has been flushed.
 */
import { assert } from '../util/errors.ts'
import { nodeFlush } from './flush.ts'
import type { BlockNode } from './node.ts'

/** Flushes and closes a node nobody uses. Failures to flush are nobody's to hear any more. */
export async function closeNode(node: BlockNode): Promise<void> {
  const { graph } = node
  assert(node.parents.size === 0, `node ${node.name} closes without users`)
  graph.unregister(node)
  node.quiesce()
  graph.drains.died(node)
  await graph.drains.untilQuiet(node)
  try {
    await nodeFlush(node)
  } catch {
    // The last user is gone; an image that must be stable was flushed by it.
  }
  await graph.drains.untilQuiet(node)
  const driver = node.driver
  await driver?.close()
  node.driver = undefined
  for (const edge of [...node.children.values()].reverse()) graph.detach(edge)
  node.unquiesce()
}
