/**
 * Changes of stage, told to everybody who listens.
 *
 * Invariants:
 * - Each change is told once, when it has happened.
 */
import type { BlockNode } from '../block/node.ts'
import type { ReplicationMode, Stage } from './stage.ts'

/** Sends `REPLICATION_STATE_CHANGE`. */
export function announceStage(
  node: BlockNode,
  mode: ReplicationMode,
  stage: Stage,
  error?: string,
): void {
  node.graph.events.emit('REPLICATION_STATE_CHANGE', {
    'node-name': node.name,
    mode,
    stage,
    ...(error === undefined ? {} : { error }),
  })
}
