/**
 * The same operations in the libraries that a user would pick instead, each as its documents say.
 *
 * Invariants:
 * - A peer runs its whole loop inside one run of its own, so that it pays its entry once.
 * - The five drivers are plain functions that hand on what the one below answers, as ours are; that
 *   is the cheapest form of each library.
 */
import co from 'co'
import { Effect, Fiber, Semaphore } from 'effect'
import { action, type Operation, run, spawn, until } from 'effection'
import type { Work } from './measure.ts'
import { tally } from './runtime-measure.ts'
import { stack, suspended } from './runtime-ours.ts'

/** One operation in one library. */
export interface Peer {
  /** The library and the form. */
  readonly name: string
  /** Does it `n` times. */
  readonly work: Work
}

/** The operations that have peers. */
export type PeerOp = 'spawn' | 'spawnInline' | 'inline' | 'waiting' | 'mutex'

const effectStep = Effect.sync(() => {
  tally.done++
})
const effectInline = stack(() => effectStep)
const effectWaiting = stack(() => Effect.promise(suspended))
const effectCallback = stack(() =>
  Effect.callback<void>((resume) => {
    queueMicrotask(() => {
      tally.done++
      resume(Effect.void)
    })
  }),
)

/** `n` times what `op` makes, in one fiber. */
function effectLoop(op: () => Effect.Effect<void>): Work {
  return (n) =>
    Effect.runPromise(
      Effect.gen(function* () {
        for (let i = 0; i < n; i++) yield* op()
      }),
    )
}

const effectSpawn: Work = (n) =>
  Effect.runPromise(
    Effect.gen(function* () {
      for (let i = 0; i < n; i++) {
        const fiber = yield* Effect.forkChild(effectStep, { startImmediately: true })
        yield* Fiber.join(fiber)
      }
    }),
  )

const semaphore = Semaphore.makeUnsafe(1)
const effectLocked = semaphore.withPermit(effectStep)

function* effectionStep(): Operation<void> {
  tally.done++
}
const effectionInline = stack(effectionStep)
const effectionUntil = stack(() => until(suspended()))
const effectionAction = stack(() =>
  action<void>((resolve) => {
    queueMicrotask(() => {
      tally.done++
      resolve()
    })
    return () => undefined
  }),
)

/** `n` times what `op` makes, in one task. */
function effectionLoop(op: () => Operation<void>): Work {
  return async (n) => {
    await run(function* () {
      for (let i = 0; i < n; i++) yield* op()
    })
  }
}

const effectionSpawn: Work = async (n) => {
  await run(function* () {
    for (let i = 0; i < n; i++) {
      const task = yield* spawn(effectionStep)
      yield* task
    }
  })
}

function* coStep(): Generator<never, void> {
  tally.done++
}
const coInline = stack(coStep)
const coWaiting = stack(suspended)

/** Every peer, by operation; a library without the operation has no entry. */
export const peers: Readonly<Record<PeerOp, readonly Peer[]>> = {
  spawn: [
    { name: 'effect, fork and join a fiber', work: effectSpawn },
    { name: 'effection, spawn and await a task', work: effectionSpawn },
    {
      name: 'co, call and await',
      work: async (n) => {
        for (let i = 0; i < n; i++) await co(coStep)
      },
    },
  ],
  // The rows of 'spawn' say it all: the libraries have one form for both.
  spawnInline: [],
  inline: [
    { name: 'effect, Effect.sync', work: effectLoop(effectInline) },
    { name: 'effection, yield* an operation', work: effectionLoop(effectionInline) },
    {
      name: 'co, yield* a generator',
      work: (n) =>
        co(function* (): Generator<never, void> {
          for (let i = 0; i < n; i++) yield* coInline()
        }),
    },
  ],
  waiting: [
    { name: 'effect, Effect.promise', work: effectLoop(effectWaiting) },
    { name: 'effect, Effect.callback', work: effectLoop(effectCallback) },
    { name: 'effection, until', work: effectionLoop(effectionUntil) },
    { name: 'effection, action', work: effectionLoop(effectionAction) },
    {
      name: 'co, yield a promise',
      work: (n) =>
        co(function* (): Generator<Promise<void>, void> {
          for (let i = 0; i < n; i++) yield coWaiting()
        }),
    },
  ],
  mutex: [{ name: 'effect, withPermit', work: effectLoop(() => effectLocked) }],
}
