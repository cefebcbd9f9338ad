/**
 * The operations of the runtime that are measured, and the same as plain async functions.
 *
 * Invariants:
 * - Every way adds one to the tally for each operation, at the bottom of the same depth of calls.
 */
import { AioContext } from '../src/aio/aio-context.ts'
import { CoMutex } from '../src/coroutine/co-mutex.ts'
import type { Coroutine, Pending } from '../src/coroutine/coroutine.ts'
import { run } from '../src/coroutine/inline.ts'
import type { Work } from './measure.ts'
import { tally } from './runtime-measure.ts'

/** How many drivers lie between the caller and the leaf. */
const DEPTH = 5

/** Puts `DEPTH` drivers above a leaf; each hands on what the one below answers. */
export function stack<T>(leaf: () => T): () => T {
  let op = leaf
  for (let i = 0; i < DEPTH; i++) {
    const below = op
    op = () => {
      const answer = below()
      return answer
    }
  }
  return op
}

/** The disk of the waiting ways: done in the host's next microtask. */
export function suspended(): Promise<void> {
  return new Promise((resolve) =>
    queueMicrotask(() => {
      tally.done++
      resolve()
    }),
  )
}

async function plainAsync(): Promise<void> {
  tally.done++
}

async function* oneStep(): Coroutine<void> {
  tally.done++
}

/** The same as an operation that ends inline. */
function oneOp(): Pending {
  tally.done++
  return undefined
}

const inlineOp = stack((): Pending => {
  tally.done++
  return undefined
})
const waitingOp = stack((): Pending => suspended())
const waitingPromise = stack(suspended)
const resolved = Promise.resolve()

/** Plain async functions. */
export const plain: Readonly<Record<'call' | 'waiting' | 'resolved', Work>> = {
  call: async (n) => {
    for (let i = 0; i < n; i++) await plainAsync()
  },
  waiting: async (n) => {
    for (let i = 0; i < n; i++) await waitingPromise()
  },
  resolved: async (n) => {
    for (let i = 0; i < n; i++) {
      tally.done++
      await resolved
    }
  },
}

const ctx = new AioContext()
const mutex = new CoMutex()

/** Ours. */
export const ours: Readonly<
  Record<'spawn' | 'spawnInline' | 'inline' | 'waiting' | 'mutex', Work>
> = {
  spawn: async (n) => {
    for (let i = 0; i < n; i++) await ctx.spawn(oneStep).join()
  },
  spawnInline: async (n) => {
    for (let i = 0; i < n; i++) await ctx.spawn(oneOp).join()
  },
  inline: (n) =>
    ctx
      .spawn(async function* (): Coroutine<void> {
        for (let i = 0; i < n; i++) {
          const op = inlineOp()
          if (op !== undefined) yield* run(op)
        }
      })
      .join(),
  waiting: (n) =>
    ctx
      .spawn(async function* (): Coroutine<void> {
        for (let i = 0; i < n; i++) {
          const op = waitingOp()
          if (op !== undefined) await op
        }
      })
      .join(),
  mutex: async (n) => {
    for (let i = 0; i < n; i++) {
      const wait = mutex.lock()
      if (wait !== undefined) await wait
      tally.done++
      mutex.unlock()
    }
  },
}
