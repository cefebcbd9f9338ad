/**
 * The body of every copying job: takes dirty ranges, clears them, copies them.
 *
 * Invariants:
 * - A range is cleared before it is read, so a guest's write during the copy makes it dirty again.
 * - Pause and cancel are looked at before every piece; a pause leaves nothing in flight.
 * - A piece that failed is dirty again.
 */
import type { DirtyBitmap } from '../sync/dirty-bitmap.ts'
import type { JobWords } from '../sync/job-words.ts'
import type { Clock } from '../util/clock.ts'
import { type ErrorRecord, toRecord } from '../util/errors.ts'
import type { BodyControl } from './body-control.ts'
import { RateLimit } from './rate-limit.ts'
import type { DiskView, ViewStatus } from './view.ts'

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
export interface CopierParts {
  readonly source: DiskView
  readonly target: DiskView
  readonly dirty: DirtyBitmap
  readonly words: JobWords
  readonly control: BodyControl
  /** Shared memory for the data; its length bounds a piece. */
  readonly buffer: Uint8Array
  readonly clock: Clock
  /** What the source does not hold shows through from the target already. */
  readonly skipUnallocated: boolean
}

class PieceError {
  readonly operation: 'read' | 'write'
  readonly error: ErrorRecord

  constructor(operation: 'read' | 'write', thrown: unknown) {
    this.operation = operation
    this.error = toRecord(thrown)
  }
}

/** Copies dirty ranges from one view to another. */
export class Copier {
  readonly #parts: CopierParts
  readonly #rate = new RateLimit()
  #sinceTurn = 0

  constructor(parts: CopierParts) {
    this.#parts = parts
  }

  /** Bytes that are dirty now. */
  get remaining(): number {
    return this.#parts.dirty.dirtyBytes
  }

  /** Copies until the goal is reached, an error stops it, or the job is cancelled. */
  async round(goal: CopyGoal): Promise<CopyOutcome> {
    const { dirty, words, control, clock } = this.#parts
    let cursor = 0
    for (let passes = 0; ; ) {
      if (words.cancelled) return { kind: 'cancelled' }
      if (words.paused) {
        await control.rest()
        continue
      }
      const run = dirty.nextDirty(cursor, this.#parts.buffer.length)
      if (run === undefined) {
        if (cursor === 0) return { kind: 'reached', remaining: 0 }
        cursor = 0
        passes += 1
        const { remaining } = this
        if (remaining <= goal.remaining || (goal.passes > 0 && passes >= goal.passes)) {
          return { kind: 'reached', remaining }
        }
        continue
      }
      const { bytes } = run
      const failed = await this.#piece(run.offset, bytes)
      if (failed !== undefined) {
        return { kind: 'error', operation: failed.operation, error: failed.error }
      }
      cursor = run.offset + bytes
      await this.#pace(bytes, clock)
    }
  }

  async #piece(offset: number, bytes: number): Promise<PieceError | undefined> {
    const { dirty, words, source } = this.#parts
    dirty.clearRange(offset, bytes)
    try {
      const end = Math.min(offset + bytes, source.length)
      for (let at = offset; at < end; ) at += await this.#step(at, end - at)
      words.addDone(bytes)
      return undefined
    } catch (thrown) {
      dirty.setRange(offset, bytes)
      return thrown instanceof PieceError ? thrown : new PieceError('read', thrown)
    }
  }

  async #step(offset: number, bytes: number): Promise<number> {
    const { source, target, buffer, skipUnallocated } = this.#parts
    let status: ViewStatus
    const view = buffer.subarray(0, bytes)
    try {
      const answer = source.status(offset, bytes)
      status = answer instanceof Promise ? await answer : answer
      if (status.kind === 'data') {
        const pending = source.pread(offset, view.subarray(0, status.bytes))
        if (pending !== undefined) await pending
      }
    } catch (thrown) {
      throw new PieceError('read', thrown)
    }
    try {
      if (status.kind === 'data') {
        const pending = target.pwrite(offset, view.subarray(0, status.bytes))
        if (pending !== undefined) await pending
      } else if (status.kind === 'zero' || !skipUnallocated) {
        const pending = target.pwriteZeroes(offset, status.bytes)
        if (pending !== undefined) await pending
      }
    } catch (thrown) {
      throw new PieceError('write', thrown)
    }
    return status.bytes
  }

  async #pace(bytes: number, clock: Clock): Promise<void> {
    const { words, control } = this.#parts
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
