/**
 * The rate limit of a job: so many bytes a slice of 100 ms, the excess is paid for afterwards.
 *
 * Invariants:
 * - Knows no clock: the caller says what time it is, so it runs alike in a worker and in a test.
 * - A speed of 0 never delays.
 */

/** Length of a slice in milliseconds. */
export const SLICE_MS = 100

/** Counts bytes against a speed. */
export class RateLimit {
  #quota = 0
  #dispatched = 0
  #sliceStartMs = 0
  #sliceEndMs = 0

  /** Bytes a second; 0 = unlimited. Takes effect with the next `delay`. */
  setSpeed(bytesPerSecond: number): void {
    this.#quota = bytesPerSecond === 0 ? 0 : Math.max(1, (bytesPerSecond * SLICE_MS) / 1000)
  }

  /** Accounts for `bytes` and says how many milliseconds to wait before going on. */
  delay(bytes: number, nowMs: number): number {
    if (this.#quota === 0) return 0
    if (nowMs >= this.#sliceEndMs) {
      this.#sliceStartMs = nowMs
      this.#sliceEndMs = nowMs + SLICE_MS
      this.#dispatched = 0
    }
    this.#dispatched += bytes
    if (this.#dispatched < this.#quota) return 0
    this.#sliceEndMs = this.#sliceStartMs + (this.#dispatched / this.#quota) * SLICE_MS
    return this.#sliceEndMs - nowMs
  }
}
