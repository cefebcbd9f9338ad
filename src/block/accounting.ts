/**
 * What a backend did for its user: requests, bytes, failures, and how long they took.
 *
 * Invariants:
 * - A request is counted once, when it ends: done, failed, or invalid (refused before it began).
 * - Counts and bytes are exact. The time of a request that had to wait is exact too; of requests that
 *   end inline, where two looks at the clock can cost more than the request, one may stand for the up
 *   to sixty-three before it, once they come faster than fifty thousand a second.
 * - Totals never shrink. Counting allocates nothing.
 * - While a kind has a histogram, every request of the kind is timed, and its bins add up to the
 *   requests that ended, failed ones included, since it was set.
 */
import type { Clock } from '../util/clock.ts'
import { assert, BlockError } from '../util/errors.ts'

/** Kinds of operations that are told apart; a zero write is a write. */
export type Operation = 'read' | 'write' | 'flush' | 'unmap'

/** How many requests took how long. */
export interface LatencyHistogram {
  /** Nanoseconds at which a bin ends and the next begins, ascending. */
  readonly boundaries: readonly number[]
  /** Requests in each bin; one more than there are boundaries. */
  readonly bins: readonly number[]
}

/** What became of the requests of one kind. */
export interface OperationStatistics {
  /** Requests that succeeded. */
  readonly operations: number
  /** Bytes of those. */
  readonly bytes: number
  /** Requests that failed. */
  readonly failed: number
  /** Requests that were refused because no such range exists. */
  readonly invalid: number
  /** Nanoseconds that they took together, failed ones and what waited for a drain included. */
  readonly totalTimeNs: number
  /** Present after `setHistogram`. */
  readonly histogram?: LatencyHistogram
}

/** What `BlockBackend.statistics()` answers. */
export interface BackendStatistics {
  /** Reads. */
  readonly read: OperationStatistics
  /** Writes, zero writes among them. */
  readonly write: OperationStatistics
  /** Flushes. */
  readonly flush: OperationStatistics
  /** Discards. */
  readonly unmap: OperationStatistics
  /**
   * Nanoseconds since the last request ended; absent before the first. After a burst of requests that
   * ended inline it may miss the last of them, sixty-three at most.
   */
  readonly idleTimeNs?: number
}

/** `begin` of a request that is not timed. */
const UNTIMED = -1
/** Requests that pass untimed between two that are timed, at most. */
const MOST_UNTIMED = 63
/** Two looks at the clock are cheap once in this many milliseconds. */
const CHEAP_MS = 0.02
const NS_PER_MS = 1e6

/** The counters of one kind of operation; only `Accounting` changes them. */
export class Tally {
  /** Requests that succeeded. */
  operations = 0
  /** Bytes of those. */
  bytes = 0
  /** Requests that failed. */
  failed = 0
  /** Requests that were refused. */
  invalid = 0
  /** Milliseconds that they took together. */
  timeMs = 0
  /** Requests that ended inline, untimed, since the last timed one. */
  untimed = 0
  /** How many of them may pass before the next is timed. */
  skip = 0
  /** When the last timed one ended. */
  lookedAt = 0
  /** Of the histogram, while there is one. */
  boundaries: readonly number[] | undefined
  /** Of the histogram; empty without one. */
  bins: number[] = []

  /** The counters as a record. */
  report(): OperationStatistics {
    const { operations, bytes, failed, invalid, boundaries } = this
    const counted = { operations, bytes, failed, invalid }
    const totalTimeNs = toNs(this.timeMs)
    if (boundaries === undefined) return { ...counted, totalTimeNs }
    return { ...counted, totalTimeNs, histogram: { boundaries, bins: [...this.bins] } }
  }
}

/** The counters of one backend. */
export class Accounting {
  /** Reads. */
  readonly read: Tally = new Tally()
  /** Writes, zero writes among them. */
  readonly write: Tally = new Tally()
  /** Flushes. */
  readonly flush: Tally = new Tally()
  /** Discards. */
  readonly unmap: Tally = new Tally()
  readonly #clock: Clock
  #lastEnd: number | undefined
  #resumedFrom = UNTIMED

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** A request begins; the answer is handed to whichever of the methods below ends it. */
  begin(tally: Tally): number {
    return tally.untimed < tally.skip ? UNTIMED : this.start()
  }

