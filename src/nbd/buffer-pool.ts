/**
 * Payload buffers that are used again, so that neither a megabyte costs fresh pages nor many small
 * payloads make the collector run.
 *
 * Invariants:
 * - Only what `take` gave may be released, once, when nobody reads or writes it any more.
 * - Kept memory is bounded; what is above the bound goes to the garbage collector.
 */

const SMALLEST = 1 << 12
const KEPT_BYTES = 48 << 20

/** A free list for each power of two from 4 KiB up. */
export class BufferPool {
  readonly #free = new Map<number, Buffer[]>()
  #kept = 0

  /** A buffer of exactly `bytes`; its content is arbitrary. */
  take(bytes: number): Buffer {
    const size = classOf(bytes)
    const found = this.#free.get(size)?.pop()
    if (found === undefined) return part(Buffer.allocUnsafeSlow(size), bytes)
    this.#kept -= size
    return part(found, bytes)
  }

  /** Takes a buffer back. */
  release(view: Buffer): void {
    const size = view.buffer.byteLength
    if (this.#kept + size > KEPT_BYTES) return
    this.#kept += size
    const list = this.#free.get(size)
    const whole = view.length === size ? view : Buffer.from(view.buffer)
    if (list === undefined) this.#free.set(size, [whole])
    else list.push(whole)
  }
}

function part(whole: Buffer, bytes: number): Buffer {
  return whole.length === bytes ? whole : whole.subarray(0, bytes)
}

function classOf(bytes: number): number {
  let size = SMALLEST
  while (size < bytes) size *= 2
  return size
}
