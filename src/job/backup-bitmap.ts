/**
 * The dirty bitmap of a backup: what is to be copied by it, and what it says when the job is over.
 *
 * Invariants:
 * - From the moment of the backup the bitmap's bits rest; writes are noted apart and join at the end.
 * - A bitmap says clean only of what the target has.
 */
import { type BitmapHold, copyBits, type NamedBitmap } from '../block/named-bitmap.ts'
import { DirtyBitmap } from '../sync/dirty-bitmap.ts'
import type { CopyBeforeWriteFilter } from './cbw.ts'

/** What a job may do to the bitmap: clean it when it succeeds, never, or as far as it got. */
export type BitmapMode = 'on-success' | 'never' | 'always'

/** The bitmap of a backup. */
export interface BackupBitmap {
  readonly bitmap: NamedBitmap
  readonly mode: BitmapMode
}

/** The part that a bitmap plays in a running backup. */
export class BitmapPart {
  /** What is not on the target yet. */
  readonly rest: DirtyBitmap
  readonly #mode: BitmapMode
  readonly #hold: BitmapHold
  readonly #hide: () => void

  /** Begins now; the source is drained. `all`: everything is copied, whatever the bitmap says. */
  constructor(given: BackupBitmap, filter: CopyBeforeWriteFilter, all: boolean) {
    const { bits } = given.bitmap
    this.#mode = given.mode
    this.#hold = given.bitmap.hold()
    const granularity = Math.min(bits.granularity, filter.clusterSize)
    this.rest = DirtyBitmap.create(bits.size, granularity)
    this.#hide = given.bitmap.node.bitmaps.show({ bits: this.rest, recording: false })
    if (all) {
      this.rest.setAll()
      return
    }
    copyBits(bits, this.rest)
    filter.keepOnly(this.rest)
  }

  /** Something of the range is to be copied. */
  wants(offset: number, bytes: number): boolean {
    const next = this.rest.nextDirty(offset)
    return next !== undefined && next.offset < offset + bytes
  }

  /** The range is on the target. */
  copied(offset: number, bytes: number): void {
    this.rest.clearRange(offset, bytes)
  }

  /** The job ended; once. */
  end(success: boolean): void {
    this.#hide()
    if (this.#mode === 'never' || (!success && this.#mode === 'on-success')) this.#hold.end('all')
    else this.#hold.end(success ? 'none' : this.rest)
  }
}
