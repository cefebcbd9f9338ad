/**
 * What jobs and replication know of a copy-before-write filter.
 *
 * Invariants:
 * - A node qualifies by what its driver can do, so this room needs no driver's file.
 */
import type { ClusterCopier } from '../block/cluster-copier.ts'
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import type { DirtyBitmap } from '../sync/dirty-bitmap.ts'
import { BlockError } from '../util/errors.ts'

/** The filter's own surface; see the driver for each member. */
export interface CopyBeforeWriteFilter {
  readonly clusterSize: number
  readonly lost: BlockError | undefined
  readonly counters: {
    readonly epochBytes: number
    readonly totalBytes: number
    readonly failures: number
    readonly inFlight: number
    readonly writesHeld: number
  }
  setCopier(copier: ClusterCopier | undefined): void
  loseProtection(cause: BlockError): void
  rearm(copier?: ClusterCopier): void
  copyOut(offset: number, bytes: number): Promise<void>
  discardSource(offset: number, bytes: number): Pending
  keepOrder(saved: (() => Pending) | undefined): void
  keepOnly(dirty: DirtyBitmap): void
  whenIdle(): Promise<void>
  resetAll(): void
  checkpoint(): Promise<void>
}

function isFilter(driver: object): driver is CopyBeforeWriteFilter {
  return 'loseProtection' in driver && 'resetAll' in driver && 'setCopier' in driver
}

/** The filter of a node. Error (EINVAL): the node is none. */
export function copyBeforeWriteOf(node: BlockNode): CopyBeforeWriteFilter {
  const driver = node.needDriver()
  if (isFilter(driver)) return driver
  throw new BlockError('EINVAL', `Node '${node.name}' is no copy-before-write filter`)
}

/** How a filter is put over a disk. */
export interface CopyBeforeWriteOptions {
  /** Its name; default: an invented one. */
  readonly nodeName?: string | undefined
  /** What it saves is written compressed. */
  readonly compress?: boolean | undefined
  /** The job will discard what it copied. */
  readonly discardSource?: boolean | undefined
}

/** Puts a filter over `source` that copies to `target`; the caller holds its reference. */
export function insertCopyBeforeWrite(
  graph: BlockGraph,
  source: BlockNode,
  target: BlockNode,
  { nodeName, compress, discardSource }: CopyBeforeWriteOptions = {},
): Promise<BlockNode> {
  return graph.insertFilter(
    {
      driver: 'copy-before-write',
      file: source.name,
      target: target.name,
      'read-only': source.readOnly,
      ...(compress === true ? { compress } : {}),
      ...(discardSource === true ? { 'discard-source': true } : {}),
      ...(nodeName === undefined ? {} : { 'node-name': nodeName }),
    },
    source,
  )
}
