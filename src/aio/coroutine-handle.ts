/**
 * A coroutine that a context runs: one turn at a time, to its own end.
 *
 * Invariants:
 * - At most one turn is under way; the next is queued only after the last one ended in a `yield`.
 * - Cancelling sets a flag and nothing else.
 * - Before a `yield`, the promise of the first turn is the one that `join` hands out: no other is made.
 * - An error nobody joins for surfaces as an unhandled rejection; it is never dropped.
 */
import type { Coroutine, MaybePromise } from '../coroutine/coroutine.ts'
import { assert, BlockError } from '../util/errors.ts'
import type { Seat, Seats, SeatUser } from './seats.ts'

/** A coroutine whatever its result is: what tells one from another, and may be asked to end. */
export interface CoroutineIdentity {
  /** Number of the coroutine, unique in the thread. */
  readonly id: number
  /** Name for reports. */
  readonly name: string
  /** Where it was spawned: lines of a stack, empty when that was not kept. */
  readonly site: string
  /** Where it stands. */
  readonly state: CoroutineState
  /** Whether somebody asked it to end early; it looks at its pause points. */
  readonly cancelled: boolean
  /** Asks it to end early. */
  cancel(): void
}

/** Where a coroutine stands. */
export type CoroutineState = 'queued' | 'waiting' | 'finished' | 'failed'

/** What a coroutine is to its context. */
export interface SeatedCoroutine extends CoroutineIdentity, SeatUser {}

/** What coroutines of one name share. */
export interface Origin {
  /** Their name; empty when they have none. */
  readonly name: string
  /** Where the first of them was spawned: lines of a stack, empty when that was not kept. */
  site(): string
}

let lastId = 0

/** A spawned coroutine. */
export class CoroutineHandle<T> implements SeatedCoroutine {
  /** Number of the coroutine, unique in the thread. */
  readonly id: number
  readonly #origin: Origin
  readonly #seat: Seat<SeatedCoroutine>
  #work: Coroutine<T> | undefined
  /** What to start with, while the first turn is queued. */
  #start: CoroutineStart<T> | undefined
  #state: CoroutineState = 'waiting'
  #cancelled = false
  /** Somebody holds `#end`. */
  #joined = false
  /** Settles when the turn under way ends, or the coroutine does. */
  #end: Promise<T> | undefined
  /** Made when somebody joined and the end is not in this turn. */
  #later: Later<T> | undefined

  constructor(seats: Seats<SeatedCoroutine>, origin: Origin) {
    lastId += 1
    this.id = lastId
    this.#origin = origin
    this.#seat = seats.take(this)
  }

  /** Name for reports. */
  get name(): string {
    return this.#origin.name === '' ? `coroutine ${this.id}` : this.#origin.name
  }

  /** Where it was spawned: lines of a stack, empty when that was not kept. */
  get site(): string {
    return this.#origin.site()
  }

  /** Where it stands. */
  get state(): CoroutineState {
    return this.#state
  }

  /** Whether somebody asked it to end early; it looks at its pause points. */
  get cancelled(): boolean {
    return this.#cancelled
  }

  /** Asks it to end early. */
  cancel(): void {
    this.#cancelled = true
  }

  /** Waits for its end; rejects with what it threw, the place it was spawned at in the stack. */
  join(): Promise<T> {
    this.#joined = true
    if (this.#end === undefined) {
      this.#later = later()
      this.#end = this.#later.promise
    }
    return this.#end
  }

