/**
 * One live connection of a client: requests go out, replies come back, until it breaks.
 *
 * Invariants:
 * - `broken` is called once, whatever the reason, and nothing is delivered after it.
 * - Requests made in one turn leave in one write.
 */
import { connect, type Socket } from 'node:net'
import type { Clock } from '../util/clock.ts'
import { copyBytes } from '../util/copy.ts'
import { BlockError } from '../util/errors.ts'
import { checkSocketPath, connectError, type NbdAddress, portOf } from './address.ts'
import type { BufferPool } from './buffer-pool.ts'
import { ClientHandshake, enterExport, type RemoteExport } from './client-handshake.ts'
import { putRequest } from './codec.ts'
import { NBD_CMD, NBD_REQUEST_BYTES } from './constants.ts'
import { type InputTaker, takeInput } from './input.ts'
import { Output } from './output.ts'
import { type AwaitedReply, type ReplyHost, ReplyParser } from './reply-parser.ts'
import { ReplySlots } from './reply-slots.ts'
import type { TlsClientOptions } from './tls.ts'

const KEEP_ALIVE_MS = 15_000
/** A payload up to this is copied behind its header; a longer one is sent from where it is. */
const COPIED_PAYLOAD = 16 << 10
const CLOSE_MS = 1000
const NOTHING = Buffer.alloc(0)

/** A socket that is connected. Errors: `Failed to connect to '…': …`. */
export function openSocket(
  address: NbdAddress,
  clock: Clock,
  timeoutMs: number,
  canceled: AbortSignal | undefined,
): Promise<Socket> {
  if (address.type === 'unix') checkSocketPath(address.path)
  const where =
    address.type === 'unix'
      ? { path: address.path }
      : { host: address.host === '' ? 'localhost' : address.host, port: portOf(address) }
  return new Promise<Socket>((resolve, reject) => {
    const socket = connect(where)
    const give = (error: unknown): void => {
      timer.cancel()
      canceled?.removeEventListener('abort', cancel)
      socket.destroy()
      reject(connectError(address, error))
    }
    const cancel = (): void => give(new BlockError('ECANCELED', 'Operation canceled'))
    const timer = clock.setTimer(timeoutMs, () => give(new BlockError('ETIMEDOUT', 'timed out')))
    canceled?.addEventListener('abort', cancel)
    socket.once('error', give)
    socket.once('connect', () => {
      timer.cancel()
      canceled?.removeEventListener('abort', cancel)
      socket.off('error', give)
      socket.on('error', () => socket.destroy())
      socket.setNoDelay(true)
      socket.setKeepAlive(true, KEEP_ALIVE_MS)
      resolve(socket)
    })
  })
}

/** How a connection is made, and what that is bounded by. */
export interface OpenLimits {
  readonly clock: Clock
  /** Longest connect, and longest handshake after it, in milliseconds. */
  readonly timeoutMs: number
  /** Gives the attempt up. */
  readonly canceled?: AbortSignal
  /** Talk over TLS or not at all. */
  readonly tls?: TlsClientOptions
}

/** Connects and runs `talk` over the handshake; the socket is destroyed when that fails. */
export async function withHandshake<T>(
  address: NbdAddress,
  limits: OpenLimits,
  talk: (shake: ClientHandshake) => Promise<T>,
): Promise<{ socket: Socket; rest: Buffer; result: T }> {
  const { clock, timeoutMs, canceled } = limits
  const host = address.type === 'inet' ? address.host : undefined
  const tls = limits.tls === undefined ? undefined : { ...limits.tls, host }
  const socket = await openSocket(address, clock, timeoutMs, canceled)
  const cut = (): void => void socket.destroy()
  const timer = clock.setTimer(timeoutMs, cut)
  canceled?.addEventListener('abort', cut)
  const shake = new ClientHandshake(socket, tls)
  try {
    if (canceled?.aborted === true) cut()
    const result = await talk(shake)
    return { ...shake.release(), result }
  } catch (error) {
    shake.giveUp()
    throw error
  } finally {
    timer.cancel()
    canceled?.removeEventListener('abort', cut)
  }
}

/** What a channel tells its client. */
export interface ChannelHost {
  /** A request got its reply. */
  completed(request: AwaitedReply): void
  /** The connection is gone. */
  broken(channel: Channel, error: BlockError): void
}

/** A connection in its transmission phase. */
export class Channel implements ReplyHost, InputTaker {
  /** What the server said. */
  readonly remote: RemoteExport
  /** Structured replies were negotiated. */
  readonly structured: boolean
  /** Number of the `base:allocation` context. */
  readonly allocationContext: number | undefined
  readonly #socket: Socket
  readonly #host: ChannelHost
  readonly #out: Output
  readonly #parser: ReplyParser
  readonly #clock: Clock
  readonly #awaited = new ReplySlots()
  /** What arrived together with the end of the handshake. */
  #rest: Buffer
  #broken = false

