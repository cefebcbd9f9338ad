/**
 * The control half of a job: state machine, pausing, cancelling, progress and events.
 *
 * Invariants:
 * - Runs on the main thread only; the body that a job drives may live in a worker thread.
 * - `busy` is true while the driver's `run` runs, except at rest: in a pause point or the body's.
 * - A pause by drain does not show in the status; one by the user does, once the job rests.
 * - Internal jobs emit no events and no query shows them.
 */
import type { Pending } from '../coroutine/coroutine.ts'
import { asBlockError, assert, BlockError, codeWords, ioError } from '../util/errors.ts'
import type { JobEvents } from './events.ts'
import type { JobBody, JobDriver, JobHost, JobOptions } from './job-types.ts'
import { checkSpeed, errorAction, type IoStatus, ioStatusOf, type OnError } from './policy.ts'
import { emitEnd, jobReport, runEndHooks } from './report.ts'
import { assertTransition, checkVerb, isCompleted, type JobStatus } from './status.ts'
import { Transaction } from './transaction.ts'

/** One job. */
export class Job {
  /** Identity; empty for internal jobs. */
  readonly id: string
  /** Invisible and silent. */
  readonly internal: boolean
  /** The work. */
  readonly driver: JobDriver
  /** Finishes without `finalize`. */
  readonly autoFinalize: boolean
  /** Vanishes when concluded. */
  readonly autoDismiss: boolean
  /** The group that it completes with. */
  readonly transaction: Transaction
  /** Settles when the job is concluded. */
  readonly done: Promise<void>
  /** Outstanding pauses: one before the start, one for the user, one a drain. */
  pauseCount = 1
  /** The user paused it, or an error with the policy `stop` did. */
  userPaused = false
  /** Work may be going on. */
  busy = false
  /** The work waits for something to do: for a verb, or for a write of the guest's. */
  idle = false
  /** The work ended and completion is under way. */
  ended = false
  /** A cancel was asked for, hard or soft. */
  cancelRequested = false
  /** A hard cancel was asked for. */
  forceCancelled = false
  /** What ended the job, if it failed. */
  error: BlockError | undefined
  /** Bytes done. */
  current = 0
  /** Bytes done and to do. */
  total = 0
  /** Brings `current` and `total` up to date before somebody looks. */
  progressSource: (() => void) | undefined
  /** Bytes a second; 0 = unlimited. */
  speed: number
  /** Result of the last I/O that stopped the job. */
  ioStatus: IoStatus = 'ok'

  readonly #host: JobHost
  readonly #onDone: JobOptions['onDone']
  #status: JobStatus = 'undefined'
  #started = false
  #body: JobBody | undefined
  #bodyRests = false
  #asks = 0
  #inPausePoint = false
  #kicks: (() => void)[] = []
  #resolveDone!: () => void
  #forget: (job: Job) => void

  /** Made by `JobRegistry.create` only; `forget` takes the job out of the registry. */
  constructor(host: JobHost, options: JobOptions, forget: (job: Job) => void) {
    this.#host = host
    this.#forget = forget
    this.id = options.id ?? ''
    this.internal = options.id === undefined
    this.driver = options.driver
    this.autoFinalize = options.autoFinalize ?? true
    this.autoDismiss = options.autoDismiss ?? true
    this.speed = options.speed ?? 0
    this.#onDone = options.onDone
    this.done = new Promise((resolve) => {
      this.#resolveDone = resolve
    })
    this.transaction = options.transaction ?? new Transaction()
    this.transaction.add(this)
    this.#setStatus('created')
  }

  /** Where the job is in its life. */
  get status(): JobStatus {
    return this.#status
  }

