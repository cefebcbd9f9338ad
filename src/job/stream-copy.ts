/**
 * The copying of a stream: goes through a disk piece by piece and has each piece that is missing
 * copied, by workers where they can reach every image, else through the filter over the disk.
 *
 * Invariants:
 * - Nobody writes a range while it is copied: the filter over the disk holds it.
 * - Which pieces there are, and in which order they count, is decided elsewhere (`stream-pieces`, `order`).
 */
import type { BlockBackend } from '../block/backend.ts'
import type { ClusterCopier } from '../block/cluster-copier.ts'
import { copyUp } from '../block/copy-up.ts'
import type { BlockNode } from '../block/node.ts'
import { asBlockError, type BlockError } from '../util/errors.ts'
import type { WorkerBody } from './body.ts'
import { ClusterCrew } from './cluster-crew.ts'
import { describeCopy } from './describe.ts'
import type { Job } from './job.ts'
import { Lanes } from './lanes.ts'
import { Order, type Turn } from './order.ts'
import { errorAction, type OnError } from './policy.ts'
import type { WorkerPool } from './pool.ts'
import { nextPiece, type Piece, type StreamImages } from './stream-pieces.ts'
import { ZERO_BLOCK_BYTES } from './zeroes.ts'

/** Who copies pieces of a stream. */
export interface StreamCopier extends ClusterCopier {
  /** Most bytes of one piece. */
  readonly pieceBytes: number
  /** The threads' handles; none where the main thread copies. */
  readonly bodies: readonly WorkerBody[]
  /** Why nothing more can be copied, when a thread died. */
  readonly death: BlockError | undefined
  /** Ends it; nothing is being copied any more. */
  finish(): Promise<void>
}

/** The filter's own surface. */
interface RangeHolder {
  holdRange(offset: number, bytes: number, work: () => Promise<void>): Promise<void>
}

/** Workers copy, while the filter holds the range. */
class CrewCopier implements StreamCopier {
  readonly pieceBytes: number = 1024 * 1024
  readonly #crew: ClusterCrew
  readonly #holder: RangeHolder

  constructor(crew: ClusterCrew, filter: BlockNode) {
    this.#crew = crew
    this.#holder = holderOf(filter)
  }

  get bodies(): readonly WorkerBody[] {
    return this.#crew.bodies
  }

  get death(): BlockError | undefined {
    return this.#crew.death
  }

  copy(offset: number, bytes: number): Promise<void> {
    return this.#holder.holdRange(offset, bytes, () => this.#crew.copy(offset, bytes))
  }

  finish(): Promise<void> {
    return this.#crew.finish()
  }
}

/** Reading through the filter copies. */
class ReadCopier implements StreamCopier {
  readonly pieceBytes: number = 512 * 1024
  readonly bodies: readonly WorkerBody[] = []
  readonly death = undefined
  readonly #reader: BlockBackend
  readonly #spare: Uint8Array[] = []

  constructor(reader: BlockBackend) {
    this.#reader = reader
  }

  async copy(offset: number, bytes: number): Promise<void> {
    const spare = this.#spare.pop()
    // A cluster may be larger than a piece. What was read is of no use here: nothing needs zeroing.
    const whole =
      spare !== undefined && spare.length >= bytes ? spare : Buffer.allocUnsafeSlow(bytes)
    try {
      await this.#reader.pread(offset, whole.subarray(0, bytes))
    } finally {
      this.#spare.push(whole)
    }
  }

  async finish(): Promise<void> {}
}

/** Who copies: workers where they can reach every image. */
export async function streamCopier(
  pool: WorkerPool | undefined,
  images: StreamImages,
  { reader, speed }: { readonly reader: BlockBackend; readonly speed: number },
): Promise<StreamCopier> {
  const crew = pool === undefined ? undefined : await startCrew(pool, images, speed)
  return crew === undefined ? new ReadCopier(reader) : new CrewCopier(crew, images.filter)
}

async function startCrew(
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

/** What `streamAll` works on. */
export interface StreamCopyPlan extends StreamImages {
  readonly copier: StreamCopier
  readonly onError: OnError
}

/** Copies what lies below the disk; returns early when the job is cancelled. */
export async function streamAll(job: Job, plan: StreamCopyPlan): Promise<void> {
  const { graph, layer, copier } = plan
  const length = layer.length()
  const lanes = new Lanes(job, graph.ctx, copier.bodies.length)
  const order = new Order(job)
  const errors: BlockError[] = []
  try {
    for (let at = 0; at < length && !job.forceCancelled; ) {
      const want = Math.min(copier.pieceBytes, length - at)
      const piece = await nextPiece(plan, at, want)
      const turn = order.begin(piece.bytes)
      at += piece.bytes
      if (piece.kind !== 'there') {
        await lanes.run(piece.bytes, async () => {
          let state: Turn['state'] = 'failed'
          try {
            const reached = (): Promise<boolean> => order.reached(turn)
            if (await copyPiece(job, plan, piece, { lanes, reached, errors })) state = 'done'
          } finally {
            order.end(turn, state)
          }
        })
      } else {
        order.end(turn, 'done')
        await lanes.rest()
      }
    }
  } finally {
    await lanes.end()
  }
  const [first] = errors
  if (first !== undefined && !job.forceCancelled) throw first
}

/** Answers whether the piece is done; it is not when the job ends before. */
async function copyPiece(
  job: Job,
  plan: StreamCopyPlan,
  piece: Piece,
  { lanes, reached, errors }: PieceTroubles,
): Promise<boolean> {
  const { copier, onError } = plan
  while (!job.forceCancelled) {
    try {
      await copyOnce(plan, piece)
      return true
    } catch (thrown) {
      const error = asBlockError(thrown)
      if (copier.death !== undefined) throw copier.death
      if (!(await reached())) return false
      await lanes.inTrouble(() => job.handleError(error, onError, 'read'))
      if (errorAction(onError, error) !== 'ignore') continue
      errors.push(error)
      return true
    }
  }
  return false
}

function copyOnce({ copier, filter, layer }: StreamCopyPlan, piece: Piece): Promise<void> {
  const { offset, bytes, kind } = piece
  if (kind !== 'covered') return copier.copy(offset, bytes)
  const shown = Buffer.allocUnsafeSlow(bytes)
  return holderOf(filter).holdRange(offset, bytes, () => copyUp(layer, offset, shown, true))
}

/** What a piece needs when it cannot be copied. */
interface PieceTroubles {
  readonly lanes: Lanes
  /** Waits for the pieces before it; answers whether they are all done. */
  readonly reached: () => Promise<boolean>
  /** Errors that the job lives with. */
  readonly errors: BlockError[]
}

function holderOf(filter: BlockNode): RangeHolder {
  const driver = filter.needDriver()
  if ('holdRange' in driver) return driver as RangeHolder & typeof driver
  throw new Error(`assertion failed: node '${filter.name}' holds ranges`)
}
