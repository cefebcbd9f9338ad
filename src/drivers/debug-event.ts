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

/** Somebody below waits for events: what may be left out otherwise is then done, so that they come. */
export function hearsDebugEvents(child: BlockChild): boolean {
  const { driver } = child.node
  return driver !== undefined && 'debugEvent' in driver
}

/** Every event that a rule of `blkdebug` can name. */
export const DEBUG_EVENTS: readonly string[] = [
  ...['l1_update', 'l1_grow_alloc_table', 'l1_grow_write_table', 'l1_grow_activate_table'],
  ...['l2_load', 'l2_update', 'l2_update_compressed', 'l2_alloc_cow_read', 'l2_alloc_write'],
  ...['read_aio', 'read_backing_aio', 'read_compressed', 'write_aio', 'write_compressed'],
  ...['vmstate_load', 'vmstate_save', 'cow_read', 'cow_write', 'reftable_load', 'reftable_grow'],
  ...['reftable_update', 'refblock_load', 'refblock_update', 'refblock_update_part'],
  ...['refblock_alloc', 'refblock_alloc_hookup', 'refblock_alloc_write'],
  ...['refblock_alloc_write_blocks', 'refblock_alloc_write_table', 'refblock_alloc_switch_table'],
  ...['cluster_alloc', 'cluster_alloc_bytes', 'cluster_free', 'flush_to_os', 'flush_to_disk'],
  ...['pwritev_rmw_head', 'pwritev_rmw_after_head', 'pwritev_rmw_tail', 'pwritev_rmw_after_tail'],
  ...['pwritev', 'pwritev_zero', 'pwritev_done', 'empty_image_prepare', 'l1_shrink_write_table'],
  ...['l1_shrink_free_l2_clusters', 'cor_write', 'cluster_alloc_space', 'none'],
]
