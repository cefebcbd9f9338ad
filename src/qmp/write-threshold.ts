/**
 * Write thresholds: one event when a node is written beyond an offset, for who grows its storage.
 *
 * Invariants:
 * - A threshold that was passed is gone: it must be set again.
 * - Setting one replaces the one before; a threshold of 0 is none.
 */
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'

interface Threshold {
  readonly bytes: number
  readonly heard: (offset: number, bytes: number) => void
}

const thresholds: WeakMap<BlockNode, Threshold> = new WeakMap()

/** The threshold of a node in bytes; 0 = none. */
export function writeThresholdOf(node: BlockNode): number {
  return thresholds.get(node)?.bytes ?? 0
}

/** Sets the threshold of a node in bytes; 0 takes it away. */
export function setWriteThreshold(graph: BlockGraph, node: BlockNode, bytes: number): void {
  drop(node)
  if (bytes === 0) return
  const heard = (offset: number, length: number): void => {
    const exceeded = offset + length - bytes
    if (exceeded <= 0) return
    drop(node)
    graph.events.emit('BLOCK_WRITE_THRESHOLD', {
      'node-name': node.name,
      'amount-exceeded': exceeded,
      'write-threshold': bytes,
    })
  }
  thresholds.set(node, { bytes, heard })
  node.writeListeners.add(heard)
}

function drop(node: BlockNode): void {
  const old = thresholds.get(node)
  if (old === undefined) return
  node.writeListeners.delete(old.heard)
  thresholds.delete(node)
}