  /** The work is over, whatever came of it. */
  get completed(): boolean {
    return this.ended || isCompleted(this.#status)
  }

  /** The copy is complete and kept up to date. */
  get ready(): boolean {
    return this.#status === 'ready' || this.#status === 'standby'
  }

  /** Begins the work; once. */
  start(): void {
    assert(!this.#started, 'a job is started once')
    this.#started = true
    this.pauseCount -= 1
    this.busy = true
    this.#setStatus('running')
    const work = async (): Promise<void> => {
      await this.pausePoint()
      return this.forceCancelled ? undefined : this.driver.run(this)
    }
    const running = this.#host.spawn?.(work, this.id || this.driver.type) ?? work()
    running.then(
      () => this.#end(undefined),
      (thrown: unknown) => this.#end(asBlockError(thrown)),
    )
  }

  /** One pause more (drain, user). The job rests when `busy` has become false. */
  pause(): void {
    this.pauseCount += 1
    this.driver.pausing?.()
    this.#askBodyToRest()
    this.#showPause()
    this.kick()
  }

  /** One pause less. */
  resume(): void {
    assert(this.pauseCount > 0, 'a job that is not paused cannot be resumed')
    this.pauseCount -= 1
    if (this.pauseCount > 0) {
      this.#showPause()
      return
    }
    this.#leaveRest()
  }

  /** Rests here while a pause is asked for; a hard cancel overrides every pause. */
  pausePoint(): Pending {
    if (!this.#wantsRest()) return undefined
    return this.#rest()
  }

  /**
   * Runs a piece of the body's work. A pause that comes meanwhile is passed to the body, and the
   * job counts as resting as soon as the body does.
   */
  async runBody<T>(body: JobBody, work: () => Promise<T>): Promise<T> {
    // Looked at again after every wait: a pause that came meanwhile found no body to ask.
    while (this.#wantsRest()) await this.#rest()
    this.#body = body
    this.#asks++
    try {
      // A pause that met the end of the last piece of work may still be set.
      body.resume()
      body.setSpeed(this.speed)
      if (this.forceCancelled) body.cancel()
      return await work()
    } finally {
      this.#body = undefined
      if (this.#bodyRests) this.#leaveBodyRest()
      await this.pausePoint()
    }
  }

  /** Waits until `kick` is called by anyone (new work, a verb, a cancel) or `orUntil` settles. */
  async waitKick(orUntil?: Promise<unknown>): Promise<void> {
    if (this.forceCancelled) return
    if (this.#wantsRest()) return this.#rest()
    this.idle = orUntil === undefined
    await new Promise<void>((resolve) => {
      this.#kicks.push(resolve)
      void orUntil?.then(() => resolve())
    })
    this.idle = false
    await this.pausePoint()
  }

  /** Wakes whoever waits in `waitKick`. */
  kick(): void {
    const kicks = this.#kicks
    this.#kicks = []
    for (const kick of kicks) kick()
  }

  /** Throws ECANCELED once the job is cancelled hard. */
  checkCancelled(): void {
    if (this.forceCancelled) throw ioError('ECANCELED')
  }

  /** Whether a drain has to wait for this job. */
  drainedPoll(): boolean {
    return this.busy && !this.completed
  }

  /** The copy is complete: status `ready`, event `BLOCK_JOB_READY`. */
  becomeReady(): void {
    if (this.ready) return
    this.#setStatus('ready')
    this.#emit('BLOCK_JOB_READY', jobReport(this))
  }

  /**
   * Applies an on-error policy. Returns when the work is to be tried again; throws the error when
   * it ends the job.
   */
  async handleError(
    error: BlockError,
    policy: OnError,
    operation: 'read' | 'write',
  ): Promise<void> {
    const action = errorAction(policy, error)
    this.#emit('BLOCK_JOB_ERROR', { device: this.id, operation, action })
    if (action === 'report') throw error
    if (action === 'ignore') return
    if (this.ioStatus === 'ok') this.ioStatus = ioStatusOf(error)
    if (!this.userPaused) {
      this.userPaused = true
      this.pause()
    }
    await this.pausePoint()
    this.checkCancelled()
  }

  /** Asks the job to stop. `force` also stops work that would rather end in order. */
  cancel(force: boolean): void {
    if (this.#status === 'concluded') {
      this.#dismiss()
      return
    }
    if (this.#status === 'null') return
    const hard = force || (this.driver.cancelIsHard?.(this, force) ?? true)
    if (!hard && this.ended) return
    if (this.userPaused) this.#undoUserPause()
    this.cancelRequested = true
    if (hard) this.forceCancelled = true
    if (!this.#started) {
      this.#end(undefined)
      return
    }
    if (this.ended) {
      if (hard) this.transaction.cancelEnded()
      return
    }
    if (hard) {
      this.#body?.cancel()
      if (this.#bodyRests) this.#leaveRest()
    }
    this.kick()
  }

  /** Cancels and waits until the job is concluded. */
  async cancelSync(force = true): Promise<BlockError | undefined> {
    this.cancel(force)
    await this.done
    return this.error
  }

  /** The verb `cancel`: `block-job-cancel` with its `force`, `job-cancel` with true. */
  userCancel(force: boolean): void {
    checkVerb(this.id, this.#status, 'cancel')
    this.cancel(force)
  }

  /** The verb `pause`. */
  userPause(): void {
    checkVerb(this.id, this.#status, 'pause')
    if (this.userPaused) throw new BlockError('EBUSY', 'Job is already paused')
    this.userPaused = true
    this.pause()
  }

  /** The verb `resume`; forgets the error that stopped the job. */
  userResume(): void {
    if (!this.userPaused || this.pauseCount === 0) {
      throw new BlockError('EPERM', "Can't resume a job that was not paused")
    }
    checkVerb(this.id, this.#status, 'resume')
    this.#undoUserPause()
  }

  /** The verb `complete`. */
  userComplete(): void {
    checkVerb(this.id, this.#status, 'complete')
    if (this.cancelRequested || this.driver.complete === undefined) {
      throw new BlockError('EBUSY', `The active block job '${this.id}' cannot be completed`)
    }
    this.driver.complete(this)
    this.kick()
  }

  /** The verb `finalize`; settles when the group is finalized. */
  userFinalize(): Promise<void> {
    checkVerb(this.id, this.#status, 'finalize')
    return this.transaction.finalize()
  }

  /** The verb `dismiss`. */
  userDismiss(): void {
    checkVerb(this.id, this.#status, 'dismiss')
    this.#dismiss()
  }

  /** The verb `set-speed`. */
  userSetSpeed(bytesPerSecond: number): void {
    checkVerb(this.id, this.#status, 'set-speed')
    checkSpeed(bytesPerSecond)
    this.speed = bytesPerSecond
    this.#body?.setSpeed(bytesPerSecond)
    this.kick()
  }

  /** For the transaction: the work succeeded and waits for the rest of the group. */
  enterWaiting(): void {
    this.#setStatus('waiting')
  }

  /** For the transaction: the group is complete. */
  enterPending(): void {
    this.#setStatus('pending')
    if (!this.autoFinalize) {
      this.#emit('BLOCK_JOB_PENDING', { type: this.driver.type, id: this.id })
    }
  }

  /** For the transaction: this job or another of its group failed. */
  enterAborting(error: BlockError): void {
    this.error ??= error
    this.#setStatus('aborting')
  }

  /** For the transaction: the end, in the documented order. */
  async finalizeSingle(): Promise<void> {
    await runEndHooks(this, this.#onDone)
    if (this.#started) emitEnd(this, (name, data) => this.#emit(name, data))
    this.#setStatus('concluded')
    if (this.autoDismiss || !this.#started) this.#dismiss()
    this.#resolveDone()
  }

  #end(error: BlockError | undefined): void {
    this.ended = true
    this.busy = false
    let result = error
    if (result === undefined && this.forceCancelled) {
      result = new BlockError('ECANCELED', codeWords('ECANCELED'))
    }
    this.#hidePause()
    this.#host.quiet?.()
    void this.transaction.jobEnded(this, result)
  }

  #dismiss(): void {
    this.#setStatus('null')
    this.#forget(this)
  }

  #undoUserPause(): void {
    this.userPaused = false
    this.ioStatus = 'ok'
    this.resume()
  }

  #wantsRest(): boolean {
    return this.pauseCount > 0 && !this.forceCancelled
  }

  async #rest(): Promise<void> {
    this.#inPausePoint = true
    while (this.#wantsRest()) {
      this.busy = false
      this.#showPause()
      this.#host.quiet?.()
      await new Promise<void>((resolve) => this.#kicks.push(resolve))
    }
    this.#inPausePoint = false
    this.busy = true
    this.#hidePause()
  }

  #askBodyToRest(): void {
    const body = this.#body
    if (body === undefined || !this.#wantsRest()) return
    const ask = ++this.#asks
    body.pause().then(
      () => {
        // An answer that was overtaken says nothing of what the body does now.
        if (ask !== this.#asks || this.#body !== body || !this.#wantsRest()) return
        this.#bodyRests = true
        this.busy = false
        this.#showPause()
        this.#host.quiet?.()
      },
      // A body that died while it was asked to rest also fails the work that waits for it.
      () => undefined,
    )
  }

  #leaveRest(): void {
    this.#asks++
    if (this.#body !== undefined) {
      this.#leaveBodyRest()
      this.#body.resume()
    }
    this.kick()
  }

  #leaveBodyRest(): void {
    this.#bodyRests = false
    if (this.ended || this.#inPausePoint) return
    this.busy = true
    this.#hidePause()
  }

  #showPause(): void {
    const rests = this.#bodyRests || (this.#inPausePoint && !this.busy)
    if (!this.userPaused) {
      this.#hidePause()
      return
    }
    if (!rests) return
    if (this.#status === 'running') this.#setStatus('paused')
    else if (this.#status === 'ready') this.#setStatus('standby')
  }

  #hidePause(): void {
    if (this.#status === 'paused') this.#setStatus('running')
    else if (this.#status === 'standby') this.#setStatus('ready')
  }

  #setStatus(status: JobStatus): void {
    if (status === this.#status) return
    assertTransition(this.#status, status)
    this.#status = status
    this.#emit('JOB_STATUS_CHANGE', { id: this.id, status })
  }

  #emit<K extends keyof JobEvents>(name: K, data: JobEvents[K]): void {
    if (!this.internal) this.#host.emit(name, data)
  }
}
