/**
 * Commands against the disk: runs one request and queues its reply.
 *
 * Invariants:
 * - A request whose disk answers inline is replied to inline, without a promise.
 * - `run` answers a promise that never rejects, or nothing when the reply is queued already.
 * - A FUA or FLUSH is answered only after the disk said that the data is stable.
 */
import { FLAG, STATUS } from '../block/driver.ts'
import type { MaybePromise, Pending } from '../coroutine/coroutine.ts'
import { assert } from '../util/errors.ts'
import type { RequestHeader } from './codec.ts'
import { NBD_CMD, NBD_CMD_FLAG } from './constants.ts'
import type { ExportBackend, ExportStatus } from './export.ts'
import { findExtents } from './extents.ts'
import type { NbdSession } from './handshake.ts'
import type { Output } from './output.ts'
import type { Replies } from './replies.ts'

/** What a connection runs its requests with. */
export class Commands {
  readonly #session: NbdSession
  readonly #backend: ExportBackend
  readonly #out: Output
  readonly #replies: Replies

  constructor(session: NbdSession, out: Output, replies: Replies) {
    this.#session = session
    this.#backend = session.export.backend
    this.#out = out
    this.#replies = replies
  }

  /** Runs a checked request; `payload` is a WRITE's data. The header may be reused at once. */
  run(request: RequestHeader, payload: Buffer | undefined): Pending {
    const { cookieHigh: high, cookieLow: low, offset, length, flags } = request
    const fua = (flags & NBD_CMD_FLAG.FUA) !== 0
    switch (request.type) {
      case NBD_CMD.READ:
        return this.#readRequest(high, low, offset, length, flags)
      case NBD_CMD.WRITE:
        return this.#write(high, low, offset, payload, fua)
      case NBD_CMD.FLUSH:
        return this.#simple(high, low, () => this.#backend.flush())
      case NBD_CMD.TRIM:
        return this.#trim(high, low, offset, length, fua)
      case NBD_CMD.WRITE_ZEROES: {
        if (length === 0) return this.#simple(high, low, nothing)
        const bits = zeroFlags(flags)
        return this.#simple(high, low, () => this.#backend.pwriteZeroes(offset, length, bits))
      }
      case NBD_CMD.CACHE:
        return this.#simple(high, low, () => this.#backend.prefetch(offset, length))
      default:
        return this.#blockStatus(high, low, offset, length, (flags & NBD_CMD_FLAG.REQ_ONE) !== 0)
    }
  }

  #readRequest(high: number, low: number, offset: number, length: number, flags: number): Pending {
    if (!this.#session.structured) return this.#readWhole(high, low, offset, length)
    if (length === 0) {
      this.#replies.none(high, low)
      return undefined
    }
    if ((flags & NBD_CMD_FLAG.DF) !== 0) return this.#readWhole(high, low, offset, length)
    let status: MaybePromise<ExportStatus>
    try {
      status = this.#backend.blockStatus(offset, length)
      if (!(status instanceof Promise) && status.bytes >= length) {
        if ((status.flags & STATUS.ZERO) === 0) return this.#readWhole(high, low, offset, length)
        this.#replies.hole(high, low, offset, length, true)
        this.#backend.accounting?.readZeroes(length)
        return undefined
      }
    } catch (error) {
      this.#replies.fail(high, low, error)
      return undefined
    }
    return this.#readSparse(high, low, offset, offset + length, status)
  }

