/**
 * Explores the interleavings of threads that run the real code of `src/sync`.
 *
 * Every operation on a shared word is a step. At each step the explorer either goes on with the same
 * thread or switches; it walks all such choices depth first, up to a number of preemptions (switches
 * away from a thread that could go on). A thread that was switched away is run again from its start
 * with the recorded answers of its earlier steps, so plain synchronous code needs no suspension.
 *
 * Invariants:
 * - A thread function depends on nothing but its own locals and the answers of its steps. What it
 *   reads or writes elsewhere goes through `ghost`.
 * - One choice list stands for one execution; it is printed with a failure and replays it.
 */
import { HOST_OPS, type SharedOps, withSharedOps } from '../../src/sync/atomics.ts'
import { hostHolders, releaseHost } from '../../src/util/host.ts'
import { withSyncPromise } from './sync-promise.ts'

/** What a thread function may use besides shared words. */
export interface Model {
  /** Reads or writes the checker's own data, in the same step as the operation before it. */
  ghost<T>(fn: () => T): T
  /** Lets the host loop turn: runs what a wait that does not block has queued, or sleeps until then. */
  hostTurn(): void
  /** Ends another thread if it is blocked, as a worker may end; answers whether it was. */
  kill(thread: number): boolean
  /** Ends another thread between any two of its steps, as `terminate` does; answers whether it was alive. */
  killAnywhere(thread: number): boolean
  /** Lets the host loop turn until the promise is settled; throws what it is rejected with. */
  settle<T>(wait: T | PromiseLike<T> | undefined): T | undefined
}

/** A program to explore. `S` is the memory of one execution. */
export interface Program<S> {
  /** Makes the memory; called before each execution. */
  make(): S
  /** The threads. */
  readonly threads: readonly ((memory: S, model: Model) => void)[]
  /** Looks at the memory when all threads ended. */
  check?(memory: S): void
  /** Replaces operations, to break the code on purpose. */
  sabotage?(ops: SharedOps): Partial<SharedOps>
}

/** How far to search. */
export interface Bounds {
  /** Most preemptions in one execution; default 2. */
  readonly preemptions?: number
  /** Most executions; more is an error, so that a bound is never silent. Default 200 000. */
  readonly executions?: number
}

/** What was found. */
export interface Outcome {
  /** How many executions were run. */
  readonly executions: number
  /** The first failure. */
  readonly failure?: { readonly error: unknown; readonly choices: readonly number[] }
}

/** Thrown through a thread's stack to leave it. */
const LEAVE = Symbol('leave')

type Status = 'ready' | 'blocked' | 'done'

interface Waiter {
  readonly thread: Thread
  readonly words: Int32Array
  readonly index: number
  /** Number of a wait that does not block; absent for one that does. */
  readonly token?: number
}

interface Thread {
  readonly number: number
  status: Status
  /** Answers of the steps so far. */
  readonly log: unknown[]
  cursor: number
  /** Woken waits that the host loop has not run yet. */
  readonly turned: number[]
  inHostTurn: boolean
  callbacks: Map<number, () => void>
}

interface Choice {
  taken: number
  readonly options: number
}

/** One execution along a list of choices. */
class Execution<S> {
  readonly choices: Choice[] = []
  readonly #program: Program<S>
  readonly #prefix: readonly number[]
  #preemptionsLeft: number
  readonly #threads: Thread[]
  readonly #waiters: Waiter[] = []
  #running: Thread | undefined
  #resumed = false
  #leaving = false
  #inGhost = false
  #next: Thread | undefined
  #tokens = 0
  readonly #ops: SharedOps
  readonly #memory: S
  readonly #model: Model

