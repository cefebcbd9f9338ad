/**
 * Transmission, the server's side: requests out of a byte stream, run, and their replies sent.
 *
 * Invariants:
 * - A request that its disk cannot finish inline goes on as a coroutine of the context, which can
 *   tell what it is waiting for; one that finishes inline costs no coroutine.
 * - A refused WRITE is answered only after its payload was consumed; one above the limit ends the
 *   connection, since nobody wants to swallow it.
 * - What arrived is good during the call that brings it: a payload is copied once, into a buffer
 *   lent to its request, and requests that may not be read yet are kept as a copy.
 * - Reading stops while 64 requests or 64 MiB of payload are running, while 16 MiB of replies wait
 *   for the client, and while the disk is quiesced.
 */
import type { Socket } from 'node:net'
import type { AioContext } from '../aio/aio-context.ts'
import type { Coroutine } from '../coroutine/coroutine.ts'
import type { BufferPool } from './buffer-pool.ts'
import { emptyRequest, getRequest, type RequestHeader } from './codec.ts'
import { Commands } from './commands.ts'
import {
  NBD_CMD,
  NBD_ERROR,
  NBD_MAX_PAYLOAD,
  NBD_REQUEST_BYTES,
  NBD_REQUEST_MAGIC,
} from './constants.ts'
import type { NbdSession } from './handshake.ts'
import { roomIn } from './input.ts'
import { Output } from './output.ts'
import { Replies } from './replies.ts'
import { checkRequest, countedAs, type RequestRefusal } from './request-rules.ts'

/** What a report calls the coroutine of a request. */
const COROUTINE_NAMES: Readonly<Record<number, string>> = {
  [NBD_CMD.READ]: 'nbd read',
  [NBD_CMD.WRITE]: 'nbd write',
  [NBD_CMD.FLUSH]: 'nbd flush',
  [NBD_CMD.TRIM]: 'nbd trim',
  [NBD_CMD.CACHE]: 'nbd cache',
  [NBD_CMD.WRITE_ZEROES]: 'nbd write-zeroes',
  [NBD_CMD.BLOCK_STATUS]: 'nbd block-status',
}
const MAX_IN_FLIGHT = 64
const MAX_IN_FLIGHT_BYTES = 64 << 20
const MAX_WAITING_REPLIES = 16 << 20

/** The transmission phase of one connection. */
export class Transmission {
  readonly #session: NbdSession
  readonly #socket: Socket
  readonly #ctx: AioContext
  readonly #pool: BufferPool
  readonly #out: Output
  readonly #replies: Replies
  readonly #commands: Commands
  readonly #idle: () => void
  readonly #request: RequestHeader = emptyRequest()
  readonly #header: Buffer = Buffer.alloc(NBD_REQUEST_BYTES)
  #headerFill = 0
  #input: Buffer[] = []
  #at = 0
  #payload: Buffer | undefined
  #payloadFill = 0
  #skip = 0
  #refusal: RequestRefusal | undefined
  #inFlight = 0
  #inFlightBytes = 0
  #quiesced = false
  #ended = false
  #paused = false

