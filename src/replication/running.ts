/**
 * What a secondary is made of while it runs.
 *
 * Invariants:
 * - It holds its disks by edges of its own, so none of them goes away under it.
 */
import type { BlockChild } from '../block/child.ts'
import type { BlockNode } from '../block/node.ts'
import { outlivesUs } from './buffers.ts'
import type { Protection } from './machinery.ts'
import type { SecondaryDisks } from './topology.ts'

/** What a running secondary holds. */
export interface Running {
  readonly disks: SecondaryDisks
  readonly edges: readonly BlockChild[]
  /** Disks that were read-only before the start. */
  readonly readOnlyBefore: readonly BlockNode[]
  readonly unblock: () => void
  /** Stops looking at how full the hidden disk gets. */
  readonly unwatch: () => void
  protection: Protection | undefined
}

/** How a secondary is. */
export interface SecondaryOptions {
  /** Name of the node at the top of the disk. */
  readonly topId: string
  /** Bytes in the hidden disk that are worth a warning; 0 = never. */
  readonly watermark: number
  /** What is saved is in its file before the write that needed it. */
  readonly crashConsistent: boolean
}

/** Makes the secondary disk stable: old data may be dropped only when the new are as safe. */
export async function settleDisk({ disks, edges }: Running): Promise<void> {
  if (!outlivesUs(disks.hidden)) return
  for (const edge of edges) {
    const pending = edge.name === 'secondary disk' ? edge.flush() : undefined
    if (pending !== undefined) await pending
  }
}