  /** Called by the context only: the first turn, now. It runs inside whoever spawns. */
  start(start: CoroutineStart<T>): void {
    const seat = this.#seat
    const { seats } = seat
    const spawner = seats.current
    seats.current = seat
    let work: Coroutine<T> | MaybePromise<T>
    try {
      work = typeof start === 'function' ? start(this) : start
    } catch (error) {
      seats.current = spawner
      this.throwInline(error)
      return
    }
    if (!isCoroutine(work)) {
      seats.current = spawner
      this.settleInline(work)
      return
    }
    this.#work = work
    const step = work.next()
    seats.current = spawner
    const turn = step.then(seat.onStep, seat.onError)
    if (!this.#joined) this.#end = turn as Promise<T>
  }

  /** Called by the context only: the first turn is queued. */
  startLater(start: CoroutineStart<T>): void {
    this.#state = 'queued'
    this.#start = start
    this.#seat.seats.enqueue(this)
  }

  /** Called by the context only: a turn that was queued. */
  run(): void {
    this.#state = 'waiting'
    const start = this.#start
    if (start !== undefined) {
      this.#start = undefined
      this.start(start)
      return
    }
    const seat = this.#seat
    const { seats } = seat
    assert(this.#work !== undefined, 'what was queued again has begun')
    const outer = seats.current
    seats.current = seat
    const step = this.#work.next()
    seats.current = outer
    const turn = step.then(seat.onStep, seat.onError)
    if (!this.#joined) this.#end = turn as Promise<T>
  }

  /** Called by `start` only: the work was no coroutine, and this is what it answered. */
  settleInline(answer: MaybePromise<T>): void {
    const seat = this.#seat
    let end: Promise<unknown>
    if (answer instanceof Promise) {
      end = answer.then((value) => seat.onStep({ done: true, value }), seat.onError)
    } else {
      seat.seats.give(seat)
      this.finish(answer)
      end = answer === undefined ? DONE : Promise.resolve(answer)
    }
    if (!this.#joined) this.#end = end as Promise<T>
  }

  /** Called by `start` only: the work threw before it was a coroutine. */
  throwInline(reason: unknown): void {
    const seat = this.#seat
    const end = new Promise<unknown>((resolve) => resolve(seat.onError(reason)))
    if (!this.#joined) this.#end = end as Promise<T>
  }

  /** Called by its seat only. A generator waits for what it yields, so the wait is over. */
  again(): Promise<T> | undefined {
    this.#state = 'queued'
    this.#seat.seats.enqueue(this)
    if (!this.#joined) {
      this.#end = undefined
      return undefined
    }
    if (this.#later !== undefined) return undefined
    // The promise of this turn is out; it follows the one that settles at the end.
    this.#later = later()
    return this.#later.promise
  }

  /** Called by its seat only. */
  finish(value: T): T {
    this.#state = 'finished'
    if (this.#later !== undefined) this.#later.resolve(value)
    return value
  }

  /** Called by its seat only. Throws, unless somebody is told otherwise. */
  fail(reason: unknown): void {
    this.#state = 'failed'
    const error = withSite(reason, this)
    if (this.#later === undefined) throw error
    this.#later.reject(error)
  }
}

/**
 * What `spawn` takes: a coroutine, or a function that makes one and learns its handle. The function
 * may as well do the work itself and answer a value, or a promise for one: what ends inline then
 * costs neither generator nor promise.
 */
export type CoroutineStart<T> =
  | Coroutine<T>
  | ((self: CoroutineHandle<T>) => Coroutine<T> | MaybePromise<T>)

/** The end of everything that ended inline without a value. */
const DONE: Promise<unknown> = Promise.resolve()

function isCoroutine<T>(work: Coroutine<T> | MaybePromise<T>): work is Coroutine<T> {
  return typeof work === 'object' && work !== null && 'next' in work
}

interface Later<T> {
  readonly promise: Promise<T>
  readonly resolve: (value: T) => void
  readonly reject: (reason: unknown) => void
}

function later<T>(): Later<T> {
  let resolve: (value: T) => void = () => undefined
  let reject: (reason: unknown) => void = () => undefined
  const promise = new Promise<T>((yes, no) => {
    resolve = yes
    reject = no
  })
  return { promise, resolve, reject }
}

function withSite(reason: unknown, co: CoroutineIdentity): unknown {
  const error = reason instanceof Error ? reason : new BlockError('EIO', String(reason), {}, reason)
  error.stack = `${error.stack ?? String(error)}\n    in coroutine '${co.name}'${co.site}`
  return error
}
