/**
 * The event loop object: run queue, bottom halves, timers, coroutines, acquire and release.
 *
 * Invariants:
 * - First come, first served: tasks run in slices, in the order they were queued; what a task queues
 *   runs in a later slice. So nothing a coroutine wakes runs inside the coroutine that wakes it.
 * - A coroutine starts inside `spawn`; only its later turns are queued.
 * - Time comes from the clock handed in, so a run under a virtual clock and a seed replays exactly.
 * - After a budget of inline work the host loop gets a turn; timers, sockets and wake-ups from other
 *   threads would starve without it.
 * - It belongs to the thread that made it.
 */
import { threadId } from 'node:worker_threads'
import type { Pending } from '../coroutine/coroutine.ts'
import { ContextLock } from '../sync/context-lock.ts'
import { type Clock, HostClock, type TimerHandle } from '../util/clock.ts'
import { BlockError } from '../util/errors.ts'
import { BottomHalf, type RunTask } from './bottom-half.ts'
import {
  CoroutineHandle,
  type CoroutineIdentity,
  type CoroutineStart,
  type Origin,
  type SeatedCoroutine,
} from './coroutine-handle.ts'
import { RemoteCalls } from './remote-calls.ts'
import { Seats } from './seats.ts'
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

/**
 * Tasks that may run before the host loop gets a turn. Under a host's clock the time runs out first;
 * this is the bound on a clock that stands still.
 */
const TASK_BUDGET = 8192
/** Longest inline run in milliseconds. */
const TIME_BUDGET_MS = 1
/** Tasks between two looks at the clock; a look costs more than the shortest task. */
const LOOK_LEAST = 32
const LOOK_MOST = 512
/** First turns inside first turns; what the stack holds with room to spare. */
const MOST_NESTED = 200
/** An idle bottom half waits no longer than this. */
const IDLE_MS = 10
/** Names whose place is kept; names that are made up for each coroutine must not pile up. */
const MOST_ORIGINS = 256
/** What `then` of it runs is a bare microtask; the host's `queueMicrotask` costs five times more. */
const SETTLED: Promise<void> = Promise.resolve()
/** How many turns of the host loop `close` gives what still runs. */
const CLOSE_TURNS = 64

/** Of coroutines without a name. */
const UNNAMED: Origin = { name: '', site: () => '' }

/** One per thread that runs block code. */
export class AioContext {
  /** Its time. */
  readonly clock: Clock
  /** Name for reports. */
  readonly name: string
  /** The lock behind `acquire`; its words may be handed to a worker. */
  readonly lock: ContextLock
  readonly #trace: boolean
  readonly #seats = new Seats<SeatedCoroutine>((task) => this.enqueue(task))
  readonly #timers = new Set<AioTimer>()
  readonly #sleeps = new Set<Sleep>()
  readonly #origins = new Map<string, Origin>()
  #next: RunTask[] = []
  #spare: RunTask[] = []
  #idle: RunTask[] = []
  #idleTimer: TimerHandle | undefined
  #armed = false
  #spent = 0
  #nextLook = LOOK_LEAST
  #turnStart = 0
  #nested = 0
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

  /** The coroutine whose turn it is; only known until its first wait in a turn. */
  get current(): CoroutineIdentity | undefined {
    return this.#seats.currentUser
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

  /**
   * Lets other threads schedule bottom halves and wake coroutines of this context, by number: they
   * make a `RemoteContext` of its words. `capacity`: most at a time, default 64.
   */
  remoteCalls(capacity?: number): RemoteCalls {
    return new RemoteCalls(this, capacity)
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

  /**
   * Starts a coroutine. Its first turn runs before this returns, as in a call of an async function;
   * it is queued when the budget of inline work is spent, or the spawns inside spawns are too deep
   * for the stack. Error: ESHUTDOWN after `close`.
   */
  spawn<T>(work: CoroutineStart<T>, options?: SpawnOptions): CoroutineHandle<T> {
    if (this.#closed) throw new BlockError('ESHUTDOWN', `Context '${this.name}' is closed`)
    const name = options?.name ?? ''
    const origin = name === '' && !this.#trace ? UNNAMED : this.#namedOrigin(name)
    const handle = new CoroutineHandle<T>(this.#seats, origin)
    this.#spent += 1
    if (this.#spent >= this.#nextLook && this.#exhausted()) handle.startLater(work)
    else if (this.#seats.current === undefined) handle.start(work)
    else this.#startInside(handle, work)
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
      coroutines: this.#live().map((co) => `${co.name} (${co.state})${co.site}`),
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
    if (this.#seats.taken === 0) return
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

  /** A first turn inside the turn of the coroutine that spawns. */
  #startInside<T>(handle: CoroutineHandle<T>, work: CoroutineStart<T>): void {
    if (this.#nested >= MOST_NESTED) {
      handle.startLater(work)
      return
    }
    this.#nested += 1
    handle.start(work)
    this.#nested -= 1
  }

  /** Where this name was first spawned: the same place nearly always, and paid for once. */
  #namedOrigin(name: string): Origin {
    const known = this.#trace ? undefined : this.#origins.get(name)
    if (known !== undefined) return known
    const origin = { name, site: creationSite() }
    if (!this.#trace && this.#origins.size < MOST_ORIGINS) this.#origins.set(name, origin)
    return origin
  }

  #busy(): boolean {
    return this.#seats.taken > 0 || this.#sleeps.size + this.#next.length > 0
  }

  /** Oldest first. */
  #live(): CoroutineIdentity[] {
    return this.#seats.users().sort((a, b) => a.id - b.id)
  }

  #arm(): void {
    if (this.#armed) return
    this.#armed = true
    if (this.#overBudget()) this.clock.setImmediate(this.#afterTurn)
    else void SETTLED.then(this.#slice)
  }

  #overBudget(): boolean {
    this.#spent += 1
    return this.#spent >= this.#nextLook && this.#exhausted()
  }

  #exhausted(): boolean {
    if (this.#spent >= TASK_BUDGET) return true
    const took = this.clock.nowMs() - this.#turnStart
    if (took > TIME_BUDGET_MS) return true
    // At the pace so far the rest of the time is enough for this many.
    const rest = took === 0 ? LOOK_MOST : (this.#spent * (TIME_BUDGET_MS - took)) / took
    this.#nextLook = this.#spent + Math.trunc(Math.min(Math.max(rest, LOOK_LEAST), LOOK_MOST))
    return false
  }

  #newTurn(): void {
    this.#spent = 0
    this.#nextLook = LOOK_LEAST
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
