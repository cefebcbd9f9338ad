/**
 * The event loop object: run queue, bottom halves, timers, coroutines, acquire and release.
 *
 * Invariants:
 * - First come, first served: tasks run in slices, in the order they were queued; what a task queues
 *   runs in a later slice. So nothing a coroutine wakes runs inside the coroutine that wakes it.
 * - Time comes from the clock handed in, so a run under a virtual clock and a seed replays exactly.
 * - After a budget of inline work the host loop gets a turn; timers, sockets and wake-ups from other
 *   threads would starve without it.
 * - It belongs to the thread that made it.
 */
import { threadId } from 'node:worker_threads'
import type { Pending } from '../coroutine/coroutine.ts'
import { ContextLock } from '../sync/context-lock.ts'
import { type Clock, HostClock, type TimerHandle } from '../util/clock.ts'
import { assert, BlockError } from '../util/errors.ts'
import { BottomHalf, type RunTask } from './bottom-half.ts'
import { CoroutineHandle, type CoroutineIdentity, type CoroutineStart } from './coroutine-handle.ts'
import { SharedBottomHalf } from './shared-bottom-half.ts'
import { Sleep, type WakeableSleep } from './sleep.ts'
import { AioTimer } from './timer.ts'

/** How a context is made. */
export interface AioContextOptions {
  /** Its time; default the host's. */
  readonly clock?: Clock
  /** Name for reports; default `main`. */
  readonly name?: string
  /** Words of the lock when another thread made them; default its own. */
  readonly lockWords?: Int32Array
  /**
   * Keep where every coroutine was spawned, for its errors; costs two microseconds each. Default:
   * only where a name was first spawned.
   */
  readonly trace?: boolean
}

/** How a coroutine is spawned. */
export interface SpawnOptions {
  /** Name for reports and errors. */
  readonly name?: string
}

/** What a context still has to do. */
export interface AioReport {
  /** Coroutines that did not end: `name (state) at place`. */
  readonly coroutines: readonly string[]
  /** Timers armed and sleeps under way. */
  readonly timers: number
  /** Tasks on the run queue. */
  readonly queued: number
}

/** Tasks that may run before the host loop gets a turn; about a millisecond of small requests. */
const TASK_BUDGET = 512
/** Longest inline run in milliseconds, looked at every 64 tasks. */
const TIME_BUDGET_MS = 1
/** An idle bottom half waits no longer than this. */
const IDLE_MS = 10
/** Names whose place is kept; names that are made up for each coroutine must not pile up. */
const MOST_SITES = 256
/** What `then` of it runs is a bare microtask; the host's `queueMicrotask` costs five times more. */
const SETTLED: Promise<void> = Promise.resolve()
/** How many turns of the host loop `close` gives what still runs. */
const CLOSE_TURNS = 64

/** One per thread that runs block code. */
export class AioContext {
  /** Its time. */
  readonly clock: Clock
  /** Name for reports. */
  readonly name: string
  /** The lock behind `acquire`; its words may be handed to a worker. */
  readonly lock: ContextLock
  /** The coroutine whose turn it is; only known until its first wait in a turn. */
  current: CoroutineIdentity | undefined
  readonly #trace: boolean
  /** The coroutines that did not end, newest first: a linked list, as a set costs twice a turn. */
  #newest: CoroutineIdentity | undefined
  readonly #timers = new Set<AioTimer>()
  readonly #sleeps = new Set<Sleep>()
  readonly #sites = new Map<string, () => string>()
  #next: RunTask[] = []
  #spare: RunTask[] = []
  #idle: RunTask[] = []
  #idleTimer: TimerHandle | undefined
  #armed = false
  #spent = 0
  #turnStart = 0
  #turn: Promise<void> | undefined
  #closed = false

  constructor(options: AioContextOptions = {}) {
    this.clock = options.clock ?? new HostClock()
    this.name = options.name ?? 'main'
    this.#trace = options.trace ?? false
    const words = options.lockWords
    this.lock =
      words === undefined
        ? ContextLock.create(threadId + 1, this.name)
        : new ContextLock(words, 0, threadId + 1, this.name)
  }

