/**
 * Edges of the graph: who uses which node, as what, and with which permissions.
 *
 * Invariants:
 * - For any two edges a, b to one node, `b.perm` lies within `a.shared` whenever no update is running.
 * - `quiescedParent` is true exactly while this edge holds its owner quiesced.
 * - Only the graph moves `node`.
 */
import type { MaybePromise, Pending } from '../coroutine/coroutine.ts'
import { nodeDiscard } from './discard.ts'
import type { BlockStatus, ChildRole } from './driver.ts'
import { nodeFlush } from './flush.ts'
import type { BlockNode } from './node.ts'
import { nodeRead, nodeWrite, nodeWriteZeroes } from './request.ts'
import { nodeStatus } from './status.ts'

/** Whoever owns an edge: a node, a backend or a job. */
export interface EdgeOwner {
  /** What it is; a job's edges never move. */
  readonly ownerKind: 'node' | 'backend' | 'job'
  /** The node's name, the backend's, the job's id; may be empty. */
  readonly name: string
  /** How messages name it, such as `node 'a'`. */
  readonly ownerDescription: string
  /** A backend that reads for a job over its own filter: it does not count as a user of the node. */
  readonly readsForJob?: boolean
  /** What it uses, the oldest edge first; jobs answer, of the others the graph knows it. */
  edges?(): readonly BlockChild[]
  /** The child became quiesced: stop sending requests. Must not wait and must not edit the graph. */
  drainedBegin(edge: BlockChild): void
  /** Whether requests may still be on their way to the child. */
  drainedPoll(edge: BlockChild): boolean
  /** The child is open again. */
  drainedEnd(edge: BlockChild): void
}

/** One edge. */
export class BlockChild {
  /** Name within the owner: `file`, `backing`, `children.0`, `root` … */
  readonly name: string
  /** How the owner uses the node. */
  readonly role: ChildRole
  /** Who uses it. */
  readonly owner: EdgeOwner
  /** The node used; moved by the graph only. */
  node: BlockNode
  /** `PERM` bits taken. */
  perm = 0
  /** `PERM` bits tolerated in others. */
  shared = 0
  /** This edge holds its owner quiesced. */
  quiescedParent = false
  /** The edge may not be moved or cut. */
  frozen = false
  /** How many rely on the disk it leads to: filters may come between, another disk may not. */
  pins = 0

  constructor(owner: EdgeOwner, node: BlockNode, name: string, role: ChildRole) {
    this.owner = owner
    this.node = node
    this.name = name
    this.role = role
  }

  /** Length of the node in bytes. */
  length(): number {
    return this.node.length()
  }

  /** Fills `buf` from `offset`; what lies beyond the end reads as zeroes. */
  pread(offset: number, buf: Uint8Array): Pending {
    return nodeRead(this.node, offset, buf)
  }

  /** Writes `buf`; beyond the end only with RESIZE. Errors: EPERM, EIO, the driver's own. */
  pwrite(offset: number, buf: Uint8Array, flags = 0): Pending {
    return nodeWrite(this.node, this, offset, buf, flags)
  }

  /** Makes a range read as zeroes. */
  pwriteZeroes(offset: number, bytes: number, flags = 0): Pending {
    return nodeWriteZeroes(this.node, this, offset, bytes, flags)
  }

  /** Gives a range up; does nothing where the node ignores discards. */
  pdiscard(offset: number, bytes: number): Pending {
    return nodeDiscard(this.node, this, offset, bytes)
  }

  /** Makes every completed write stable. */
  flush(): Pending {
    return nodeFlush(this.node)
  }

  /** What this node says of the start of the range. */
  blockStatus(offset: number, bytes: number): MaybePromise<BlockStatus> {
    return nodeStatus(this.node, offset, bytes)
  }
}
