/**
 * Sees every coroutine that a test spawns, in whatever context, and names those that did not end.
 *
 * Invariants:
 * - Production code knows nothing of it: `spawn` is wrapped from outside, once a test file.
 * - It ends nothing; a coroutine runs to its own end or is reported.
 */
import { AioContext } from '../../src/aio/aio-context.ts'
import type { CoroutineHandle, CoroutineStart } from '../../src/aio/coroutine-handle.ts'

type AnyHandle = Pick<CoroutineHandle<unknown>, 'name' | 'state'>

interface Spawned {
  readonly handle: AnyHandle
  readonly context: string
  /** Keeps the frames; they become text only when somebody asks. */
  readonly holder: { stack?: string }
}

/** Coroutines that ended are dropped from the list whenever it is this long. */
const PRUNE_AT = 4096
/** Frames of a creation site. */
const FRAMES = 8
/** Turns of the host loop that a coroutine has to end by itself, then short sleeps. */
const TURNS = 50
const SLEEPS = 30
const SLEEP_MS = 10

let spawned: Spawned[] = []

function ended({ handle }: Spawned): boolean {
  return handle.state === 'finished' || handle.state === 'failed'
}

function record(context: AioContext, handle: AnyHandle, skip: unknown): void {
  const holder: { stack?: string } = {}
  const limit = Error.stackTraceLimit
  Error.stackTraceLimit = FRAMES
  Error.captureStackTrace(holder, skip as () => void)
  Error.stackTraceLimit = limit
  spawned.push({ handle, context: context.name, holder })
  if (spawned.length >= PRUNE_AT) spawned = spawned.filter((each) => !ended(each))
}

/** Begins to see what is spawned. */
export function watchSpawns(): void {
  const original = AioContext.prototype.spawn
  AioContext.prototype.spawn = function spawn<T>(
    this: AioContext,
    work: CoroutineStart<T>,
    options?: { readonly name?: string },
  ): CoroutineHandle<T> {
    const handle = Reflect.apply<
      AioContext,
      [CoroutineStart<T>, { readonly name?: string } | undefined],
      CoroutineHandle<T>
    >(original, this, [work, options])
    // Most end inside `spawn`, and then nobody has to remember them.
    if (handle.state !== 'finished') record(this, handle, spawn)
    return handle
  }
}

/** What was spawned since the last call. */
export function takeSpawned(): Spawned[] {
  const taken = spawned
  spawned = []
  return taken
}

/** Waits a little for the coroutines and describes those that still run; empty when all ended. */
export async function leftBehind(list: readonly Spawned[]): Promise<string> {
  let left = list.filter((each) => !ended(each))
  for (let i = 0; i < TURNS && left.length > 0; i += 1) {
    await new Promise((resolve) => setImmediate(resolve))
    left = left.filter((each) => !ended(each))
  }
  for (let i = 0; i < SLEEPS && left.length > 0; i += 1) {
    await new Promise((resolve) => setTimeout(resolve, SLEEP_MS))
    left = left.filter((each) => !ended(each))
  }
  return left.map(describe).join('\n')
}

function describe({ handle, context, holder }: Spawned): string {
  const site = (holder.stack ?? '').split('\n').slice(1).join('\n')
  return `'${handle.name}' (${handle.state}) in context '${context}', spawned\n${site}`
}
