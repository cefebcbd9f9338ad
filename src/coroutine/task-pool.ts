/**
 * Runs at most a given number of tasks at once and remembers the first failure.
 *
 * Invariants:
 * - The first error sticks; later tasks still run, later errors are dropped.
 * - Nothing is running when `waitAll` is over.
 * - A task that finds a place starts inline, without a promise.
 */
import { CoQueue } from './co-queue.ts'
import type { Pending } from './coroutine.ts'

/** The pool. */
export class TaskPool {
  /** Most tasks at once. */
  readonly max: number
  #busy = 0
  #failed = false
  #error: unknown
  readonly #slots = new CoQueue()
  readonly #idle = new CoQueue()

  constructor(max: number) {
    this.max = max
  }

  /** Tasks that run now. */
  get busy(): number {
    return this.#busy
  }

  /** The first error, if any task failed. */
  get error(): unknown {
    return this.#error
  }

  /** Whether a task failed. */
  get failed(): boolean {
    return this.#failed
  }

  /** Starts a task, after waiting for a place; `undefined` = started. */
  start(task: () => Pending): Pending {
    const wait = this.waitSlot()
    if (wait === undefined) this.#begin(task)
    else return wait.then(() => this.start(task))
    return undefined
  }
  /** Waits for a free place; `undefined` = there is one. Another may take it first. */
  waitSlot(): Pending {
    return this.#busy < this.max ? undefined : this.#slots.wait()
  }

  /** Waits for every task; throws the first error. */
  async waitAll(): Promise<void> {
    while (this.#busy > 0) await this.#idle.wait()
    if (this.#failed) throw this.#error
  }

  #begin(task: () => Pending): void {
    this.#busy += 1
    try {
      const work = task()
      if (work === undefined) this.#end()
      else
        void work.then(
          () => this.#end(),
          (error: unknown) => this.#fail(error),
        )
    } catch (error) {
      this.#fail(error)
    }
  }

  #fail(error: unknown): void {
    if (!this.#failed) {
      this.#failed = true
      this.#error = error
    }
    this.#end()
  }

  #end(): void {
    this.#busy -= 1
    this.#slots.next()
    if (this.#busy === 0) this.#idle.restartAll()
  }
}
