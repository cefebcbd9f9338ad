/**
 * Who copies old data for a copy-before-write filter: the filter itself, or a worker for it.
 *
 * Invariants:
 * - A copier is asked only for ranges that are claimed, so no two copies of one cluster overlap.
 */

/** Copies a claimed, cluster-aligned range from the source to the target. */
export interface ClusterCopier {
  /** Errors: whatever kept the copy from being complete. */
  copy(offset: number, bytes: number): Promise<void>
}
