/**
 * Which pieces of a disk somebody works on, when several threads share the work.
 *
 * Invariants:
 * - A piece has one holder at most; only the holder gives it back.
 * - Nobody waits: who does not get a piece takes another one and comes back.
 *
 * Words: one bit a piece, set by the thread that takes it, cleared by the same thread.
 */
import { assert } from '../util/errors.ts'
import { shared } from './atomics.ts'

/** A view of the claims; every thread makes its own over the same words. */
export class PieceClaims {
  /** The words. */
  readonly words: Int32Array

  constructor(words: Int32Array) {
    this.words = words
  }

  /** Claims for so many pieces, none of them held. */
  static create(pieces: number): PieceClaims {
    const words = Math.max(1, Math.ceil(pieces / 32))
    return new PieceClaims(new Int32Array(new SharedArrayBuffer(words * 4)))
  }

  /** Takes a piece; false when somebody holds it. */
  take(piece: number): boolean {
    const bit = 1 << (piece & 31)
    assert(piece >>> 5 < this.words.length, 'the claims cover the piece')
    return (shared.or(this.words, piece >>> 5, bit) & bit) === 0
  }

  /** Gives back a piece that was taken. */
  give(piece: number): void {
    const bit = 1 << (piece & 31)
    const before = shared.and(this.words, piece >>> 5, ~bit)
    assert((before & bit) !== 0, 'a piece is given back by its holder')
  }

  /** Whether nobody holds any piece. */
  get idle(): boolean {
    return shared.firstNonZero(this.words, 0, this.words.length) < 0
  }
}
