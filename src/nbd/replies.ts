/**
 * Replies of one connection, in the shape that was negotiated.
 *
 * Invariants:
 * - With structured replies a READ is answered in chunks alone, even when it fails; other commands
 *   answer success simply and failure with an error chunk.
 * - Without them every answer is simple, and an error carries no data.
 */
import { asBlockError } from '../util/errors.ts'
import { errorNumber, putChunk, putSimpleReply, putU64 } from './codec.ts'
import {
  NBD_CHUNK,
  NBD_CHUNK_BYTES,
  NBD_CHUNK_DONE,
  NBD_MAX_STRING,
  NBD_SIMPLE_REPLY_BYTES,
} from './constants.ts'
import type { Extents } from './extents.ts'
import type { Output } from './output.ts'

/** Bytes before the data of a structured READ. */
const DATA_HEADER = NBD_CHUNK_BYTES + 8

/** Writes replies into an `Output`. */
export class Replies {
  readonly #out: Output
  readonly #structured: boolean
  /** Bytes before the data of a READ that is answered in one piece. */
  readonly dataHeader: number

  /** `structured` is what the handshake agreed on. */
  constructor(out: Output, structured: boolean) {
    this.#out = out
    this.#structured = structured
    this.dataHeader = structured ? DATA_HEADER : NBD_SIMPLE_REPLY_BYTES
  }

  /** Success without data. */
  ok(high: number, low: number): void {
    const at = this.#out.place(NBD_SIMPLE_REPLY_BYTES)
    putSimpleReply(this.#out.slab, at, 0, high, low)
  }

  /** Fills in the header of a READ answered in one piece and queues `view`. */
  data(view: Buffer, high: number, low: number, offset: number, done: boolean): void {
    if (this.#structured) {
      const flags = done ? NBD_CHUNK_DONE : 0
      putChunk(view, 0, flags, NBD_CHUNK.OFFSET_DATA, high, low, view.length - NBD_CHUNK_BYTES)
      putU64(view, NBD_CHUNK_BYTES, offset)
    } else putSimpleReply(view, 0, 0, high, low)
    this.#out.commit(view)
  }

  /** A range of a structured READ that is all zeroes. */
  hole(high: number, low: number, offset: number, bytes: number, done: boolean): void {
    const view = this.#out.reserve(NBD_CHUNK_BYTES + 12)
    putChunk(view, 0, done ? NBD_CHUNK_DONE : 0, NBD_CHUNK.OFFSET_HOLE, high, low, 12)
    putU64(view, NBD_CHUNK_BYTES, offset)
    view.writeUInt32BE(bytes, NBD_CHUNK_BYTES + 8)
    this.#out.commit(view)
  }

  /** The end of a structured READ that has no data. */
  none(high: number, low: number): void {
    const view = this.#out.reserve(NBD_CHUNK_BYTES)
    putChunk(view, 0, NBD_CHUNK_DONE, NBD_CHUNK.NONE, high, low, 0)
    this.#out.commit(view)
  }

  /** Extents of one context. */
  status(high: number, low: number, context: number, extents: Extents, done: boolean): void {
    const payload = 4 + extents.length * 4
    const view = this.#out.reserve(NBD_CHUNK_BYTES + payload)
    putChunk(view, 0, done ? NBD_CHUNK_DONE : 0, NBD_CHUNK.BLOCK_STATUS, high, low, payload)
    view.writeUInt32BE(context, NBD_CHUNK_BYTES)
    let at = NBD_CHUNK_BYTES + 4
    for (const word of extents) at = view.writeUInt32BE(word, at)
    this.#out.commit(view)
  }

  /** Failure, with a number of the protocol and a sentence. */
  refuse(high: number, low: number, error: number, text: string): void {
    if (!this.#structured) {
      const view = this.#out.reserve(NBD_SIMPLE_REPLY_BYTES)
      putSimpleReply(view, 0, error, high, low)
      this.#out.commit(view)
      return
    }
    const words = Buffer.from(text).subarray(0, NBD_MAX_STRING)
    const view = this.#out.reserve(NBD_CHUNK_BYTES + 6 + words.length)
    putChunk(view, 0, NBD_CHUNK_DONE, NBD_CHUNK.ERROR, high, low, 6 + words.length)
    view.writeUInt32BE(error, NBD_CHUNK_BYTES)
    view.writeUInt16BE(words.length, NBD_CHUNK_BYTES + 4)
    words.copy(view, NBD_CHUNK_BYTES + 6)
    this.#out.commit(view)
  }

  /** Failure with whatever was thrown. */
  fail(high: number, low: number, thrown: unknown): void {
    const error = asBlockError(thrown)
    this.refuse(high, low, errorNumber(error.code), error.message)
  }
}
