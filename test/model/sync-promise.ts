/**
 * Stands for `Promise` while an explorer runs: what waits for it runs in the step that settles it.
 *
 * Invariants:
 * - No microtask: an execution is one synchronous run, so continuations must be part of it.
 * - What is thrown to leave a thread passes through; it settles nothing.
 */

type Settle<T> = (value: T | PromiseLike<T>) => void
type Outcome<T> = { readonly value: T } | { readonly reason: unknown }

/** The few parts of a promise that `src/sync` uses. */
export class SyncPromise<T> implements PromiseLike<T> {
  #outcome: Outcome<T> | undefined
  readonly #waiting: ((outcome: Outcome<T>) => void)[] = []

  constructor(executor: (resolve: Settle<T>, reject: (reason: unknown) => void) => void) {
    executor(
      (value) => this.#resolve(value),
      (reason) => this.#settle({ reason }),
    )
  }

  // biome-ignore lint/suspicious/noThenProperty: it stands for a promise
  then<A = T, B = never>(
    onValue?: ((value: T) => A | PromiseLike<A>) | null,
    onReason?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): SyncPromise<A | B> {
    return new SyncPromise<A | B>((resolve, reject) => {
      this.#when((outcome) => {
        let next: A | B | PromiseLike<A | B>
        try {
          if ('value' in outcome) next = onValue ? onValue(outcome.value) : (outcome.value as never)
          else if (onReason) next = onReason(outcome.reason)
          else throw outcome.reason
        } catch (thrown) {
          if (typeof thrown === 'symbol') throw thrown
          reject(thrown)
          return
        }
        resolve(next)
      })
    })
  }

  #when(fn: (outcome: Outcome<T>) => void): void {
    if (this.#outcome === undefined) this.#waiting.push(fn)
    else fn(this.#outcome)
  }

  #resolve(value: T | PromiseLike<T>): void {
    if (value instanceof SyncPromise) {
      value.then(
        (inner: T) => this.#resolve(inner),
        (reason) => this.#settle({ reason }),
      )
    } else this.#settle({ value: value as T })
  }

  #settle(outcome: Outcome<T>): void {
    if (this.#outcome !== undefined) return
    this.#outcome = outcome
    for (const fn of this.#waiting.splice(0)) fn(outcome)
  }
}

/** Runs `fn`, which is synchronous, with the stand-in in the place of `Promise`. */
export function withSyncPromise<T>(fn: () => T): T {
  const before = globalThis.Promise
  Object.assign(globalThis, { Promise: SyncPromise })
  try {
    return fn()
  } finally {
    Object.assign(globalThis, { Promise: before })
  }
}
