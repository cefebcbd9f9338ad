/**
 * The body of every copying job: takes dirty ranges, clears them, copies them.
 *
 * Invariants:
 * - A range is cleared before it is read, so a guest's write during the copy makes it dirty again.
 * - Pause and cancel are looked at before every piece; a pause leaves nothing in flight.
 * - A piece that failed is dirty again.
 * - Copiers of one job never work on the same piece at a time.
 */
import type { DirtyBitmap, DirtyRange } from '../sync/dirty-bitmap.ts'
import type { JobWords } from '../sync/job-words.ts'
import type { PieceClaims } from '../sync/piece-claims.ts'
import type { Clock } from '../util/clock.ts'
import { type ErrorRecord, toRecord } from '../util/errors.ts'
import type { BodyControl } from './body-control.ts'
import { MoveError, type MoveParts, moveSome } from './move.ts'
import { RateLimit } from './rate-limit.ts'

/** Longest piece that is copied at once, in bytes: the body looks up after each. */
export const PIECE_BYTES: number = 1024 * 1024
/** Bytes copied before the thread's loop gets a turn for messages. */
const TURN_BYTES = 4 * PIECE_BYTES

/** When a round of copying may end. */
export interface CopyGoal {
  /** End when no more than this many bytes are dirty; 0 = all clean. */
  readonly remaining: number
  /** End after so many passes over the disk whatever is dirty; 0 = no such bound. */
  readonly passes: number
}

/** How a round of copying ended. */
export type CopyOutcome =
  | { readonly kind: 'reached'; readonly remaining: number }
  | { readonly kind: 'cancelled' }
  | {
      readonly kind: 'error'
      readonly operation: 'read' | 'write'
      readonly error: ErrorRecord
    }

/** What a copier works with. */
export interface CopierParts extends MoveParts {
  readonly dirty: DirtyBitmap
  /** Pieces that copiers of the same job hold; absent: there is no other. */
  readonly claims?: PieceClaims | undefined
  readonly words: JobWords
  readonly control: BodyControl
  readonly clock: Clock
}

/** Bytes of a piece for a granularity: pieces are aligned to it, so that none shares a region. */
export function pieceBytes(granularity: number): number {
  return Math.max(PIECE_BYTES, granularity)
}

/** Copies dirty ranges from one view to another. */
export class Copier {
  readonly #parts: CopierParts
  readonly #pieceBytes: number
  readonly #rate = new RateLimit()
  #sinceTurn = 0
  #recalled = false

  constructor(parts: CopierParts) {
    this.#parts = parts
    this.#pieceBytes = pieceBytes(parts.dirty.granularity)
  }

  /** Bytes that are dirty now. */
  get remaining(): number {
    return this.#parts.dirty.dirtyBytes
  }

  /** Ends the round that runs after its piece, as if the goal was reached. */
  recall(): void {
    this.#recalled = true
  }

  /** Copies until the goal is reached, an error stops it, or the job is cancelled. */
  async round(goal: CopyGoal): Promise<CopyOutcome> {
    const { words, control } = this.#parts
    this.#recalled = false
    let cursor = 0
    let copied = 0
    for (let passes = 0; ; ) {
      if (words.cancelled) return { kind: 'cancelled' }
      if (this.#recalled) return { kind: 'reached', remaining: this.remaining }
      if (words.paused) {
        await control.rest()
        continue
      }
      const run = this.#next(cursor)
      if (run === undefined) {
        const { remaining } = this
        passes += 1
        // What is left is held by others, or there is nothing: they end what they hold.
        if (copied === 0 || remaining <= goal.remaining || passes === goal.passes) {
          return { kind: 'reached', remaining }
        }
        cursor = 0
        copied = 0
        continue
      }
      cursor = run.offset + run.bytes
      const failed = await this.#claimed(run)
      if (failed === 'held') continue
      if (failed !== undefined) return failed
      copied += run.bytes
    }
  }

  /** The next dirty run that lies in one piece. */
  #next(cursor: number): DirtyRange | undefined {
    const unit = this.#pieceBytes
    const run = this.#parts.dirty.nextDirty(cursor, unit)
    if (run === undefined) return undefined
    const end = (Math.floor(run.offset / unit) + 1) * unit
    return run.offset + run.bytes <= end ? run : { offset: run.offset, bytes: end - run.offset }
  }

  /** A piece has one copier at a time: a late copy must not land on a newer one. */
  async #claimed(run: DirtyRange): Promise<CopyOutcome | 'held' | undefined> {
    const { claims } = this.#parts
    if (claims === undefined) return this.#piece(run)
    const piece = Math.floor(run.offset / this.#pieceBytes)
    if (!claims.take(piece)) return 'held'
    try {
      // Whoever held it since this one looked has copied some of it.
      const now = this.#next(run.offset)
      if (now === undefined || Math.floor(now.offset / this.#pieceBytes) !== piece) return 'held'
      return await this.#piece(now)
    } finally {
      claims.give(piece)
    }
  }

  async #piece({ offset, bytes }: DirtyRange): Promise<CopyOutcome | undefined> {
    const { dirty, words, source, control } = this.#parts
    const end = Math.min(offset + bytes, source.length)
    // Set before the range is clean: nothing seems done that is not.
    words.inFlight = end - offset
    dirty.clearRange(offset, bytes)
    try {
      for (let at = offset; at < end; ) {
        if (at > offset && words.paused) await control.rest()
        if (words.cancelled) {
          dirty.setRange(at, end - at)
          return { kind: 'cancelled' }
        }
        const stop = Math.min(end, at + PIECE_BYTES)
        const from = at
        while (at < stop) at += await moveSome(this.#parts, at, stop - at)
        words.addDone(at - from)
        words.inFlight = end - at
        await this.#pace(at - from)
      }
      return undefined
    } catch (thrown) {
      dirty.setRange(offset, bytes)
      const isMove = thrown instanceof MoveError
      const error = toRecord(isMove ? thrown.thrown : thrown)
      return { kind: 'error', operation: isMove ? thrown.operation : 'read', error }
    } finally {
      words.inFlight = 0
    }
  }

  async #pace(bytes: number): Promise<void> {
    const { words, control, clock } = this.#parts
    this.#rate.setSpeed(words.speed)
    const delayMs = this.#rate.delay(bytes, clock.nowMs())
    if (delayMs > 0) {
      this.#sinceTurn = 0
      await control.sleep(delayMs)
      return
    }
    this.#sinceTurn += bytes
    if (this.#sinceTurn < TURN_BYTES) return
    this.#sinceTurn = 0
    await control.turn()
  }
}
