/**
 * What replication needs of jobs: a protection that saves old data, and a merge.
 *
 * Invariants:
 * - A protection belongs to the replication node that asked for it: when its worker dies the filter
 *   stays, and writes that need it fail instead of passing unprotected.
 * - A merge ends exactly once, and says how.
 */
import type { BlockNode } from '../block/node.ts'
import type { BlockError } from '../util/errors.ts'

/** Copy-before-write from a secondary disk into its hidden disk. */
export interface Protection {
  /** The filter over the secondary disk; users of the disk were moved onto it. */
  readonly filter: BlockNode
  /** Why writes are refused now, when the protection was lost. */
  readonly lost: BlockError | undefined
  /** Bytes saved since the last checkpoint. */
  readonly copiedBytes: number
  /** Copies that failed, each with the write that needed it. */
  readonly copyFailures: number
  /**
   * Waits until nothing is being saved, and re-arms a lost protection for the epoch that still runs.
   * Inside a drained section only. Errors: those of starting the job again; nothing changed then.
   */
  arm(): Promise<void>
  /** Every cluster counts as not saved again: the new epoch. Right after `arm`; cannot fail. */
  reset(): void
  /** Takes the filter away. */
  remove(): Promise<void>
}

/** A merge of the active disk into the secondary disk. */
export interface Merge {
  /** Fulfilled at the end with the failure, or undefined when everything was merged. */
  readonly ended: Promise<BlockError | undefined>
  /** Stops it; what was merged stays merged. Resolves after `ended`. */
  cancel(): Promise<void>
}

/** The two things replication has done for it. */
export interface ReplicationMachinery {
  /**
   * Starts saving old data of `source` in `target`. What was saved is stable before a flush of
   * `source` ends; with `strict` it is in its file before the write that needed it begins.
   */
  protect(source: BlockNode, target: BlockNode, strict?: boolean): Promise<Protection>
  /** Starts merging everything above `base` into it; at the end users of `top` use `base`. */
  merge(top: BlockNode, base: BlockNode): Promise<Merge>
}