  /** `idle` is called whenever the connection has ended and its last request has too. */
  constructor(
    session: NbdSession,
    socket: Socket,
    pool: BufferPool,
    ctx: AioContext,
    idle: () => void,
  ) {
    this.#session = session
    this.#socket = socket
    this.#ctx = ctx
    this.#pool = pool
    this.#idle = idle
    this.#out = new Output(socket, pool, ctx.clock)
    this.#replies = new Replies(this.#out, session.structured)
    this.#commands = new Commands(session, this.#out, this.#replies)
    socket.on('drain', () => this.#wake())
  }

  /** Requests that were read and are not answered yet. */
  get inFlight(): number {
    return this.#inFlight
  }

  /** Takes bytes that arrived, which are good during this call. */
  feed(bytes: Buffer): void {
    if (this.#ended || bytes.length === 0) return
    if (this.#input.length === 0) {
      this.#at = 0
      this.#consume(bytes)
      if (!this.#ended && this.#at < bytes.length)
        this.#input.push(Buffer.from(bytes.subarray(this.#at)))
      this.#at = 0
    } else this.#input.push(Buffer.from(bytes))
    this.#work()
  }

  /** The rest of a long payload, to be read straight to its place. */
  room(): Buffer | undefined {
    if (this.#ended || this.#input.length > 0) return undefined
    return roomIn(this.#payload, this.#payloadFill)
  }

  /** So much of `room` arrived. */
  filled(bytes: number): void {
    if (this.#ended || this.#payload === undefined) return
    this.#advance(this.#payload, bytes)
    this.#work()
  }

  /** Stops or resumes taking requests; those already running go on. */
  quiesce(on: boolean): void {
    this.#quiesced = on
    if (!on) this.#wake()
  }

  /** No more requests come; what runs is finished and answered, then the socket is closed. */
  end(): void {
    if (!this.#ended) {
      this.#ended = true
      this.#input = []
      this.#out.flush()
    }
    this.#settle()
  }

  #mayRead(): boolean {
    return (
      !this.#ended &&
      !this.#quiesced &&
      this.#inFlight < MAX_IN_FLIGHT &&
      this.#inFlightBytes < MAX_IN_FLIGHT_BYTES &&
      this.#out.pending < MAX_WAITING_REPLIES
    )
  }

  #wake(): void {
    if (this.#mayRead() && (this.#paused || this.#input.length > 0)) this.#work()
  }

  /** Takes requests while it may; pauses the socket when input is left over. */
  #work(): void {
    while (this.#input.length > 0 && this.#mayRead()) {
      const chunk = this.#input[0]
      if (chunk === undefined) break
      this.#consume(chunk)
      if (this.#at >= chunk.length) {
        this.#input.shift()
        this.#at = 0
      }
    }
    this.#out.flush()
    if (this.#ended) return
    const pause = !this.#mayRead()
    if (pause === this.#paused) return
    this.#paused = pause
    if (pause) this.#socket.pause()
    else this.#socket.resume()
  }

  #consume(chunk: Buffer): void {
    while (this.#at < chunk.length) {
      if (this.#skip > 0) this.#skipPayload(chunk)
      else if (this.#payload !== undefined) this.#fillPayload(chunk, this.#payload)
      else if (!this.#mayRead()) return
      else if (this.#takeHeader(chunk)) this.#begin(chunk)
    }
  }

  /** Moves on through the header; true when it is complete in `#request`. */
  #takeHeader(chunk: Buffer): boolean {
    const left = chunk.length - this.#at
    if (this.#headerFill === 0 && left >= NBD_REQUEST_BYTES) {
      getRequest(chunk, this.#at, this.#request)
      this.#at += NBD_REQUEST_BYTES
      return true
    }
    const take = Math.min(left, NBD_REQUEST_BYTES - this.#headerFill)
    chunk.copy(this.#header, this.#headerFill, this.#at, this.#at + take)
    this.#headerFill += take
    this.#at += take
    if (this.#headerFill < NBD_REQUEST_BYTES) return false
    this.#headerFill = 0
    getRequest(this.#header, 0, this.#request)
    return true
  }

  #begin(chunk: Buffer): void {
    const request = this.#request
    if (request.magic !== NBD_REQUEST_MAGIC) {
      const text = `invalid magic (got 0x${request.magic.toString(16)})`
      this.#replies.refuse(request.cookieHigh, request.cookieLow, NBD_ERROR.EINVAL, text)
      this.end()
      return
    }
    if (request.type === NBD_CMD.DISC) {
      this.end()
      return
    }
    const refusal = checkRequest(this.#session, request)
    const counted = refusal === undefined ? undefined : countedAs(request.type)
    if (counted !== undefined) this.#session.export.backend.accounting?.refused(counted)
    if (request.type === NBD_CMD.WRITE && request.length > 0) this.#beginWrite(chunk, refusal)
    else if (refusal !== undefined) this.#refuse(refusal)
    else this.#run(undefined)
  }

  #beginWrite(chunk: Buffer, refusal: RequestRefusal | undefined): void {
    const { length } = this.#request
    if (length > NBD_MAX_PAYLOAD) {
      this.end()
      return
    }
    if (refusal !== undefined) {
      this.#refusal = refusal
      this.#skip = length
      return
    }
    const payload = this.#pool.take(length)
    if (chunk.length - this.#at >= length) {
      chunk.copy(payload, 0, this.#at, this.#at + length)
      this.#at += length
      this.#run(payload, payload)
      return
    }
    this.#payload = payload
    this.#payloadFill = 0
  }

  #skipPayload(chunk: Buffer): void {
    const take = Math.min(this.#skip, chunk.length - this.#at)
    this.#at += take
    this.#skip -= take
    if (this.#skip > 0 || this.#refusal === undefined) return
    this.#refuse(this.#refusal)
    this.#refusal = undefined
  }

  #fillPayload(chunk: Buffer, payload: Buffer): void {
    const take = Math.min(payload.length - this.#payloadFill, chunk.length - this.#at)
    chunk.copy(payload, this.#payloadFill, this.#at, this.#at + take)
    this.#at += take
    this.#advance(payload, take)
  }

  #advance(payload: Buffer, bytes: number): void {
    this.#payloadFill += bytes
    if (this.#payloadFill < payload.length) return
    this.#payload = undefined
    this.#run(payload, payload)
  }

  #refuse(refusal: RequestRefusal): void {
    const { cookieHigh, cookieLow } = this.#request
    this.#replies.refuse(cookieHigh, cookieLow, refusal.error, refusal.text)
  }

  /** Runs `#request`; `lent` goes back to the pool when it is done. */
  #run(payload: Buffer | undefined, lent?: Buffer): void {
    const weight = payload === undefined ? this.#weight() : payload.length
    const pending = this.#commands.run(this.#request, payload)
    if (pending === undefined) {
      if (lent !== undefined) this.#pool.release(lent)
      return
    }
    this.#inFlight += 1
    this.#inFlightBytes += weight
    const name = COROUTINE_NAMES[this.#request.type] ?? 'nbd request'
    this.#ctx.spawn(() => this.#coFinish(pending, weight, lent), { name })
  }

  /** The rest of a request that waits for its disk. */
  async *#coFinish(pending: Promise<void>, weight: number, lent?: Buffer): Coroutine<void> {
    await pending
    if (lent !== undefined) this.#pool.release(lent)
    this.#inFlight -= 1
    this.#inFlightBytes -= weight
    this.#out.flushSoon()
    this.#wake()
    if (this.#ended) this.#settle()
  }

  /** Bytes that a request without payload keeps in memory. */
  #weight(): number {
    return this.#request.type === NBD_CMD.READ ? this.#request.length : 0
  }

  #settle(): void {
    if (this.#inFlight > 0) return
    this.#out.flush()
    if (!this.#socket.destroyed) this.#socket.destroySoon()
    this.#idle()
  }
}
