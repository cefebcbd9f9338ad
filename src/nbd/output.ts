/**
 * What leaves through a socket: replies gathered in slabs, written once per turn.
 *
 * Invariants:
 * - Bytes leave in the order of `commit`.
 * - A reserved region belongs to whoever reserved it until it is committed; one that is never
 *   committed is a gap that costs nothing but its space.
 * - Nothing is written before `flush`, and `flush` makes one gathered write of everything.
 * - A slab is used again only when the kernel has all of it and nobody holds a reserved region.
 */
import type { Socket } from 'node:net'
import type { Clock } from '../util/clock.ts'
import type { BufferPool } from './buffer-pool.ts'

const SLAB_BYTES = 256 << 10
/** Above this a reply gets a buffer of its own, which is reused after the write. */
const SLAB_SHARE = 64 << 10

/** The sending half of a connection. */
export class Output {
  readonly #socket: Socket
  readonly #pool: BufferPool
  readonly #clock: Clock
  #slab: Buffer = Buffer.allocUnsafeSlow(SLAB_BYTES)
  #free = 0
  #runStart = 0
  #runEnd = 0
  #segments: Uint8Array[] = []
  /** Segments to give back to the pool once they are written. */
  readonly #lent = new Map<Uint8Array, Buffer>()
  /** Regions reserved and neither committed nor discarded. */
  #reserved = 0
  #queued = 0
  #scheduled = false

  /** `pool` lends the buffers of large replies. */
  constructor(socket: Socket, pool: BufferPool, clock: Clock) {
    this.#socket = socket
    this.#pool = pool
    this.#clock = clock
  }

  /** Bytes committed that the kernel has not taken yet. */
  get pending(): number {
    return this.#queued + this.#socket.writableLength
  }

  /** Room for a reply of `bytes`; its content is arbitrary. */
  reserve(bytes: number): Buffer {
    if (bytes > SLAB_SHARE) return this.#pool.take(bytes)
    this.#makeRoom(bytes)
    this.#reserved++
    const view = this.#slab.subarray(this.#free, this.#free + bytes)
    this.#free += bytes
    return view
  }

  /**
   * Queues `bytes`, up to 64 KiB, that the caller fills in before anything else happens here:
   * answers where in `slab` they are.
   */
  place(bytes: number): number {
    this.#makeRoom(bytes)
    const at = this.#free
    if (at !== this.#runEnd) {
      this.#closeRun()
      this.#runStart = at
    }
    this.#free = this.#runEnd = at + bytes
    this.#queued += bytes
    return at
  }

  /** Where `place` makes room. */
  get slab(): Buffer {
    return this.#slab
  }

  /** Queues what `reserve` gave, or the first part of it. */
  commit(view: Buffer): void {
    this.#queued += view.length
    if (view.buffer !== this.#slab.buffer) {
      this.#closeRun()
      this.#segments.push(view)
      if (view.length > SLAB_SHARE) this.#lent.set(view, view)
      return
    }
    this.#reserved--
    if (view.byteOffset !== this.#runEnd) {
      this.#closeRun()
      this.#runStart = view.byteOffset
    }
    this.#runEnd = view.byteOffset + view.length
  }

  /** Queues bytes of the caller's, who leaves them alone until they were sent. */
  append(bytes: Uint8Array): void {
    this.#closeRun()
    this.#queued += bytes.length
    this.#segments.push(bytes)
  }

  /** Gives back a reservation that will not be committed. */
  discard(view: Buffer): void {
    if (view.length > SLAB_SHARE) this.#pool.release(view)
    else if (view.buffer === this.#slab.buffer) this.#reserved--
  }

  /** Writes everything committed so far. */
  flush(): void {
    this.#closeRun()
    if (this.#segments.length === 0) return
    const segments = this.#segments
    this.#segments = []
    this.#queued = 0
    if (this.#socket.destroyed || this.#socket.writableEnded) return
    if (segments.length > 1) this.#socket.cork()
    for (const segment of segments) this.#write(segment)
    if (segments.length > 1) this.#socket.uncork()
    // The kernel took everything, and nobody fills in a reply: the slab is free again.
    if (this.#reserved === 0 && this.#socket.writableLength === 0)
      this.#free = this.#runStart = this.#runEnd = 0
  }

  /** Flushes after what the host delivers in this turn, so that its replies leave together. */
  flushSoon(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    this.#clock.setImmediate(() => {
      this.#scheduled = false
      this.flush()
    })
  }

  #write(segment: Uint8Array): void {
    const lent = this.#lent.get(segment)
    if (lent === undefined) {
      this.#socket.write(segment)
      return
    }
    this.#lent.delete(segment)
    this.#socket.write(segment, () => this.#pool.release(lent))
  }

  #makeRoom(bytes: number): void {
    if (this.#free + bytes <= SLAB_BYTES) return
    this.#closeRun()
    this.#slab = Buffer.allocUnsafeSlow(SLAB_BYTES)
    this.#reserved = 0
    this.#free = this.#runStart = this.#runEnd = 0
  }

  #closeRun(): void {
    if (this.#runEnd > this.#runStart) {
      this.#segments.push(this.#slab.subarray(this.#runStart, this.#runEnd))
    }
    this.#runStart = this.#runEnd
  }
}
