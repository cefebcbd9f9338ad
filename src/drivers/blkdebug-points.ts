/**
 * Places at which the requests of a `blkdebug` node stop until somebody lets them go.
 *
 * Invariants:
 * - A request that stopped counts as in flight; whoever drains waits for it.
 * - A tag stops one request.
 */
import type { Pending } from '../coroutine/coroutine.ts'
import { BlockError } from '../util/errors.ts'

/** Places at which requests of a `blkdebug` node stop until they are let go. */
export interface DebugPoints {
  /** The request that follows the next `event` stops under this tag. */
  suspendAt(event: string, tag: string): void
  /** Settles when a request has stopped under the tag. */
  stopped(tag: string): Promise<void>
  /** Lets the request go on and forgets the tag. Error: ENOENT when nothing has it. */
  resume(tag: string): void
}

interface Breakpoint {
  readonly event: string
  readonly stopped: Promise<void>
  readonly stop: () => void
  readonly resumed: Promise<void>
  readonly resume: () => void
  hit: boolean
}

function breakpoint(event: string): Breakpoint {
  let stop!: () => void
  let resume!: () => void
  const stopped = new Promise<void>((resolve) => (stop = resolve))
  const resumed = new Promise<void>((resolve) => (resume = resolve))
  return { event, stopped, stop, resumed, resume, hit: false }
}

/** The places of one node, and the request that is due to stop. */
export class BreakpointTable implements DebugPoints {
  readonly #byTag = new Map<string, Breakpoint>()
  #due: Breakpoint | undefined

  suspendAt(event: string, tag: string): void {
    this.#byTag.set(tag, breakpoint(event))
  }

  stopped(tag: string): Promise<void> {
    return this.#find(tag).stopped
  }

  resume(tag: string): void {
    this.#find(tag).resume()
    this.#byTag.delete(tag)
  }

  /** Lets everything go. */
  clear(): void {
    for (const tag of [...this.#byTag.keys()]) this.resume(tag)
  }

  /** An event happened: the next request stops if somebody asked for that. */
  happened(event: string): void {
    for (const point of this.#byTag.values())
      if (point.event === event && !point.hit) this.#due = point
  }

  /** A request begins: its wait, if it has to stop. */
  pass(): Pending {
    const point = this.#due
    if (point === undefined) return undefined
    this.#due = undefined
    point.hit = true
    point.stop()
    return point.resumed
  }

  #find(tag: string): Breakpoint {
    const found = this.#byTag.get(tag)
    if (found !== undefined) return found
    throw new BlockError('ENOENT', `No request stops under '${tag}'`)
  }
}
