/**
 * The bodies of one job: one, or several in threads of their own that share the work.
 *
 * Invariants:
 * - Pause, cancel and a new speed reach every body before anybody waits for one of them.
 * - A round ends when every body's did. An error or a death of one ends the round of all.
 * - The bodies together keep the speed of the job.
 */
import type { DirtyBitmap } from '../sync/dirty-bitmap.ts'
import { PieceClaims } from '../sync/piece-claims.ts'
import { WorkerBody, type WorkerBodyOptions } from './body.ts'
import { type CopyGoal, type CopyOutcome, PIECE_BYTES, pieceBytes } from './copier.ts'
import type { JobBody } from './job-types.ts'
import type { WorkerPool } from './pool.ts'

/** Less than this is not worth the trouble of sharing. */
const SHARED_BYTES = 32 * 1024 * 1024
/** Less than this is copied before a thread that has yet to start would have begun. */
const NEW_THREAD_BYTES = 256 * 1024 * 1024
/** More threads than this win nothing: memory is the bound. */
const MOST_BODIES = 2

/** What decides how many bodies share a job. */
export interface TeamSize {
  /** Bytes to go through. */
  readonly bytes: number
  readonly options: WorkerBodyOptions
  /** Cluster size of the target in bytes; 0 = none. */
  readonly targetCluster: number
}

/**
 * How many bodies a job gets. Two overlap a read with a write also where the main thread does one
 * of them.
 */
export function teamSize(pool: WorkerPool, { bytes, options, targetCluster }: TeamSize): number {
  const { speed } = options
  // Two bodies that write parts of one cluster would undo each other's zeroes around them.
  if (targetCluster > PIECE_BYTES) return 1
  // A limited job is not made faster, only less even.
  if (speed > 0) return 1
  if (bytes < (pool.ready < MOST_BODIES ? NEW_THREAD_BYTES : SHARED_BYTES)) return 1
  return Math.min(pool.size, MOST_BODIES)
}

/** Starts bodies in threads of their own; fewer than asked for when the pool has not so many. */
export async function startBodies(
  pool: WorkerPool,
  each: readonly WorkerBodyOptions[],
): Promise<WorkerBody[]> {
  const starts = await Promise.allSettled(each.map((options) => WorkerBody.start(pool, options)))
  const bodies = starts.flatMap((start) => (start.status === 'fulfilled' ? [start.value] : []))
  const [first] = starts
  if (first?.status === 'rejected' && bodies.length === 0) throw first.reason
  const threads = new Set<number | undefined>()
  const kept: WorkerBody[] = []
  for (const body of bodies) {
    if (threads.has(body.threadId)) await body.finish()
    else kept.push(body)
    threads.add(body.threadId)
  }
  return kept
}

/** The bodies that copy what is dirty. */
export class BodyTeam implements JobBody {
  /** The bodies; at least one. */
  readonly bodies: readonly WorkerBody[]

  private constructor(bodies: readonly WorkerBody[]) {
    this.bodies = bodies
  }

  /** Starts up to `count` bodies on the same dirty ranges. */
  static async start(
    pool: WorkerPool,
    options: WorkerBodyOptions & { readonly dirty: DirtyBitmap },
    count: number,
  ): Promise<BodyTeam> {
    const { size, granularity } = options.dirty
    const pieces = Math.ceil(size / pieceBytes(granularity))
    const claims = count > 1 ? PieceClaims.create(pieces) : undefined
    const one = { ...options, claims }
    return new BodyTeam(await startBodies(pool, Array<WorkerBodyOptions>(count).fill(one)))
  }

  /** Bytes done by all. */
  get done(): number {
    return this.bodies.reduce((sum, body) => sum + body.done, 0)
  }

  /** Bytes that all together have taken and not yet done. */
  get inFlight(): number {
    return this.bodies.reduce((sum, body) => sum + body.words.inFlight, 0)
  }

  async pause(): Promise<void> {
    await Promise.all(this.bodies.map((body) => body.pause()))
  }

  resume(): void {
    for (const body of this.bodies) body.resume()
  }

  cancel(): void {
    for (const body of this.bodies) body.cancel()
  }

  setSpeed(bytesPerSecond: number): void {
    for (const body of this.bodies) body.setSpeed(Math.ceil(bytesPerSecond / this.bodies.length))
  }

  /** A round of all; rejects with the cause when a thread dies. */
  async copyDirty(goal: CopyGoal): Promise<CopyOutcome> {
    const rounds = this.bodies.map((body) => this.#round(body, goal))
    const ends = await Promise.allSettled(rounds)
    let outcome: CopyOutcome | undefined
    for (const end of ends) {
      if (end.status === 'rejected') throw end.reason
      if (outcome === undefined || rank(end.value) > rank(outcome)) outcome = end.value
    }
    return outcome ?? { kind: 'cancelled' }
  }

  /** Ends all and waits until their threads let go of everything. */
  async finish(): Promise<void> {
    await Promise.all(this.bodies.map((body) => body.finish()))
  }

  async #round(body: WorkerBody, goal: CopyGoal): Promise<CopyOutcome> {
    try {
      const outcome = await body.call<CopyOutcome>((api) => api.copyDirty(goal))
      if (outcome.kind === 'error') this.#recallOthers(body)
      return outcome
    } catch (thrown) {
      // The job is lost with this thread; a pause must not keep the others from ending.
      for (const other of this.bodies) if (other !== body) other.cancel()
      throw thrown
    }
  }

  #recallOthers(body: WorkerBody): void {
    for (const other of this.bodies) if (other !== body) other.recall()
  }
}

/** An error tells more than a cancel, a cancel more than a goal. */
function rank(outcome: CopyOutcome): number {
  if (outcome.kind === 'error') return 2
  return outcome.kind === 'cancelled' ? 1 : 0
}
