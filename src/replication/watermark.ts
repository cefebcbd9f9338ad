/**
 * The warning that a hidden disk fills up.
 *
 * Invariants:
 * - It is sent once between two checkpoints, at the write that passes the mark.
 */
import type { BlockNode } from '../block/node.ts'

/** What is looked at. */
interface Watched {
  /** The replication node. */
  readonly node: BlockNode
  readonly epoch: number
}

/** Tells when the hidden disk holds `mark` bytes or more; 0 = never. The answer stops it. */
export function watchHidden(one: Watched, hidden: BlockNode, mark: number): () => void {
  if (mark === 0) return () => undefined
  let epoch = one.epoch
  let held = 0
  let warned = false
  const heard = (_offset: number, bytes: number): void => {
    if (one.epoch !== epoch) {
      epoch = one.epoch
      held = 0
      warned = false
    }
    held += bytes
    if (warned || held < mark) return
    warned = true
    const about = { 'node-name': one.node.name, bytes: held, watermark: mark }
    one.node.graph.events.emit('REPLICATION_HIDDEN_WATERMARK', about)
  }
  hidden.writeListeners.add(heard)
  return () => void hidden.writeListeners.delete(heard)
}
