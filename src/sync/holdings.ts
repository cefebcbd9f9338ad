/**
 * What one thread may hold of shared words, so that whoever sees it end gives all of it back.
 *
 * Invariants:
 * - Nothing is given back while the thread lives; after its end, everything, wherever it ended.
 * - Giving back twice is harmless.
 *
 * Words: none of its own; it holds views of the thread that watches.
 */
import { BlockError } from '../util/errors.ts'
import type { ContextLock } from './context-lock.ts'
import type { Doorbell } from './doorbell.ts'
import type { Gate } from './gate.ts'
import type { RangeLock } from './range-lock.ts'
import type { Ring } from './ring.ts'

/** A thread that tells when it ended; a host worker is one. */
export interface EndingThread {
  /** Calls `fn` when the thread is gone. */
  once(event: 'exit', fn: () => void): unknown
}

/** Something that only the thread can end. */
export interface WaitingForThread {
  /** Ends it with an error, unless it is over. */
  fail(error: BlockError): void
}

/** The list of what a thread may hold. */
export class Holdings {
  readonly #thread: number
  readonly #acts: (() => void)[] = []

  /** For the thread with that number, as its locks know it. */
  constructor(thread: number) {
    this.#thread = thread
  }

  /** It may hold the lock or wait for it: given up; who waits gets EIO if it held it. */
  lock(lock: ContextLock): this {
    this.#acts.push(() => lock.releaseDead(this.#thread))
    return this
  }

  /** It may hold ranges or wait for one: given up. */
  ranges(ranges: RangeLock): this {
    this.#acts.push(() => ranges.releaseDead(this.#thread))
    return this
  }

  /** It may be inside the gate, in its lane: its requests are over. */
  gate(gate: Gate, lane: number): this {
    this.#acts.push(() => gate.forgive(lane))
    return this
  }

  /** It is the other end of the ring: the ring is closed. */
  ring(ring: Ring): this {
    this.#acts.push(() => ring.close())
    return this
  }

  /** It rings the bell: rung once more, as it may have owed a ring. */
  bell(bell: Doorbell): this {
    this.#acts.push(() => bell.ring())
    return this
  }

  /** It is the one that wakes the coroutine: that fails with EIO. */
  wakes(parked: WaitingForThread): this {
    const words = 'The thread that was to wake the coroutine died'
    this.#acts.push(() => parked.fail(new BlockError('EIO', words, { op: 'wake' })))
    return this
  }

  /** Gives everything back; the thread is gone. */
  release(): void {
    for (const act of this.#acts) act()
  }

  /** Gives everything back when the thread ends. */
  releaseAtEndOf(thread: EndingThread): this {
    thread.once('exit', () => this.release())
    return this
  }
}