  constructor(program: Program<S>, prefix: readonly number[], preemptions: number) {
    this.#program = program
    this.#prefix = prefix
    this.#preemptionsLeft = preemptions
    this.#memory = program.make()
    this.#threads = program.threads.map((_, number) => ({
      number,
      status: 'ready',
      log: [],
      cursor: 0,
      turned: [],
      inHostTurn: false,
      callbacks: new Map(),
    }))
    this.#model = this.#makeModel()
    const ops = this.#controlled()
    this.#ops = { ...ops, ...program.sabotage?.(ops) }
  }

  /** Runs to the end; throws what a thread or the check throws. */
  run(): void {
    this.#next = this.#pick(undefined)
    withSharedOps(this.#ops, () =>
      withSyncPromise(() => {
        while (this.#next !== undefined) this.#runThread(this.#next)
      }),
    )
    const stuck = this.#threads.filter((thread) => thread.status === 'blocked')
    if (stuck.length > 0) {
      throw new Error(`stuck for ever: threads ${stuck.map((t) => t.number).join(', ')}`)
    }
    this.#program.check?.(this.#memory)
  }

  #runThread(thread: Thread): void {
    thread.cursor = 0
    thread.callbacks = new Map()
    this.#running = thread
    this.#next = undefined
    this.#leaving = false
    // The choice to run it was made already; its first new step is not asked about again.
    this.#resumed = true
    const holders = hostHolders()
    try {
      const body = this.#program.threads[thread.number]
      body?.(this.#memory, this.#model)
      thread.status = 'done'
      this.#next = this.#pick(undefined)
    } catch (error) {
      if (error !== LEAVE) throw error
    } finally {
      while (hostHolders() > holders) releaseHost()
    }
  }

  /** Chooses who makes the next step; `current` could make it too, if it is given. */
  #pick(current: Thread | undefined): Thread | undefined {
    const others = this.#threads.filter((t) => t.status === 'ready' && t !== current)
    const options = current === undefined ? others : [current, ...others]
    if (options.length === 0) return undefined
    const free = current === undefined || this.#preemptionsLeft > 0
    if (!free || options.length === 1) return options[0]
    const taken = this.#prefix[this.choices.length] ?? 0
    this.choices.push({ taken, options: options.length })
    if (current !== undefined && taken > 0) this.#preemptionsLeft -= 1
    return options[taken]
  }

  #leave(next: Thread | undefined): never {
    this.#next = next
    this.#leaving = true
    throw LEAVE
  }

  /** One step of the running thread: its recorded answer, or a new one once it is its turn. */
  #step<T>(fn: (thread: Thread) => T, preemptible = true): T {
    if (this.#leaving) throw LEAVE
    // What a checker looks at is no step of its own.
    if (this.#inGhost) return fn(this.#running as Thread)
    const thread = this.#running as Thread
    if (thread.cursor < thread.log.length) {
      const answer = thread.log[thread.cursor] as T
      thread.cursor += 1
      return answer
    }
    if (preemptible && !this.#resumed) {
      const next = this.#pick(thread)
      if (next !== thread) this.#leave(next)
    }
    this.#resumed = false
    const answer = fn(thread)
    thread.log.push(answer)
    thread.cursor += 1
    return answer
  }

  #block(thread: Thread, waiter?: Waiter): never {
    thread.status = 'blocked'
    if (waiter !== undefined) this.#waiters.push(waiter)
    this.#leave(this.#pick(undefined))
  }

  #notify(words: Int32Array, index: number, count: number): number {
    let woken = 0
    for (let i = 0; i < this.#waiters.length && woken < count; ) {
      const waiter = this.#waiters[i] as Waiter
      if (waiter.index !== index || waiter.words.buffer !== words.buffer) {
        i += 1
        continue
      }
      this.#waiters.splice(i, 1)
      this.#wake(waiter)
      woken += 1
    }
    return woken
  }

  #wake({ thread, token }: Waiter): void {
    if (token === undefined) {
      thread.log.push('ok')
      thread.status = 'ready'
      return
    }
    thread.turned.push(token)
    if (!thread.inHostTurn) return
    thread.inHostTurn = false
    thread.log.push(thread.turned.splice(0))
    thread.status = 'ready'
  }

  #wait(words: Int32Array, index: number, value: number): 'ok' | 'not-equal' {
    return this.#step((thread) => {
      if (HOST_OPS.load(words, index) !== value) return 'not-equal'
      return this.#block(thread, { thread, words, index })
    })
  }

  #controlled(): SharedOps {
    const host = HOST_OPS
    return {
      load: (w, i) => this.#step(() => host.load(w, i)),
      store: (w, i, v) => this.#step(() => host.store(w, i, v)),
      add: (w, i, v) => this.#step(() => host.add(w, i, v)),
      sub: (w, i, v) => this.#step(() => host.sub(w, i, v)),
      or: (w, i, v) => this.#step(() => host.or(w, i, v)),
      and: (w, i, v) => this.#step(() => host.and(w, i, v)),
      exchange: (w, i, v) => this.#step(() => host.exchange(w, i, v)),
      compareExchange: (w, i, e, r) => this.#step(() => host.compareExchange(w, i, e, r)),
      firstNonZero: (w, from, to) => this.#step(() => host.firstNonZero(w, from, to)),
      get: (s, i) => this.#step(() => host.get(s, i)),
      set: (s, i, v) => this.#step(() => host.set(s, i, v)),
      wait: (w, i, v) => this.#wait(w, i, v),
      waitAsync: (w, i, v) => {
        const token = this.#step((thread) => {
          if (host.load(w, i) !== v) return 0
          this.#tokens += 1
          this.#waiters.push({ thread, words: w, index: i, token: this.#tokens })
          return this.#tokens
        })
        if (token === 0) return { async: false, value: 'not-equal' }
        return { async: true, value: this.#thenable(token) }
      },
      notify: (w, i, count = Number.POSITIVE_INFINITY) =>
        this.#step(() => this.#notify(w, i, count)),
    }
  }

  /** Stands for the promise of a wait that does not block: only remembers what to call. */
  #thenable(token: number): PromiseLike<unknown> {
    const thread = this.#running as Thread
    const pending = new Promise<never>(() => undefined)
    return {
      // biome-ignore lint/suspicious/noThenProperty: it stands for a promise
      then: (onDone) => {
        thread.callbacks.set(token, () => onDone?.('ok'))
        return pending
      },
    }
  }

  #makeModel(): Model {
    return {
      ghost: (fn) => this.#step(() => this.#ghost(fn), false),
      kill: (number) => this.#step(() => this.#kill(number, ['blocked'])),
      killAnywhere: (number) => this.#step(() => this.#kill(number, ['blocked', 'ready'])),
      hostTurn: () => this.#hostTurn(),
      settle: (wait) => this.#settle(wait),
    }
  }

  #hostTurn(): void {
    const tokens = this.#step((thread) => {
      if (thread.turned.length > 0) return thread.turned.splice(0)
      thread.inHostTurn = true
      return this.#block(thread)
    })
    for (const token of tokens) this.#running?.callbacks.get(token)?.()
  }

  #settle<T>(wait: T | PromiseLike<T> | undefined): T | undefined {
    if (!isThenable(wait)) return wait
    let end: (() => T) | undefined
    wait.then(
      (value) => {
        end = () => value
      },
      (reason: unknown) => {
        end = () => {
          throw reason
        }
      },
    )
    while (end === undefined) this.#hostTurn()
    return end()
  }

  #ghost<T>(fn: () => T): T {
    this.#inGhost = true
    try {
      return fn()
    } finally {
      this.#inGhost = false
    }
  }

  #kill(number: number, states: readonly Status[]): boolean {
    const thread = this.#threads[number]
    if (thread === undefined || !states.includes(thread.status)) return false
    thread.status = 'done'
    const left = this.#waiters.filter((waiter) => waiter.thread !== thread)
    this.#waiters.splice(0, this.#waiters.length, ...left)
    return true
  }
}

