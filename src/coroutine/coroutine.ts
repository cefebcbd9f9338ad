/**
 * Coroutines as async generators: the shape of everything that may wait.
 *
 * Invariants:
 * - A coroutine always runs to its own end; nothing calls `return()` or `throw()` on it.
 * - `yield` hands the turn back to the context that runs it; what stands between two waits is atomic
 *   with respect to every other coroutine of that context.
 * - An operation that finished inline costs no generator: it answers `undefined`.
 */

/**
 * What a coroutine may yield: nothing (take another turn later) or a promise, which the language
 * itself waits for before the turn goes back. The value is ignored.
 */
export type Step = unknown

/** A running piece of work; made by calling an `async function*`. */
export type Coroutine<T> = AsyncGenerator<Step, T, void>

/** The answer of an operation: `undefined` when it finished inline, else something to wait for. */
export type Pending = Promise<void> | undefined

/** A value that is there already, or will be. */
export type MaybePromise<T> = T | Promise<T>
