/**
 * A coroutine that a context runs: one turn at a time, to its own end.
 *
 * Invariants:
 * - At most one turn is under way; the next is queued only after the last one ended in a `yield`.
 * - Cancelling sets a flag and nothing else.
 * - An error nobody joins for surfaces as an unhandled rejection; it is never dropped.
 */
import type { Coroutine } from '../coroutine/coroutine.ts'
import { BlockError } from '../util/errors.ts'
import type { RunTask } from './bottom-half.ts'

/** A coroutine whatever its result is: what tells one from another, and may be asked to end. */
export interface CoroutineIdentity {
  /** Number of the coroutine, unique in the thread. */
  readonly id: number
  /** Name for reports. */
  readonly name: string
  /** Where it was spawned: lines of a stack, empty when the context does not trace. */
  readonly site: () => string
  /** Where it stands. */
  readonly state: CoroutineState
  /** Whether somebody asked it to end early; it looks at its pause points. */
  readonly cancelled: boolean
  /** Neighbours in the context's list of running coroutines; the context's alone. */
  previous: CoroutineIdentity | undefined
  next: CoroutineIdentity | undefined
  /** Asks it to end early. */
  cancel(): void
}

/** What a coroutine needs of its context. */
export interface CoroutineHost {
  /** The coroutine whose turn it is. */
  current: CoroutineIdentity | undefined
  /** Runs the task in the next slice. */
  enqueue(task: RunTask): void
  /** The coroutine reached its end. */
  ended(handle: CoroutineIdentity): void
}

/** Where a coroutine stands. */
export type CoroutineState = 'queued' | 'waiting' | 'finished' | 'failed'

let lastId = 0

/** A spawned coroutine. */
export class CoroutineHandle<T> implements RunTask, CoroutineIdentity {
  /** Number of the coroutine, unique in the thread. */
  readonly id: number
  /** Where it was spawned: lines of a stack, empty when the context does not trace. */
  readonly site: () => string
  /** Neighbours in the context's list of running coroutines; the context's alone. */
  previous: CoroutineIdentity | undefined
  next: CoroutineIdentity | undefined
  readonly #name: string
  readonly #host: CoroutineHost
  readonly #work: Coroutine<T>
  #state: CoroutineState = 'queued'
  #cancelled = false
  #value: T | undefined
  #promise: Promise<T> | undefined
  #resolve: ((value: T) => void) | undefined
  #reject: ((reason: unknown) => void) | undefined

  constructor(host: CoroutineHost, name: string, site: () => string, work: CoroutineStart<T>) {
    lastId += 1
    this.id = lastId
    this.site = site
    this.previous = undefined
    this.next = undefined
    this.#name = name
    this.#host = host
    this.#work = typeof work === 'function' ? work(this) : work
  }

  /** Name for reports. */
  get name(): string {
    return this.#name === '' ? `coroutine ${this.id}` : this.#name
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
    if (this.#promise !== undefined) return this.#promise
    this.#promise =
      this.#state === 'finished'
        ? Promise.resolve(this.#value as T)
        : new Promise<T>((resolve, reject) => {
            this.#resolve = resolve
            this.#reject = reject
          })
    return this.#promise
  }

  /** Called by the context only: one turn. */
  run(): void {
    void this.#turn()
  }

  async #turn(): Promise<void> {
    this.#state = 'waiting'
    this.#host.current = this
    const turn = this.#work.next()
    this.#host.current = undefined
    let step: IteratorResult<unknown, T>
    try {
      step = await turn
    } catch (error) {
      this.#fail(error)
      return
    }
    if (step.done === true) {
      this.#state = 'finished'
      this.#value = step.value
      this.#host.ended(this)
      this.#resolve?.(step.value)
      return
    }
    // A generator waits for what it yields before the step arrives here, so the wait is over.
    this.#state = 'queued'
    this.#host.enqueue(this)
  }

  #fail(reason: unknown): void {
    this.#state = 'failed'
    this.#host.ended(this)
    const error = this.#withSite(reason)
    if (this.#reject !== undefined) this.#reject(error)
    else this.#promise = Promise.reject(error)
  }

  #withSite(reason: unknown): unknown {
    const error =
      reason instanceof Error ? reason : new BlockError('EIO', String(reason), {}, reason)
    const site = this.site()
    error.stack = `${error.stack ?? String(error)}\n    in coroutine '${this.name}'${site}`
    return error
  }
}

/** What `spawn` takes: a coroutine, or a function that makes one and learns its handle. */
export type CoroutineStart<T> = Coroutine<T> | ((self: CoroutineHandle<T>) => Coroutine<T>)