function isThenable<T>(value: T | PromiseLike<T> | undefined): value is PromiseLike<T> {
  return typeof value === 'object' && value !== null && 'then' in value
}

/** The next list of choices in depth-first order, or undefined after the last. */
function successor(choices: readonly Choice[]): number[] | undefined {
  for (let i = choices.length - 1; i >= 0; i -= 1) {
    const { taken, options } = choices[i] as Choice
    if (taken + 1 < options) return [...choices.slice(0, i).map((c) => c.taken), taken + 1]
  }
  return undefined
}

/** Runs every execution within the bounds, or up to the first failure. */
export function explore<S>(program: Program<S>, bounds: Bounds = {}): Outcome {
  const { preemptions = 2, executions: limit = 200_000 } = bounds
  let prefix: number[] | undefined = []
  let executions = 0
  while (prefix !== undefined) {
    if (executions === limit) throw new Error(`more than ${limit} interleavings; lower the bound`)
    executions += 1
    const execution: Execution<S> = new Execution(program, prefix, preemptions)
    try {
      execution.run()
    } catch (error) {
      return { executions, failure: { error, choices: execution.choices.map((c) => c.taken) } }
    }
    prefix = successor(execution.choices)
  }
  return { executions }
}

/** Runs one execution again, for a debugger. */
export function replay<S>(program: Program<S>, choices: readonly number[], preemptions = 2): void {
  new Execution(program, choices, preemptions).run()
}