  /** Runs `fn` once, soon, outside the caller. */
  scheduleBh(fn: () => void): void {
    this.enqueue({ run: fn })
  }

  /** A reusable bottom half. */
  newBh(fn: () => void): BottomHalf {
    return new BottomHalf(this, fn)
  }

  /**
   * A bottom half that any thread schedules by ringing the `Doorbell` over `words`. Keeps the thread
   * alive until it is closed.
   */
  listen(words: Int32Array, fn: () => void): SharedBottomHalf {
    return new SharedBottomHalf(words, this.newBh(fn))
  }

  /** The same as `scheduleBh`, for work put off until the caller is done. */
  defer(fn: () => void): void {
    this.enqueue({ run: fn })
  }

  /** A timer, not armed. */
  timer(fn: () => void): AioTimer {
    return new AioTimer(this.clock, this.newBh(fn), this.#timers)
  }

  /** Waits `ms`. Error: ECANCELED when the context closes meanwhile. */
  sleep(ms: number): Promise<void> {
    return this.wakeableSleep(ms).done
  }

  /** Waits `ms` or until woken. Error: ECANCELED when the context closes meanwhile. */
  wakeableSleep(ms: number): WakeableSleep {
    return new Sleep(this.clock, ms, this.#sleeps)
  }

  /** Starts a coroutine; its first turn is queued. Error: ESHUTDOWN after `close`. */
  spawn<T>(work: CoroutineStart<T>, options?: SpawnOptions): CoroutineHandle<T> {
    if (this.#closed) throw new BlockError('ESHUTDOWN', `Context '${this.name}' is closed`)
    const name = options?.name ?? ''
    const handle = new CoroutineHandle<T>(this, name, this.#siteOf(name), work)
    handle.next = this.#newest
    if (this.#newest !== undefined) this.#newest.previous = handle
    this.#newest = handle
    this.enqueue(handle)
    return handle
  }

  /**
   * Counts one piece of inline work. `undefined` = go on; else wait for it, so that the host loop
   * turns. Loops whose every operation may finish inline call it once a round.
   */
  breathe(): Pending {
    if (!this.#overBudget()) return undefined
    this.#turn ??= new Promise((resolve) => {
      this.clock.setImmediate(() => {
        this.#turn = undefined
        this.#newTurn()
        resolve()
      })
    })
    return this.#turn
  }

  /**
   * Takes the context's lock; recursive for the thread. `await using held = await ctx.acquire()`.
   * Error: EIO when the thread that held it died.
   */
  async acquire(): Promise<AsyncDisposable> {
    const wait = this.lock.acquire()
    if (wait !== undefined) await wait
    return new Held(this.lock)
  }

  /** Ends one `acquire` by hand. */
  release(): void {
    this.lock.release()
  }

  /** What is still to do. */
  report(): AioReport {
    return {
      coroutines: this.#live().map((co) => `${co.name} (${co.state})${co.site()}`),
      timers: this.#timers.size + this.#sleeps.size,
      queued: this.#next.length + this.#idle.length,
    }
  }

  /**
   * The end: cancels coroutines, ends sleeps with ECANCELED, disarms timers, and gives what runs a
   * few turns. Error: EBUSY naming what still runs after that; nothing is torn down.
   */
  async close(): Promise<void> {
    this.#closed = true
    for (const co of this.#live()) co.cancel()
    for (const timer of this.#timers) timer.del()
    for (let turn = 0; turn < CLOSE_TURNS && this.#busy(); turn += 1) {
      for (const sleep of this.#sleeps) sleep.fail(canceled(this.name))
      this.#slice()
      await new Promise((resolve) => setImmediate(resolve))
    }
    this.#idleTimer?.cancel()
    this.#idle = []
    this.lock.dispose()
    if (this.#newest === undefined) return
    const left = this.report().coroutines.join(', ')
    throw new BlockError('EBUSY', `Context '${this.name}' closed with coroutines running: ${left}`)
  }

  /** Runs the task in the next slice; for the parts of the runtime. */
  enqueue(task: RunTask): void {
    this.#next.push(task)
    this.#arm()
  }

  /** Runs the task with the next slice, or within 10 ms; for bottom halves. */
  enqueueIdle(task: RunTask): void {
    this.#idle.push(task)
    this.#idleTimer ??= this.clock.setTimer(IDLE_MS, () => {
      this.#idleTimer = undefined
      this.#runIdle()
    })
  }

  /** A coroutine reached its end; for coroutines. */
  ended(handle: CoroutineIdentity): void {
    const { previous, next } = handle
    if (previous !== undefined) previous.next = next
    else {
      assert(this.#newest === handle, 'a coroutine ends once')
      this.#newest = next
    }
    if (next !== undefined) next.previous = previous
    handle.previous = undefined
    handle.next = undefined
  }

  /** Where this name was first spawned: the same place nearly always, and paid for once. */
  #siteOf(name: string): () => string {
    if (this.#trace) return creationSite()
    if (name === '') return noSite
    const known = this.#sites.get(name)
    if (known !== undefined) return known
    const site = creationSite()
    if (this.#sites.size < MOST_SITES) this.#sites.set(name, site)
    return site
  }

  #busy(): boolean {
    return this.#newest !== undefined || this.#sleeps.size + this.#next.length > 0
  }

  /** Oldest first. */
  #live(): CoroutineIdentity[] {
    const all: CoroutineIdentity[] = []
    for (let co = this.#newest; co !== undefined; co = co.next) all.push(co)
    return all.reverse()
  }

  #arm(): void {
    if (this.#armed) return
    this.#armed = true
    if (this.#overBudget()) this.clock.setImmediate(this.#afterTurn)
    else void SETTLED.then(this.#slice)
  }

  #overBudget(): boolean {
    this.#spent += 1
    if (this.#spent > TASK_BUDGET) return true
    if (this.#spent % 64 !== 0) return false
    if (this.clock.nowMs() - this.#turnStart <= TIME_BUDGET_MS) return false
    this.#spent = TASK_BUDGET
    return true
  }

  #newTurn(): void {
    this.#spent = 0
    this.#turnStart = this.clock.nowMs()
  }

  readonly #afterTurn = (): void => {
    this.#newTurn()
    this.#slice()
  }

  readonly #slice = (): void => {
    const batch = this.#next
    this.#next = this.#spare
    this.#spent += batch.length
    for (const task of batch) this.#runTask(task)
    batch.length = 0
    this.#spare = batch
    this.#armed = false
    if (this.#idle.length > 0) this.#runIdle()
    if (this.#next.length > 0) this.#arm()
  }

  #runIdle(): void {
    const batch = this.#idle
    this.#idle = []
    for (const task of batch) this.#runTask(task)
  }

  #runTask(task: RunTask): void {
    try {
      task.run()
    } catch (error) {
      // A callback has nobody to fail to; the queue goes on and the host sees the error.
      queueMicrotask(() => {
        throw error
      })
    }
  }
}

class Held implements AsyncDisposable {
  readonly #lock: ContextLock
  #held = true

  constructor(lock: ContextLock) {
    this.#lock = lock
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#held) this.#lock.release()
    this.#held = false
  }
}

function canceled(name: string): BlockError {
  return new BlockError('ECANCELED', `Context '${name}' is closing`, { op: 'sleep' })
}

/** Formatting a stack is the dear part of it, so that happens only when somebody reads it. */
function creationSite(): () => string {
  const limit = Error.stackTraceLimit
  Error.stackTraceLimit = 6
  const holder: { stack?: string } = {}
  Error.captureStackTrace(holder, AioContext.prototype.spawn)
  Error.stackTraceLimit = limit
  return () => {
    const lines = (holder.stack ?? '').split('\n').slice(1)
    return lines.length === 0 ? '' : ` spawned\n${lines.join('\n')}`
  }
}

function noSite(): string {
  return ''
}
