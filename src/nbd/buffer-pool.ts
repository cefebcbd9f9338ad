/**
 * Large buffers that are used again, so that a megabyte of payload does not cost fresh pages.
 *
 * Invariants:
 * - Only what `take` gave may be released, once, when nobody reads or writes it any more.
 * - Kept memory is bounded; what is above the bound goes to the garbage collector.
 */

const SMALLEST = 1 << 16
const KEPT_BYTES = 48 << 20

/** A free list for each power of two from 64 KiB up. */
export class BufferPool {
  readonly #free = new Map<number, Buffer[]>()
  #kept = 0

  /** A buffer of exactly `bytes`; its content is arbitrary. */
  take(bytes: number): Buffer {
    if (bytes < SMALLEST) return Buffer.allocUnsafe(bytes)
    const size = classOf(bytes)
    const found = this.#free.get(size)?.pop()
    if (found === undefined) return Buffer.allocUnsafeSlow(size).subarray(0, bytes)
    this.#kept -= size
    return found.subarray(0, bytes)
  }

  /** Takes a buffer back; small ones are ignored. */
  release(view: Buffer): void {
    if (view.length < SMALLEST) return
    const size = view.buffer.byteLength
    if (this.#kept + size > KEPT_BYTES) return
    this.#kept += size
    const list = this.#free.get(size)
    const whole = Buffer.from(view.buffer)
    if (list === undefined) this.#free.set(size, [whole])
    else list.push(whole)
  }
}

function classOf(bytes: number): number {
  let size = SMALLEST
  while (size < bytes) size *= 2
  return size
}
