/**
 * Bridges between operations that may finish inline and coroutines.
 *
 * Invariants:
 * - What finished inline costs no generator: one finished object answers for all of them.
 */
import type { Coroutine, MaybePromise, Pending, Step } from './coroutine.ts'

/** A coroutine that is over already has no state, so one serves everyone. */
const FINISHED: Coroutine<void> = ending(Promise.resolve({ done: true, value: undefined }))

/**
 * A coroutine out of an operation: `yield* run(child.pread(0, buf))`. What the operation throws
 * inline is thrown where it is called, before `run`.
 */
export function run(op: Pending): Coroutine<void> {
  return op === undefined ? FINISHED : runValue(op)
}

/** The same for an operation with a result: `const n = yield* runValue(op)`. */
export function runValue<T>(op: MaybePromise<T>): Coroutine<T> {
  return ending(Promise.resolve(op).then((value) => ({ done: true, value })))
}

/** A coroutine with nothing but an end. */
function ending<T>(end: Promise<IteratorReturnResult<T>>): Coroutine<T> {
  const answer: Promise<IteratorResult<Step, T>> = end
  const over: Coroutine<T> = {
    next: () => answer,
    return: () => answer,
    throw: (reason) => Promise.reject(reason),
    [Symbol.asyncIterator]: () => over,
    [Symbol.asyncDispose]: () => Promise.resolve(),
  }
  return over
}
