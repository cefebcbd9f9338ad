/**
 * Operation blockers: reasons why a command may not touch a node.
 *
 * Invariants:
 * - A reason is an object; only the one who put it there takes it away.
 * - Blockers stop commands that ask; they stop neither I/O nor the graph's own edits.
 */
import { BlockError } from '../util/errors.ts'

/** The operations that can be blocked. */
export const BLOCKABLE_OPS = [
  'backup-source',
  'backup-target',
  'change',
  'commit-source',
  'commit-target',
  'dataplane',
  'drive-del',
  'eject',
  'external-snapshot',
  'internal-snapshot',
  'internal-snapshot-delete',
  'mirror-source',
  'mirror-target',
  'resize',
  'stream',
  'replace',
] as const

/** One of them. */
export type BlockableOp = (typeof BLOCKABLE_OPS)[number]

/** A reason; identity matters, not its words. */
export interface BlockReason {
  /** Continues the sentence "Node 'x' is busy: …". */
  readonly message: string
}

/** The blockers of one node. */
export class OpBlockers {
  readonly #reasons = new Map<BlockableOp, BlockReason[]>()

  /** Blocks every operation except those named. */
  blockAll(reason: BlockReason, except: readonly BlockableOp[] = []): void {
    for (const op of BLOCKABLE_OPS) if (!except.includes(op)) this.block(op, reason)
  }

  /** Blocks one operation. */
  block(op: BlockableOp, reason: BlockReason): void {
    const list = this.#reasons.get(op) ?? []
    list.unshift(reason)
    this.#reasons.set(op, list)
  }

  /** Takes this reason away everywhere. */
  unblockAll(reason: BlockReason): void {
    for (const [op, list] of this.#reasons) {
      const rest = list.filter((r) => r !== reason)
      if (rest.length === 0) this.#reasons.delete(op)
      else this.#reasons.set(op, rest)
    }
  }

  /** Takes this reason away from one operation. */
  unblock(op: BlockableOp, reason: BlockReason): void {
    const rest = (this.#reasons.get(op) ?? []).filter((r) => r !== reason)
    if (rest.length === 0) this.#reasons.delete(op)
    else this.#reasons.set(op, rest)
  }

  /** The newest reason against an operation. */
  reason(op: BlockableOp): BlockReason | undefined {
    return this.#reasons.get(op)?.[0]
  }

  /** No blocker at all. */
  get empty(): boolean {
    return this.#reasons.size === 0
  }

  /** Throws EBUSY when the operation is blocked. */
  check(op: BlockableOp, nodeName: string): void {
    const reason = this.reason(op)
    if (reason === undefined) return
    throw new BlockError('EBUSY', `Node '${nodeName}' is busy: ${reason.message}`, {
      node: nodeName,
      op,
    })
  }
}
