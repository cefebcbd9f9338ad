/**
 * Bridges between operations that may finish inline and coroutines.
 *
 * Invariants:
 * - What finished inline costs no generator: one finished object answers for all of them.
 */
import type { Coroutine, MaybePromise, Pending, Step } from './coroutine.ts'

/** A coroutine that is over already; it has no state, so one serves everyone. */
const DONE: IteratorReturnResult<void> = { done: true, value: undefined }
const FINISHED: Coroutine<void> = finished(DONE)

/**
 * A coroutine out of an operation: `yield* run(child.pread(0, buf))`. What the operation throws
 * inline is thrown where it is called, before `run`.
 */
export function run(op: Pending): Coroutine<void> {
  return op === undefined ? FINISHED : coWait(op)
}

/** The same for an operation with a result: `const n = yield* runValue(op)`. */
export function runValue<T>(op: MaybePromise<T>): Coroutine<T> {
  return op instanceof Promise ? coWait(op) : finished({ done: true, value: op })
}

/** Waits for one promise and answers its value, without giving the turn up more than that. */
async function* coWait<T>(op: Promise<T>): Coroutine<T> {
  return await op
}

function finished<T>(result: IteratorReturnResult<T>): Coroutine<T> {
  const answer = Promise.resolve<IteratorResult<Step, T>>(result)
  const over: Coroutine<T> = {
    next: () => answer,
    return: () => answer,
    throw: (reason) => Promise.reject(reason),
    [Symbol.asyncIterator]: () => over,
    [Symbol.asyncDispose]: () => Promise.resolve(),
  }
  return over
}
