/**
 * The copying of a stream whose images workers can reach: the main thread holds each range against
 * guests and hands it out, workers copy it.
 *
 * Invariants:
 * - Nobody writes a range while a worker copies it: the filter over the disk holds it.
 * - Whole clusters of the disk only, so that no reader meets a cluster that is filled in part.
 */
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import { chainStatus } from '../block/status.ts'
import { asBlockError, type BlockError } from '../util/errors.ts'
import { ClusterCrew } from './cluster-crew.ts'
import { describeCopy } from './describe.ts'
import type { Job } from './job.ts'
import { Lanes } from './lanes.ts'
import { errorAction, type OnError } from './policy.ts'
import type { WorkerPool } from './pool.ts'
import { ZERO_BLOCK_BYTES } from './zeroes.ts'

/** Bytes handed out at a time. */
const PIECE_BYTES = 1024 * 1024

/** The filter's own surface. */
interface RangeHolder {
  holdRange(offset: number, bytes: number, work: () => Promise<void>): Promise<void>
}

/** The images of a stream. */
export interface StreamImages {
  readonly graph: BlockGraph
  /** Copies on read; sits over the disk. */
  readonly filter: BlockNode
  /** The image that is streamed into. */
  readonly layer: BlockNode
  /** The lowest image that is copied from; undefined = the whole chain. */
  readonly bottom: BlockNode | undefined
}

/** Starts workers for a stream; undefined where they cannot reach every image. */
export async function startStreamCrew(
  pool: WorkerPool,
  { layer, bottom }: StreamImages,
  speed: number,
): Promise<ClusterCrew | undefined> {
  const base = bottom?.chainNext
  // What is missing in a short image comes from below the bottom, which a worker does not see.
  for (let node = layer.chainNext; bottom !== undefined && node !== base; node = node?.chainNext)
    if ((node?.length() ?? 0) < layer.length()) return undefined
  const attached = describeCopy(layer, layer, { base, unit: ZERO_BLOCK_BYTES })
  if (attached === undefined) return undefined
  return ClusterCrew.start(pool, {
    ...attached,
    targetNode: layer,
    bytes: speed > 0 ? 0 : layer.length(),
    skipUnallocated: bottom !== undefined,
  })
}

/** What `streamByCrew` works on. */
export interface StreamCrewPlan extends StreamImages {
  readonly crew: ClusterCrew
  readonly onError: OnError
}

/** Copies what lies below the disk; returns early when the job is cancelled. */
export async function streamByCrew(job: Job, plan: StreamCrewPlan): Promise<void> {
  const { graph, layer, bottom, crew } = plan
  const length = layer.length()
  const unit = layer.driver?.limits.clusterSize ?? 1
  const lanes = new Lanes(job, graph.ctx, crew.bodies.length)
  const errors: BlockError[] = []
  try {
    for (let at = 0; at < length && !job.forceCancelled; ) {
      const base = bottom?.chainNext
      const status = await chainStatus(layer, base, at, Math.min(PIECE_BYTES, length - at))
      const { depth } = status
      // An image below may have smaller clusters, or end within a cluster.
      const end = Math.min(length, Math.ceil((at + status.bytes) / unit) * unit)
      const piece = { offset: at, bytes: end - at }
      at = end
      if (depth > 0 || piece.bytes > status.bytes) {
        await lanes.run(piece.bytes, () => copyPiece(job, plan, lanes, piece, errors))
      } else {
        job.current += piece.bytes
        await lanes.rest()
      }
    }
  } finally {
    await lanes.end()
  }
  const [first] = errors
  if (first !== undefined && !job.forceCancelled) throw first
}

async function copyPiece(
  job: Job,
  { crew, filter, onError }: StreamCrewPlan,
  lanes: Lanes,
  { offset, bytes }: { readonly offset: number; readonly bytes: number },
  errors: BlockError[],
): Promise<void> {
  const holder = holderOf(filter)
  while (!job.forceCancelled) {
    try {
      await holder.holdRange(offset, bytes, () => crew.copy(offset, bytes))
      break
    } catch (thrown) {
      const error = asBlockError(thrown)
      if (crew.death !== undefined) throw crew.death
      await lanes.inTrouble(() => job.handleError(error, onError, 'read'))
      if (errorAction(onError, error) !== 'ignore') continue
      errors.push(error)
      break
    }
  }
  job.current += bytes
}

function holderOf(filter: BlockNode): RangeHolder {
  const driver = filter.needDriver()
  if ('holdRange' in driver) return driver as RangeHolder & typeof driver
  throw new Error(`assertion failed: node '${filter.name}' holds ranges`)
}
