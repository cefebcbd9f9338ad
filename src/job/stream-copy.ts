/**
 * The copying of a stream: goes through a disk piece by piece and has each piece that is missing
 * copied, by workers where they can reach every image, else through the filter over the disk.
 *
 * Invariants:
 * - Nobody writes a range while it is copied: the filter over the disk holds it.
 * - Nothing that a reader sees changes, also where an image in between is shorter than the others.
 * - Whole clusters of the disk only, so that no reader meets a cluster that is filled in part.
 * - Progress is what is done from the start without a gap: a job that stops at an error stands at it.
 */
import type { BlockBackend } from '../block/backend.ts'
import type { ClusterCopier } from '../block/cluster-copier.ts'
import { copyUp } from '../block/copy-up.ts'
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import { chainStatus } from '../block/status.ts'
import { asBlockError, type BlockError } from '../util/errors.ts'
import type { WorkerBody } from './body.ts'
import { ClusterCrew } from './cluster-crew.ts'
import { describeCopy } from './describe.ts'
import type { Job } from './job.ts'
import { Lanes } from './lanes.ts'
import { errorAction, type OnError } from './policy.ts'
import type { WorkerPool } from './pool.ts'
import { ZERO_BLOCK_BYTES } from './zeroes.ts'

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

/** A piece in whole clusters of the disk. */
interface Piece {
  readonly offset: number
  readonly bytes: number
  /**
   * `missing`: something of it lies in the images that are streamed. `covered`: one of them ends
   * before it, and without them what is below the bottom would show there. Zeroes that show there
   * already count for nothing with a format, so they have to be written as data.
   */
  readonly kind: 'there' | 'missing' | 'covered'
}

/** The piece at the start of a range. */
async function nextPiece(images: StreamImages, at: number, want: number): Promise<Piece> {
  const cover = coverOf(images)
  const within = at < cover ? Math.min(want, cover - at) : want
  const { bytes, missing, own } = await nextRun(images, at, within)
  if (at + bytes > cover && !own) return { offset: at, bytes, kind: 'covered' }
  return { offset: at, bytes, kind: missing ? 'missing' : 'there' }
}

/** From where on a short image hides what is below the bottom. */
function coverOf({ layer, bottom }: StreamImages): number {
  const base = bottom?.chainNext
  if (base === undefined) return Number.POSITIVE_INFINITY
  let cover = layer.length()
  for (let node = layer.chainNext; node !== undefined && node !== base; node = node.chainNext)
    cover = Math.min(cover, node.length())
  return cover < base.length() ? cover : Number.POSITIVE_INFINITY
}

interface Run {
  readonly bytes: number
  /** Something of it lies in the images that are streamed. */
  readonly missing: boolean
  /** All of it lies in the disk itself. */
  readonly own: boolean
}

/**
 * The run at the start of a range, in whole clusters of the disk, and whether anything of it is to be
 * copied: an image below may have smaller clusters, or end within a cluster.
 */
async function nextRun({ layer, bottom }: StreamImages, at: number, want: number): Promise<Run> {
  const unit = layer.driver?.limits.clusterSize ?? 1
  const length = layer.length()
  const whole = (end: number): number => Math.min(length, Math.ceil(end / unit) * unit) - at
  const base = bottom?.chainNext
  const first = await chainStatus(layer, base, at, want)
  const own = first.depth === 0
  if (first.depth > 0) return { bytes: whole(at + first.bytes), missing: true, own }
  if (at + first.bytes === length) return { bytes: first.bytes, missing: false, own }
  if (first.bytes >= unit) return { bytes: first.bytes - (first.bytes % unit), missing: false, own }
  const bytes = whole(at + 1)
  for (let done = first.bytes; done < bytes; ) {
    const rest = await chainStatus(layer, base, at + done, bytes - done)
    if (rest.depth > 0) return { bytes, missing: true, own: false }
    done += rest.bytes
  }
  return { bytes, missing: false, own: false }
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

/** A piece in the order of the disk. */
interface Turn {
  readonly bytes: number
  state: 'begun' | 'done' | 'failed'
  /** Called when everything before it is done, or one of them failed. */
  wake: (() => void) | undefined
}

/** Counts pieces as done, and lets their errors be heard, in the order of the disk. */
class Order {
  readonly #job: Job
  readonly #turns: Turn[] = []

  constructor(job: Job) {
    this.#job = job
  }

  /** Begins a piece. */
  begin(bytes: number): Turn {
    const turn: Turn = { bytes, state: 'begun', wake: undefined }
    this.#turns.push(turn)
    return turn
  }

  /** The piece has ended. After one that failed nothing counts any more. */
  end(turn: Turn, state: 'done' | 'failed'): void {
    turn.state = state
    for (let first = this.#turns[0]; first?.state === 'done'; first = this.#turns[0]) {
      this.#turns.shift()
      this.#job.current += first.bytes
    }
    const [first] = this.#turns
    if (first?.state === 'failed') for (const later of this.#turns) later.wake?.()
    else first?.wake?.()
  }

  /** Waits until everything before the piece has ended; answers whether all of that is done. */
  async reached(turn: Turn): Promise<boolean> {
    if (this.#turns[0]?.state === 'begun' && this.#turns[0] !== turn)
      await new Promise<void>((resolve) => (turn.wake = resolve))
    return this.#turns[0] === turn
  }
}

function holderOf(filter: BlockNode): RangeHolder {
  const driver = filter.needDriver()
  if ('holdRange' in driver) return driver as RangeHolder & typeof driver
  throw new Error(`assertion failed: node '${filter.name}' holds ranges`)
}
