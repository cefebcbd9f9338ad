/**
 * The names of what a format driver is about to do, told to a blkdebug node right below it.
 *
 * Invariants:
 * - Telling costs nothing but a look where no blkdebug node is below.
 */
import type { BlockChild } from '../block/child.ts'

/** A driver that listens to events. */
export interface DebugListener {
  /** The driver above is about to do what `event` names (`read_aio`, `l2_update` …). */
  debugEvent(event: string): void
}

/** Tells the node below, if it listens. */
export function raiseDebugEvent(child: BlockChild, event: string): void {
  const driver = child.node.driver
  if (driver !== undefined && 'debugEvent' in driver) (driver as DebugListener).debugEvent(event)
}