  #readWhole(high: number, low: number, offset: number, length: number): Pending {
    const header = this.#replies.dataHeader
    const view = this.#out.reserve(header + length)
    if (length === 0) {
      this.#replies.data(view, high, low, offset, true)
      return undefined
    }
    try {
      const pending = this.#backend.pread(offset, view.subarray(header))
      if (pending !== undefined) return this.#finishRead(pending, view, high, low, offset)
      this.#replies.data(view, high, low, offset, true)
    } catch (error) {
      this.#out.discard(view)
      this.#replies.fail(high, low, error)
    }
    return undefined
  }

  async #finishRead(
    pending: Promise<void>,
    view: Buffer,
    high: number,
    low: number,
    offset: number,
  ): Promise<void> {
    try {
      await pending
      this.#replies.data(view, high, low, offset, true)
    } catch (error) {
      this.#out.discard(view)
      this.#replies.fail(high, low, error)
    }
  }

  /** A read in pieces, each all data or all zeroes. */
  async #readSparse(
    high: number,
    low: number,
    from: number,
    end: number,
    first: MaybePromise<ExportStatus>,
  ): Promise<void> {
    try {
      for (let at = from; at < end; ) {
        const asked = at === from ? first : this.#backend.blockStatus(at, end - at)
        const { bytes, zero } = await this.#sameKind(at, end - at, asked)
        const done = at + bytes >= end
        if (zero) {
          this.#replies.hole(high, low, at, bytes, done)
          this.#backend.accounting?.readZeroes(bytes)
        } else {
          const header = this.#replies.dataHeader
          const view = this.#out.reserve(header + bytes)
          const pending = this.#backend.pread(at, view.subarray(header))
          if (pending !== undefined) await pending
          this.#replies.data(view, high, low, at, done)
        }
        at += bytes
      }
    } catch (error) {
      this.#replies.fail(high, low, error)
    }
  }

  /** The longest start of a range that is all zeroes, or has none that are known to be. */
  async #sameKind(
    offset: number,
    bytes: number,
    first: MaybePromise<ExportStatus>,
  ): Promise<{ bytes: number; zero: boolean }> {
    let status = first instanceof Promise ? await first : first
    const zero = (status.flags & STATUS.ZERO) !== 0
    let at = Math.min(status.bytes, bytes)
    while (at < bytes) {
      const asked = this.#backend.blockStatus(offset + at, bytes - at)
      status = asked instanceof Promise ? await asked : asked
      assert(status.bytes > 0, 'a block status covers at least one byte')
      if (zero !== ((status.flags & STATUS.ZERO) !== 0)) break
      at += Math.min(status.bytes, bytes - at)
    }
    return { bytes: at, zero }
  }

  #write(
    high: number,
    low: number,
    offset: number,
    payload: Buffer | undefined,
    fua: boolean,
  ): Pending {
    if (payload === undefined || payload.length === 0) {
      return this.#simple(high, low, nothing)
    }
    try {
      const pending = this.#backend.pwrite(offset, payload, fua ? FLAG.FUA : 0)
      if (pending !== undefined) return this.#finish(pending, high, low)
      this.#replies.ok(high, low)
    } catch (error) {
      this.#replies.fail(high, low, error)
    }
    return undefined
  }

  #trim(high: number, low: number, offset: number, length: number, fua: boolean): Pending {
    if (!fua) {
      if (length === 0) return this.#simple(high, low, nothing)
      return this.#simple(high, low, () => this.#backend.pdiscard(offset, length))
    }
    return this.#simple(high, low, async () => {
      const discarded = length === 0 ? undefined : this.#backend.pdiscard(offset, length)
      if (discarded !== undefined) await discarded
      const flushed = this.#backend.flush()
      if (flushed !== undefined) await flushed
    })
  }

  async #blockStatus(
    high: number,
    low: number,
    offset: number,
    length: number,
    one: boolean,
  ): Promise<void> {
    const { contexts } = this.#session
    try {
      for (const [i, context] of contexts.entries()) {
        const extents = await findExtents(this.#backend, context, offset, length, one)
        this.#replies.status(high, low, context.id, extents, i === contexts.length - 1)
      }
    } catch (error) {
      this.#replies.fail(high, low, error)
    }
  }

  /** Runs `action` and answers without data. */
  #simple(high: number, low: number, action: () => Pending): Pending {
    try {
      const pending = action()
      if (pending !== undefined) return this.#finish(pending, high, low)
      this.#replies.ok(high, low)
    } catch (error) {
      this.#replies.fail(high, low, error)
    }
    return undefined
  }

  async #finish(pending: Promise<void>, high: number, low: number): Promise<void> {
    try {
      await pending
      this.#replies.ok(high, low)
    } catch (error) {
      this.#replies.fail(high, low, error)
    }
  }
}

function nothing(): Pending {
  return undefined
}

function zeroFlags(flags: number): number {
  let bits = 0
  if ((flags & NBD_CMD_FLAG.NO_HOLE) === 0) bits |= FLAG.MAY_UNMAP
  if ((flags & NBD_CMD_FLAG.FUA) !== 0) bits |= FLAG.FUA
  if ((flags & NBD_CMD_FLAG.FAST_ZERO) !== 0) bits |= FLAG.NO_FALLBACK
  return bits
}
