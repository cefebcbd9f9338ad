/**
 * What the two halves of a job tell each other without a message: pause, cancel, speed, progress.
 *
 * Invariants:
 * - The control half (main thread) writes pause, cancel and speed; the body writes done and in flight.
 * - The body looks at pause and cancel before every piece of work, so both act within one piece.
 * - Nobody waits on these words: the messages that go with them wake the body.
 *
 * Words: pause (0 or 1), cancel (0 or 1), speed low and high half (bytes a second, 0 = unlimited),
 * done and in flight (units of 4 KiB).
 */
import { assert } from '../util/errors.ts'
import { shared } from './atomics.ts'

const PAUSE = 0
const CANCEL = 1
const SPEED_LOW = 2
const SPEED_HIGH = 3
const DONE = 4
const IN_FLIGHT = 5
/** Unit of the last two words in bytes: 32 bits of them reach 16 TiB. */
const DONE_UNIT = 4096
const HALF = 2 ** 32

/** A view of the words of one job body. */
export class JobWords {
  /** How many words it takes. */
  static readonly WORDS = 6
  /** The words. */
  readonly words: Int32Array

  constructor(words: Int32Array) {
    assert(words.length >= JobWords.WORDS, 'the words of a job fit their array')
    this.words = words
  }

  /** Words of a new body. */
  static create(): JobWords {
    return new JobWords(new Int32Array(new SharedArrayBuffer(JobWords.WORDS * 4)))
  }

  /** The body is asked to rest. */
  get paused(): boolean {
    return shared.load(this.words, PAUSE) !== 0
  }

  set paused(value: boolean) {
    shared.store(this.words, PAUSE, value ? 1 : 0)
  }

  /** The body is asked to stop for good. */
  get cancelled(): boolean {
    return shared.load(this.words, CANCEL) !== 0
  }

  /** Asks the body to stop for good; cannot be taken back. */
  cancel(): void {
    shared.store(this.words, CANCEL, 1)
  }

  /**
   * Bytes a second, 0 = unlimited. A reader may see halves of two values for one piece of work,
   * which costs at most one wrong delay.
   */
  get speed(): number {
    const low = shared.load(this.words, SPEED_LOW) >>> 0
    return (shared.load(this.words, SPEED_HIGH) >>> 0) * HALF + low
  }

  set speed(bytesPerSecond: number) {
    shared.store(this.words, SPEED_HIGH, Math.floor(bytesPerSecond / HALF) | 0)
    shared.store(this.words, SPEED_LOW, (bytesPerSecond % HALF) | 0)
  }

  /** Bytes done, to the nearest 4 KiB. */
  get done(): number {
    return (shared.load(this.words, DONE) >>> 0) * DONE_UNIT
  }

  /** The body did `bytes` more. */
  addDone(bytes: number): void {
    shared.add(this.words, DONE, Math.ceil(bytes / DONE_UNIT))
  }
  /** Bytes that are no longer to do and not yet done, rounded up to 4 KiB; the body sets it. */
  get inFlight(): number {
    return (shared.load(this.words, IN_FLIGHT) >>> 0) * DONE_UNIT
  }

  set inFlight(bytes: number) {
    shared.store(this.words, IN_FLIGHT, Math.ceil(bytes / DONE_UNIT))
  }
}