  private constructor(
    socket: Socket,
    remote: RemoteExport,
    host: ChannelHost,
    clock: Clock,
    pool: BufferPool,
    rest: Buffer,
  ) {
    // Before the socket is taken over: that asks for room at once.
    this.#parser = new ReplyParser(this)
    const taken = takeInput(socket, this)
    if (taken !== socket) taken.on('error', () => taken.destroy())
    this.#socket = taken
    this.#rest = rest
    this.#host = host
    this.#clock = clock
    this.remote = remote
    this.structured = remote.structured
    this.allocationContext = remote.allocationContext
    this.#out = new Output(taken, pool, clock)
    taken.on('close', () => this.#break(new BlockError('ECONNRESET', 'Connection closed')))
    taken.on('end', () => this.#break(new BlockError('ECONNRESET', 'Connection closed by peer')))
  }

  /** Connects and enters an export; nothing is delivered before `start`. */
  static async open(
    address: NbdAddress,
    name: string,
    limits: OpenLimits,
    host: ChannelHost,
    pool: BufferPool,
  ): Promise<Channel> {
    const { socket, rest, result } = await withHandshake(address, limits, (shake) =>
      enterExport(shake, name),
    )
    return new Channel(socket, result, host, limits.clock, pool, rest)
  }

  /** Lets replies flow. */
  start(): void {
    const rest = this.#rest
    this.#rest = NOTHING
    if (rest.length > 0) this.arrived(rest)
    this.#socket.resume()
  }

  /** Requests that wait for their reply. */
  get inFlight(): number {
    return this.#awaited.size
  }

  /** Sends a request, of at most `REPLY_SLOTS` at a time; a WRITE's data is its `buf`. */
  send(request: AwaitedReply, flags: number): void {
    const { type, offset, length, buf } = request
    const cookie = this.#awaited.take(request)
    const payload = type === NBD_CMD.WRITE ? buf : undefined
    const copied = payload !== undefined && payload.length <= COPIED_PAYLOAD ? payload.length : 0
    const at = this.#out.place(NBD_REQUEST_BYTES + copied)
    const { slab } = this.#out
    putRequest(slab, at, type, flags, cookie, offset, length)
    if (payload !== undefined && copied > 0) copyBytes(slab, at + NBD_REQUEST_BYTES, payload)
    if (payload !== undefined && copied === 0) this.#out.append(payload)
    this.#out.flushSoon()
  }

  /** The running request with that cookie. */
  awaited(cookie: number): AwaitedReply | undefined {
    return this.#awaited.at(cookie)
  }

  /** A request got its last reply. */
  finished(cookie: number, request: AwaitedReply): void {
    this.#awaited.give(cookie)
    this.#host.completed(request)
  }

  /** Drops the connection without a word; `broken` follows at once. */
  cut(error: BlockError): void {
    this.#socket.destroy()
    this.#break(error)
  }

  /** Says goodbye and closes; `broken` is not called any more. */
  async close(): Promise<void> {
    this.#broken = true
    if (this.#socket.destroyed) return
    const closed = new Promise<void>((resolve) => this.#socket.once('close', () => resolve()))
    const bye = this.#out.reserve(NBD_REQUEST_BYTES)
    putRequest(bye, 0, NBD_CMD.DISC, 0, 0, 0, 0)
    this.#out.commit(bye)
    this.#out.flush()
    this.#socket.destroySoon()
    const timer = this.#clock.setTimer(CLOSE_MS, () => this.#socket.destroy())
    await closed
    timer.cancel()
  }

  /** Takes bytes from the socket. */
  arrived(bytes: Buffer): void {
    if (!this.#broken) this.#guarded(() => this.#parser.feed(bytes))
  }

  /** Room for the data of a READ. */
  room(): Buffer | undefined {
    return this.#broken ? undefined : this.#parser.room()
  }

  /** So much of the room arrived. */
  filled(bytes: number): void {
    if (!this.#broken) this.#guarded(() => this.#parser.filled(bytes))
  }

  #guarded(parse: () => void): void {
    try {
      parse()
    } catch (error) {
      if (!(error instanceof BlockError)) throw error
      this.cut(error)
    }
  }

  #break(error: BlockError): void {
    if (this.#broken) return
    this.#broken = true
    this.#socket.destroy()
    this.#host.broken(this, error)
  }
}
