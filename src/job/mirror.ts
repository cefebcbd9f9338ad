/**
 * Copying a disk that is in use onto another until both are equal: the driver behind commit and
 * mirror jobs.
 *
 * Invariants:
 * - A guest's write makes its range dirty after it ended, so nothing written is ever missed.
 * - The last copy runs while the source is drained; only then are the disks equal, and only then
 *   does anybody move. It is small: the body copied until little was left or nothing more was won.
 * - A failure leaves the view above the filter as it was; what the target got stays there.
 */
import type { BlockBackend } from '../block/backend.ts'
import type { BlockChild } from '../block/child.ts'
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import type { DirtyBitmap } from '../sync/dirty-bitmap.ts'
import { asBlockError, BlockError, fromRecord, ioError } from '../util/errors.ts'
import type { WorkerBody } from './body.ts'
import type { CopyGoal } from './copier.ts'
import { describeDisks } from './describe.ts'
import { freezeChain, unfreezeChain } from './freeze.ts'
import type { JobEdges } from './host.ts'
import type { Job } from './job.ts'
import type { CopyMode, JobDriver, JobType } from './job-types.ts'
import { markWritten } from './mark-written.ts'
import type { OnError } from './policy.ts'
import type { WorkerPool } from './pool.ts'
import { BodyTeam, teamSize } from './team.ts'

/** What is left for the drained end may be this much: a few milliseconds of copying. */
const LAST_COPY_BYTES = 4 * 1024 * 1024
/** A guest that outruns this many passes is held while the rest is copied. */
const MOST_PASSES = 4

/** What a mirror works on. */
export interface MirrorPlan {
  readonly type: JobType
  readonly graph: BlockGraph
  readonly pool: WorkerPool
  /** Sits over `top` while the job lives; the caller's reference passes to the job. */
  readonly filter: BlockNode
  /** The disk that is copied. */
  readonly top: BlockNode
  /** Layers from here down need no copy; undefined = the whole chain is copied. */
  readonly base: BlockNode | undefined
  /** Reads `top`; closed by the job. */
  readonly source: BlockBackend
  /** Writes the target; closed by the job. */
  readonly target: BlockBackend
  /** What has to be copied; filled by `scan`. */
  readonly dirty: DirtyBitmap
  /** Marks what is to be copied at first. */
  readonly scan: (job: Job) => Promise<void>
  /** Once ready, a guest's write ends when it is on the target too; default false. */
  readonly writeBlocking?: boolean | undefined
  /** Complete as soon as the copy is complete. */
  readonly autoComplete: boolean
  /** Show the status `ready` in between; default true. */
  readonly showReady?: boolean | undefined
  /** Whose users move at the end; default the filter's. */
  readonly pivotFrom?: BlockNode | undefined
  /** Move them onto this node at the end; undefined = nobody moves. */
  readonly pivotTo: BlockNode | undefined
  /** Called drained, when the disks are equal and before the users move; may refuse. */
  readonly beforePivot?: (() => Promise<void>) | undefined
  readonly onSourceError: OnError
  readonly onTargetError: OnError
  /** Called last, with whether the users moved. */
  readonly restore: (pivoted: boolean) => Promise<void>
}

/** The work of a mirror or commit job. */
export class MirrorDriver implements JobDriver {
  readonly type: JobType
  readonly #plan: MirrorPlan
  readonly #mark: (offset: number, bytes: number) => void
  /** Takes the dirty regions out of what users see of the source. */
  readonly #hide: () => void
  #job: Job | undefined
  #edges: JobEdges | undefined
  #team: BodyTeam | undefined
  #completing: boolean
  #copyingDrained = false
  /** The worker writes the target itself. */
  #direct = false
  #held = false
  #frozen: readonly BlockChild[] = []
  #pivoted = false
  #scanned = false
  #blocking = false
  /** The guest outran the first copy. */
  #catchingUp = false
  #length: number
  readonly #writers = new Set<() => void>()

