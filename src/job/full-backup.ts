/**
 * Backup with `sync=full`, `top` or `bitmap`: the target becomes the source as it was when the job began.
 *
 * Invariants:
 * - Every cluster is copied once, by the job or before the first write to it, whoever comes first.
 * - At a pause point no copy of the job is on its way.
 */
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import { isAllocatedAbove } from '../block/status.ts'
import { asBlockError, type BlockError } from '../util/errors.ts'
import type { BitmapPart } from './backup-bitmap.ts'
import type { CopyBeforeWriteFilter } from './cbw.ts'
import type { Job } from './job.ts'
import { Lanes } from './lanes.ts'
import { errorAction, type OnError } from './policy.ts'

/** Bytes copied at a time, at least a cluster. */
const PIECE_BYTES = 1024 * 1024
/** The same on a large disk whose guest keeps still: nobody waits behind such a piece. */
const QUIET_PIECE_BYTES = 4 * 1024 * 1024
/** A guest whose write had to wait counts as awake for so many pieces. */
const AWAKE_PIECES = 512
/** From this length on a disk is large. */
const LARGE_BYTES = 256 * 1024 * 1024

/** What a full backup works on. */
export interface FullBackupPlan {
  readonly graph: BlockGraph
  readonly source: BlockNode
  readonly filter: CopyBeforeWriteFilter
  readonly sync: 'full' | 'top' | 'bitmap'
  /** The bitmap that decides what is copied, or only hears of it. */
  readonly part: BitmapPart | undefined
  /** Workers that copy; 0 = the filter copies by itself. */
  readonly workers: number
  /** What was copied is discarded in the source. */
  readonly discardSource: boolean
  /** Told of bytes that need no copy. */
  readonly skip: (bytes: number) => void
  readonly onSourceError: OnError
  readonly onTargetError: OnError
}

interface Piece {
  readonly offset: number
  readonly bytes: number
}

/** Copies everything that `sync` asks for; returns early when the job is cancelled. */
export async function copyEverything(job: Job, plan: FullBackupPlan): Promise<void> {
  const length = plan.source.length()
  const { clusterSize } = plan.filter
  const lanes = new Lanes(job, plan.graph.ctx, plan.workers)
  let held = 0
  let awake = 0
  const pieceBytes = (): number => {
    const { writesHeld } = plan.filter.counters
    awake = writesHeld === held ? Math.max(0, awake - 1) : AWAKE_PIECES
    held = writesHeld
    lanes.guestWaits = awake > 0
    const quiet = awake === 0 && length >= LARGE_BYTES && plan.workers > 0
    return Math.max(quiet ? QUIET_PIECE_BYTES : PIECE_BYTES, clusterSize)
  }
  try {
    for (let at = 0; at < length && !job.forceCancelled; ) {
      // A limited job goes cluster by cluster, so that it moves evenly and stops soon.
      const unit = job.speed === 0 ? pieceBytes() : clusterSize
      const piece = { offset: at, bytes: Math.min(unit, length - at) }
      at += piece.bytes
      if (await wanted(plan, piece))
        await lanes.run(piece.bytes, () => copyPiece(job, plan, lanes, piece))
      else {
        plan.skip(piece.bytes)
        await lanes.rest()
      }
    }
  } finally {
    await lanes.end()
  }
}

/** Whether the top layer holds anything of the range, when only that is asked for. */
async function wanted(plan: FullBackupPlan, { offset, bytes }: Piece): Promise<boolean> {
  const below = plan.source.chainNext
  if (plan.sync === 'bitmap') return plan.part?.wants(offset, bytes) === true
  if (plan.sync === 'full' || below === undefined) return true
  for (let at = offset; at < offset + bytes; ) {
    const run = await isAllocatedAbove(plan.source, below, at, offset + bytes - at)
    if (run.allocated) return true
    at += run.bytes
  }
  return false
}

async function copyPiece(
  job: Job,
  plan: FullBackupPlan,
  lanes: Lanes,
  piece: Piece,
): Promise<void> {
  while (!job.forceCancelled) {
    try {
      await plan.filter.copyOut(piece.offset, piece.bytes)
      plan.part?.copied(piece.offset, piece.bytes)
      if (plan.discardSource) await plan.filter.discardSource(piece.offset, piece.bytes)
      return
    } catch (thrown) {
      await lanes.inTrouble(() => retry(job, plan, asBlockError(thrown)))
    }
  }
}

async function retry(job: Job, plan: FullBackupPlan, error: BlockError): Promise<void> {
  if (plan.filter.lost !== undefined) throw error
  const operation = error.context.op === 'read' ? 'read' : 'write'
  const policy = operation === 'read' ? plan.onSourceError : plan.onTargetError
  // The other pieces on their way end first: a job rests with nothing in flight.
  if (errorAction(policy, error) === 'stop') await plan.filter.whenIdle()
  await job.handleError(error, policy, operation)
}
