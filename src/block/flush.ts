/**
 * Flushing a node: one flush at a time, and none that would find nothing to do.
 *
 * Invariants:
 * - A flush covers every write that ended before it was asked for.
 * - A generation counts as stable only after its flush succeeded, here and below.
 */
import type { Pending } from '../coroutine/coroutine.ts'
import type { BlockDriver } from './driver.ts'
import type { BlockNode } from './node.ts'

/** Makes every ended write of this node and of its file stable. */
export function nodeFlush(node: BlockNode): Pending {
  if (node.driver === undefined || node.readOnly) return undefined
  return flushNode(node)
}

async function flushNode(node: BlockNode): Promise<void> {
  const driver = node.needDriver()
  node.gate.begin()
  try {
    const generation = node.writeGeneration
    while (node.activeFlush !== undefined) await node.activeFlush.catch(() => undefined)
    const run = flushOnce(node, driver, generation)
    node.activeFlush = run
    try {
      await run
    } finally {
      node.activeFlush = undefined
    }
  } finally {
    node.gate.end()
  }
}

async function flushOnce(node: BlockNode, driver: BlockDriver, generation: number): Promise<void> {
  const stable = node.noFlush || node.flushedGeneration === generation
  if (!stable) node.children.get('file')?.node.driver?.debugEvent?.('flush_to_disk')
  if (driver.flush !== undefined && !(stable && !node.noFlush)) {
    const pending = driver.flush(!node.noFlush)
    if (pending !== undefined) await pending
  }
  for (const edge of node.children.values()) {
    if (edge.role !== 'file' && edge.role !== 'filtered') continue
    const pending = nodeFlush(edge.node)
    if (pending !== undefined) await pending
  }
  // What was kept from the disk is not stable, should flushes be let through later.
  if (node.noFlush) return
  node.flushedGeneration = Math.max(node.flushedGeneration, generation)
}
