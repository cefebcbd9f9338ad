/**
 * Tells nodes of what a worker wrote behind their backs.
 *
 * Invariants:
 * - After this a flush of the node makes the worker's bytes stable, down to the file that has them.
 */
import type { BlockNode } from '../block/node.ts'

/**
 * Something was written to the node, and to those that hold its data. `all`: whoever notes writes
 * has to take the whole disk as written.
 */
export function markWritten(node: BlockNode, all = false): void {
  node.writeGeneration += 1
  if (all && node.driver !== undefined) {
    const length = node.length()
    node.writtenEnd = Math.max(node.writtenEnd, length)
    for (const heard of node.writeListeners) heard(0, length)
  }
  for (const edge of node.children.values()) {
    if (edge.role === 'file' || edge.role === 'filtered') markWritten(edge.node, all)
  }
}
