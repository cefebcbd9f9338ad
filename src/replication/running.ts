/**
 * What a secondary is made of while it runs.
 *
 * Invariants:
 * - It holds its disks by edges of its own, so none of them goes away under it.
 */
import type { BlockChild } from '../block/child.ts'
import type { BlockGraph } from '../block/graph.ts'
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
  /** Lets commands at the top node and at the links of the chain again. */
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

/**
 * Where writes to the secondary disk go: the disk itself, or what somebody put over it since the
 * start, as a backup of it does. Meaningful while nothing protects the disk any more.
 */
export function writableEnd({ disks, edges }: Running): BlockNode {
  return edges.find((edge) => edge.name === 'secondary disk')?.node ?? disks.secondary
}

/** Lets go of what a start took, but the protection. Inside a drained section. */
export function dropHold(running: Running, graph: BlockGraph): void {
  running.unwatch()
  running.unblock()
  for (const edge of running.edges) graph.detach(edge)
}

/** Makes read-only again what was so before the start. */
export async function restoreReadOnly(running: Running, graph: BlockGraph): Promise<void> {
  for (const disk of running.readOnlyBefore) {
    if (disk.driver === undefined) continue
    try {
      await graph.setReadOnly(disk, true)
    } catch {
      // Somebody writes to it now; it stays writable for them.
    }
  }
}

/** Makes the secondary disk stable: old data may be dropped only when the new are as safe. */
export async function settleDisk({ disks, edges }: Running): Promise<void> {
  if (!outlivesUs(disks.hidden)) return
  for (const edge of edges) {
    const pending = edge.name === 'secondary disk' ? edge.flush() : undefined
    if (pending !== undefined) await pending
  }
}