  /** The same for a request that certainly waits. */
  start(): number {
    const from = this.#resumedFrom
    if (from === UNTIMED) return this.#clock.nowMs()
    this.#resumedFrom = UNTIMED
    return from
  }

  /** The request ended inline. */
  done(tally: Tally, bytes: number, from: number): void {
    tally.operations++
    tally.bytes += bytes
    if (from === UNTIMED) tally.untimed++
    else this.#look(tally, from, tally.untimed + 1)
  }

  /** The request failed inline. */
  failed(tally: Tally, from: number): void {
    tally.failed++
    if (from === UNTIMED) tally.untimed++
    else this.#look(tally, from, tally.untimed + 1)
  }

  /** The request turned out to wait; the answer takes the place of `begin`'s. */
  waits(from: number): number {
    return from === UNTIMED ? this.#clock.nowMs() : from
  }

  /** A request that waited is done. */
  waited(tally: Tally, bytes: number, from: number): void {
    tally.operations++
    tally.bytes += bytes
    this.#end(tally, from, 1)
  }

  /** A request that waited failed. */
  waitedInVain(tally: Tally, from: number): void {
    tally.failed++
    this.#end(tally, from, 1)
  }

  /** A read of what is known to be zeroes was answered without a request. */
  readZeroes(bytes: number): void {
    this.done(this.read, bytes, this.begin(this.read))
  }

  /** A request was refused before it began. */
  refused(kind: Operation): void {
    this[kind].invalid++
    this.#lastEnd = this.#clock.nowMs()
  }

  /** What `again` begins began at `from` already, and waited in a queue since. */
  resume<T>(tally: Tally, from: number, again: () => T): T {
    tally.untimed = 0
    tally.skip = 0
    this.#resumedFrom = from
    try {
      return again()
    } finally {
      this.#resumedFrom = UNTIMED
    }
  }

  /**
   * Counts how long requests of a kind take from now on, in bins between ascending boundaries in
   * nanoseconds; undefined stops it. Errors: EINVAL when they do not ascend from above zero.
   */
  setHistogram(kind: Operation, boundaries: readonly number[] | undefined): void {
    let last = 0
    for (const boundary of boundaries ?? []) {
      if (boundary <= last) throw new BlockError('EINVAL', 'Boundaries of a histogram must ascend')
      last = boundary
    }
    const tally = this[kind]
    tally.boundaries = boundaries
    tally.bins = boundaries === undefined ? [] : [0, ...boundaries.map(() => 0)]
    tally.skip = 0
    tally.untimed = 0
  }

  /** What was counted so far. */
  report(): BackendStatistics {
    const { read, write, flush, unmap } = this
    // Whoever asks wants to know when the next request comes.
    for (const tally of [read, write, flush, unmap]) tally.skip = 0
    const kinds = {
      read: read.report(),
      write: write.report(),
      flush: flush.report(),
      unmap: unmap.report(),
    }
    const last = this.#lastEnd
    return last === undefined ? kinds : { ...kinds, idleTimeNs: toNs(this.#clock.nowMs() - last) }
  }

  #look(tally: Tally, from: number, standsFor: number): void {
    const now = this.#end(tally, from, standsFor)
    const sinceMs = now - tally.lookedAt
    if (sinceMs >= CHEAP_MS * standsFor || tally.boundaries !== undefined) tally.skip = 0
    else if (sinceMs < CHEAP_MS) tally.skip = Math.min(MOST_UNTIMED, tally.skip * 2 + 1)
    tally.untimed = 0
    tally.lookedAt = now
  }

  #end(tally: Tally, from: number, standsFor: number): number {
    const now = this.#clock.nowMs()
    const tookMs = now - from
    assert(tookMs >= 0, 'a request ends after it began')
    tally.timeMs += tookMs * standsFor
    this.#lastEnd = now
    if (tally.boundaries !== undefined) bin(tally.boundaries, tally.bins, toNs(tookMs))
    return now
  }
}

function bin(boundaries: readonly number[], bins: number[], tookNs: number): void {
  let at = 0
  while (at < boundaries.length && tookNs >= (boundaries[at] ?? 0)) at++
  bins[at] = (bins[at] ?? 0) + 1
}

function toNs(ms: number): number {
  return Math.round(ms * NS_PER_MS)
}
