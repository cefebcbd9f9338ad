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
import { errorAction, type OnError } from './policy.ts'
import { RateLimit } from './rate-limit.ts'

/** Bytes copied at a time, at least a cluster. */
const PIECE_BYTES = 1024 * 1024
/** Pieces on their way at a time: enough to keep a worker busy while the main thread turns. */
const LANES = 4

/** What a full backup works on. */
export interface FullBackupPlan {
  readonly graph: BlockGraph
  readonly source: BlockNode
  readonly filter: CopyBeforeWriteFilter
  readonly sync: 'full' | 'top' | 'bitmap'
  /** The bitmap that decides what is copied, or only hears of it. */
  readonly part: BitmapPart | undefined
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
  const rate = new RateLimit()
  const { clock } = plan.graph.ctx
  const length = plan.source.length()
  for (let at = 0; at < length && !job.forceCancelled; ) {
    const batch: Piece[] = []
    // A limited job goes cluster by cluster, so that it moves evenly and stops soon.
    const lanes = job.speed === 0 ? LANES : 1
    const { clusterSize } = plan.filter
    const unit = job.speed === 0 ? Math.max(PIECE_BYTES, clusterSize) : clusterSize
    while (at < length && batch.length < lanes) {
      const bytes = Math.min(unit, length - at)
      if (await wanted(plan, at, bytes)) batch.push({ offset: at, bytes })
      else plan.skip(bytes)
      at += bytes
    }
    const results = await Promise.allSettled(batch.map((piece) => copyPiece(job, plan, piece)))
    for (const result of results) if (result.status === 'rejected') throw result.reason
    let copied = 0
    for (const piece of batch) copied += piece.bytes
    rate.setSpeed(job.speed)
    const delayMs = rate.delay(copied, clock.nowMs())
    if (delayMs > 0) await pause(job, plan.graph, delayMs)
    await job.pausePoint()
  }
}

/** Waits for the rate limit; ends early when the job is kicked. */
async function pause(job: Job, graph: BlockGraph, ms: number): Promise<void> {
  const sleep = graph.ctx.wakeableSleep(ms)
  await job.waitKick(sleep.done)
  sleep.wake()
}

/** Whether the top layer holds anything of the range, when only that is asked for. */
async function wanted(plan: FullBackupPlan, offset: number, bytes: number): Promise<boolean> {
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

async function copyPiece(job: Job, plan: FullBackupPlan, piece: Piece): Promise<void> {
  while (!job.forceCancelled) {
    try {
      await plan.filter.copyOut(piece.offset, piece.bytes)
      plan.part?.copied(piece.offset, piece.bytes)
      return
    } catch (thrown) {
      await retry(job, plan, asBlockError(thrown))
    }
  }
}

async function retry(job: Job, plan: FullBackupPlan, error: BlockError): Promise<void> {
  if (plan.filter.lost !== undefined) throw error
  const operation = error.context.op === 'read' ? 'read' : 'write'
  const policy = operation === 'read' ? plan.onSourceError : plan.onTargetError
  // The other pieces of the batch end first: a job rests with nothing on its way.
  if (errorAction(policy, error) === 'stop') await plan.filter.whenIdle()
  await job.handleError(error, policy, operation)
}
