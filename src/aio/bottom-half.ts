/**
 * Bottom halves: callbacks that run later, in the home thread, outside whoever asked for them.
 *
 * Invariants:
 * - However often one is scheduled before it runs, it runs once.
 * - A bottom half that schedules itself runs in a later slice, never in the one that runs it.
 * - After `delete` the callback is never called again.
 */

/** What a bottom half needs of its context. */
export interface BottomHalfHost {
  /** Runs the task in the next slice. */
  enqueue(task: RunTask): void
  /** Runs the task with the next slice, or within 10 ms when nothing else is to do. */
  enqueueIdle(task: RunTask): void
}

/** Something on a run queue. */
export interface RunTask {
  /** One turn; an error it throws is a mistake of ours. */
  run(): void
}

/** A reusable callback; made by `AioContext.newBh`. */
export class BottomHalf implements RunTask {
  readonly #host: BottomHalfHost
  readonly #fn: () => void
  #queued = false
  #scheduled = false
  #deleted = false

  constructor(host: BottomHalfHost, fn: () => void) {
    this.#host = host
    this.#fn = fn
  }

  /** Whether it is going to run. */
  get scheduled(): boolean {
    return this.#scheduled
  }

  /** Runs the callback soon; ignored after `delete`. */
  schedule(): void {
    if (this.#deleted) return
    this.#scheduled = true
    if (this.#queued) return
    this.#queued = true
    this.#host.enqueue(this)
  }

  /** Runs the callback when other work runs, at the latest after 10 ms; it is no progress itself. */
  scheduleIdle(): void {
    if (this.#deleted) return
    this.#scheduled = true
    if (this.#queued) return
    this.#queued = true
    this.#host.enqueueIdle(this)
  }

  /** Takes a `schedule` back; it may be scheduled again. */
  cancel(): void {
    this.#scheduled = false
  }

  /** The end: never runs again. */
  delete(): void {
    this.#scheduled = false
    this.#deleted = true
  }

  /** Called by the context only. */
  run(): void {
    this.#queued = false
    if (!this.#scheduled) return
    this.#scheduled = false
    this.#fn()
  }
}