  constructor(plan: MirrorPlan) {
    this.#plan = plan
    // Kept from here on: the source may be closed before anybody asks for progress.
    this.#length = plan.top.length()
    this.type = plan.type
    this.#completing = plan.autoComplete
    this.#mark = (offset, bytes) => {
      plan.dirty.setRange(offset, bytes)
      if (this.#job?.ready === true) this.#job.kick()
    }
    plan.top.writeListeners.add(this.#mark)
    this.#hide = plan.top.bitmaps.show({ bits: plan.dirty, recording: true })
  }

  /**
   * Ties the job to its nodes; called once, before the start. Error (EPERM): another job holds a
   * link of the chain.
   */
  adopt(job: Job, edges: JobEdges): void {
    this.#job = job
    this.#edges = edges
    job.progressSource = () => this.#progress(job)
    const { filter, base, pivotTo } = this.#plan
    // Only a commit ends on the base; a mirror of the top layer copies that layer, whatever is below.
    if (base !== undefined && base === pivotTo) this.#frozen = freezeChain(filter, base)
    if (this.#plan.writeBlocking === true) this.blockWrites(job)
  }

  /** From now on, once ready, a guest's write ends when it is on the target too. */
  blockWrites(job: Job): void {
    this.#blocking = true
    this.#setAfterWrite(() => this.#hold(job))
  }

  /** Both disks hold the same, and every write goes to both before it ends. */
  get activelySynced(): boolean {
    return this.#blocking && this.#job?.ready === true && this.#plan.dirty.count === 0
  }

  change(job: Job, copyMode: CopyMode): void {
    if (copyMode === 'write-blocking') this.blockWrites(job)
    else if (this.#blocking) {
      throw new BlockError('EINVAL', "Cannot change copy-mode back to 'background'")
    }
  }

  /** Stops noting writes; for a job that was never created. */
  release(): void {
    this.#plan.top.writeListeners.delete(this.#mark)
    this.#hide()
  }

  /** The threads' handles, for tests and for statistics. */
  get bodies(): readonly WorkerBody[] {
    return this.#team?.bodies ?? []
  }

  async run(job: Job): Promise<void> {
    const plan = this.#plan
    await plan.scan(job)
    this.#scanned = true
    if (job.forceCancelled) return
    this.#team = await this.#startTeam(job)
    const remaining = this.#completing ? LAST_COPY_BYTES : 0
    await this.#copy(job, { remaining, passes: MOST_PASSES })
    if (!this.#completing) await this.#catchUp(job)
    if (job.forceCancelled) return
    await this.#flushFor(job)
    if (plan.showReady ?? true) job.becomeReady()
    while (!this.#mayEnd(job)) {
      // Whoever wrote before a round is covered by its first pass.
      const writers = [...this.#writers]
      if (plan.dirty.count > 0) await this.#copy(job, { remaining: 0, passes: MOST_PASSES })
      else if (writers.length === 0) await job.waitKick()
      this.#letGo(writers)
    }
    this.pausing()
    if (job.forceCancelled) return
    await this.#copy(job, { remaining: LAST_COPY_BYTES, passes: MOST_PASSES })
    await this.#flushFor(job)
  }

  /**
   * Ends the first copy. A guest that outran it waits with every write for a round from here on; a
   * limited job leaves it alone, as its speed was chosen.
   */
  async #catchUp(job: Job): Promise<void> {
    const { dirty } = this.#plan
    while (dirty.count > 0 && !this.#mayEnd(job)) {
      this.#catchingUp = job.speed === 0
      if (this.#catchingUp) this.#setAfterWrite(() => this.#hold(job))
      const writers = [...this.#writers]
      await this.#copy(job, { remaining: 0, passes: 1 })
      // The last round lets go of nobody until the job is ready: then nothing is dirty at all.
      if (dirty.count > 0) this.#letGo(writers)
    }
    this.#catchingUp = false
    if (!this.#blocking) this.#setAfterWrite(undefined)
    this.pausing()
  }

  /** Lets every held write end: what it wrote is dirty and will be copied. */
  pausing(): void {
    this.#letGo([...this.#writers])
  }

  #letGo(writers: readonly (() => void)[]): void {
    for (const end of writers) {
      this.#writers.delete(end)
      end()
    }
  }

  complete(): void {
    this.#completing = true
  }

  cancelIsHard(job: Job, force: boolean): boolean {
    return force || !job.ready
  }

  /** Whether the drained end of the copy runs, which another drain has to wait for. */
  drainedPoll(): boolean {
    return this.#copyingDrained
  }

  async prepare(): Promise<void> {
    const { graph, filter, pivotFrom, pivotTo } = this.#plan
    await graph.drainedBegin(filter)
    this.#held = true
    await this.#lastCopy()
    await this.#flush()
    if (!this.#completing || pivotTo === undefined) return
    await this.#plan.beforePivot?.()
    // The users that move may forbid other writers, and there will be no more to write.
    await this.#team?.finish()
    await this.#plan.target.close()
    // What the job forbids on its layers would reach the target through a filter over it.
    this.#edges?.detachAll()
    try {
      await graph.replace(pivotFrom ?? filter, pivotTo)
    } catch (thrown) {
      const { message } = asBlockError(thrown)
      throw new BlockError('EPERM', message, { op: 'pivot', node: filter.name }, thrown)
    }
    this.#pivoted = true
  }

  async clean(): Promise<void> {
    const { graph, filter, source, target } = this.#plan
    this.#setAfterWrite(undefined)
    this.pausing()
    await this.#team?.finish()
    this.release()
    unfreezeChain(this.#frozen)
    this.#edges?.detachAll()
    await source.close()
    await target.close()
    if (this.#pivoted && filter.parents.size === 0) graph.unref(filter)
    else await graph.removeFilter(filter)
    if (this.#held) graph.drainedEnd(filter)
    await graph.settled()
    await this.#plan.restore(this.#pivoted)
  }

  /** Holds a write until a round of copying that began after it has ended. */
  #hold(job: Job): Pending {
    if (!job.ready && !this.#catchingUp) return undefined
    if (job.pauseCount > 0 || this.#mayEnd(job)) return undefined
    return new Promise((resolve) => {
      this.#writers.add(resolve)
      job.kick()
    })
  }

  #setAfterWrite(hook: (() => Pending) | undefined): void {
    const { driver } = this.#plan.filter
    if (driver !== undefined && 'setAfterWrite' in driver) {
      ;(driver as WriteHolder).setAfterWrite(hook)
    }
  }

  /** A worker writes behind the back of the nodes, which would see nothing to make stable. */
  async #flush(): Promise<void> {
    const { target } = this.#plan
    // Whoever began to note writes after the worker began must take all as written.
    markWritten(target.node, this.#direct)
    await target.flush()
  }

  async #flushFor(job: Job): Promise<void> {
    while (!job.forceCancelled) {
      try {
        await this.#flush()
        return
      } catch (thrown) {
        await job.handleError(asBlockError(thrown), this.#plan.onTargetError, 'write')
      }
    }
  }

  #mayEnd(job: Job): boolean {
    return job.forceCancelled || job.cancelRequested || this.#completing
  }

  #startTeam(job: Job): Promise<BodyTeam> {
    const { source, target, top, base, dirty, pool } = this.#plan
    const disks = describeDisks({ source, target, top, base, unit: dirty.granularity })
    this.#direct = disks.target.kind === 'attached'
    const options = { ...disks, dirty, skipUnallocated: base !== undefined, speed: job.speed }
    const targetCluster = target.node.driver?.limits.clusterSize ?? 0
    const bytes = dirty.dirtyBytes
    return BodyTeam.start(pool, options, teamSize(pool, { bytes, options, targetCluster }))
  }

  async #copy(job: Job, goal: CopyGoal): Promise<void> {
    const team = this.#team
    if (team === undefined) throw ioError('ESHUTDOWN')
    while (!job.forceCancelled) {
      const outcome = await job.runBody(team, () => team.copyDirty(goal))
      if (outcome.kind !== 'error') return
      const { operation } = outcome
      const { onSourceError, onTargetError } = this.#plan
      const policy = operation === 'read' ? onSourceError : onTargetError
      await job.handleError(fromRecord(outcome.error), policy, operation)
    }
  }

  /** Copies what is left while the source is held; nothing can become dirty any more. */
  async #lastCopy(): Promise<void> {
    const team = this.#team
    if (team === undefined) throw ioError('ESHUTDOWN')
    this.#copyingDrained = true
    try {
      // A pause or a speed of the user's does not hold a guest that is being held.
      team.resume()
      team.setSpeed(0)
      const outcome = await team.copyDirty({ remaining: 0, passes: 0 })
      if (outcome.kind === 'error') throw fromRecord(outcome.error)
      if (outcome.kind === 'cancelled') throw ioError('ECANCELED')
    } finally {
      this.#copyingDrained = false
      this.#plan.graph.drains.kick()
    }
  }

  #progress(job: Job): void {
    // In the order that bytes go, so that none is missed; what is seen twice is soon gone.
    const dirty = this.#plan.dirty.dirtyBytes + (this.#team?.inFlight ?? 0)
    const done = this.#team?.done ?? 0
    // The source may be closed by the time somebody asks for the last time.
    const length = this.#plan.top.driver?.length() ?? this.#length
    this.#length = length
    if (this.#plan.showReady === false) {
      // What needs no copy counts as done when everything before it is.
      job.total = length
      job.current = this.#scanned ? (this.#plan.dirty.nextDirty(0)?.offset ?? length) : 0
      return
    }
    job.current = done
    job.total = done + Math.min(dirty, length)
  }
}

/** A filter that can hold writes. */
interface WriteHolder {
  setAfterWrite(hook: (() => Pending) | undefined): void
}
