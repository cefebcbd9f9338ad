/**
 * The NBD client: requests against a remote export, over connections that may break and come back.
 *
 * Invariants:
 * - At most 64 requests are on the wire; the others wait in order.
 * - While the connection is down a request waits for at most the reconnect delay, then fails EIO;
 *   requests that were on the wire are sent again after a reconnect, under the same bound.
 * - An export that came back with another size, or with less than it offered, is never used: the
 *   client fails for good and says why.
 * - Every request ends; after `disconnect` or `yank` at once.
 */
import type { Clock, TimerHandle } from '../util/clock.ts'
import { BlockError, codeWords, type ErrorCode } from '../util/errors.ts'
import { LinkedList } from '../util/linked-list.ts'
import type { NbdAddress } from './address.ts'
import { BufferPool } from './buffer-pool.ts'
import { Channel, type ChannelHost, type OpenLimits, withHandshake } from './channel.ts'
import { type ListedExport, listOf, type RemoteExport } from './client-handshake.ts'
import { ClientRequest } from './client-request.ts'
import { NBD_CMD, NBD_CMD_FLAG, NBD_FLAG } from './constants.ts'
import { describeChange } from './remote-change.ts'
import type { AwaitedReply } from './reply-parser.ts'
import { REPLY_SLOTS } from './reply-slots.ts'
import type { TlsClientOptions } from './tls.ts'

/** How a client connects. */
export interface NbdClientOptions {
  /** Where its clock comes from. */
  readonly ctx: { readonly clock: Clock }
  /** The server. */
  readonly address: NbdAddress
  /** Name of the export; default the empty one. */
  readonly exportName?: string
  /** How long requests wait for a lost connection, in milliseconds; default 0: they fail at once. */
  readonly reconnectDelayMs?: number
  /** How long the first connection is retried, in milliseconds; default 0: one attempt. */
  readonly openTimeoutMs?: number
  /** Longest time from request to reply, in milliseconds; default 0: no limit. */
  readonly requestTimeoutMs?: number
  /** Longest connect and longest handshake, in milliseconds; default 10 000. */
  readonly handshakeMs?: number
  /** Talk over TLS, or not at all; default: in the clear. */
  readonly tls?: TlsClientOptions
}

/** The first extent of a range on the server. */
export interface RemoteStatus {
  /** Bytes from the asked offset. */
  readonly bytes: number
  /** `base:allocation` bits: 1 hole, 2 zero. */
  readonly bits: number
}

const HANDSHAKE_MS = 10_000
const LONGEST_BACKOFF_MS = 16_000
/** A request made while the connection is down brings the next attempt this near to the last. */
const NUDGED_BACKOFF_MS = 500

/** A client of one export. */
export class NbdClient implements ChannelHost {
  /** What the server said of the export; fixed at the first connection. */
  readonly remote: RemoteExport
  readonly #options: NbdClientOptions
  readonly #clock: Clock
  readonly #pool: BufferPool
  readonly #stop = new AbortController()
  readonly #outstanding = new LinkedList<ClientRequest>()
  #channel: Channel | undefined
  #queue: ClientRequest[] = []
  /** Why nothing will work any more. */
  #fatal: BlockError | undefined
  /** Requests may wait for a connection. */
  #patient = false
  #patience: TimerHandle | undefined
  #watch: TimerHandle | undefined
  #nap: { readonly timer: TimerHandle; readonly wake: () => void; until: number } | undefined
  #lastAttempt = 0

  private constructor(options: NbdClientOptions, remote: RemoteExport, pool: BufferPool) {
    this.#options = options
    this.#clock = options.ctx.clock
    this.remote = remote
    this.#pool = pool
  }

  /**
   * Connects and enters the export, trying again until the open timeout is over. Errors: `Failed to
   * connect to '…'`, `Requested export not available`, EPROTO.
   */
  static async connect(options: NbdClientOptions, canceled?: AbortSignal): Promise<NbdClient> {
    const clock = options.ctx.clock
    const pool = new BufferPool()
    const until = clock.nowMs() + (options.openTimeoutMs ?? 0)
    for (let backoff = 1000; ; backoff = Math.min(backoff * 2, LONGEST_BACKOFF_MS)) {
      const proxy = new FirstHost()
      try {
        const open = openLimits(options, canceled)
        // A silent server must not hold the caller longer than the open timeout says.
        const left = Math.max(until - clock.nowMs(), 1)
        const timeoutMs = options.openTimeoutMs ? Math.min(open.timeoutMs, left) : open.timeoutMs
        const limits = { ...open, timeoutMs }
        const name = options.exportName ?? ''
        const channel = await Channel.open(options.address, name, limits, proxy, pool)
        const client = new NbdClient(options, channel.remote, pool)
        proxy.client = client
        client.#channel = channel
        channel.start()
        return client
      } catch (error) {
        const left = until - clock.nowMs()
        if (left <= 0 || canceled?.aborted === true) throw error
        await new Promise<void>((resolve) => {
          clock.setTimer(Math.min(backoff, left), resolve)
        })
        if (clock.nowMs() >= until) throw error
      }
    }
  }

  /** Every export of a server. */
  static async list(options: Omit<NbdClientOptions, 'exportName'>): Promise<ListedExport[]> {
    const { socket, result } = await withHandshake(options.address, openLimits(options), listOf)
    socket.destroySoon()
    return result
  }

  /** Size of the export in bytes. */
  get size(): number {
    return this.remote.size
  }

  /** Writes are refused by the server. */
  get readOnly(): boolean {
    return (this.remote.flags & NBD_FLAG.READ_ONLY) !== 0
  }

  /** A connection is there. */
  get connected(): boolean {
    return this.#channel !== undefined
  }

  /** Whether the server offers what a transmission flag says. */
  can(flag: number): boolean {
    return (this.remote.flags & flag) !== 0
  }

  /** Fills `buf` from `offset`. */
  read(offset: number, buf: Uint8Array): Promise<void> {
    if (buf.length === 0) return Promise.resolve()
    return this.#submit(NBD_CMD.READ, 0, offset, buf.length, buf).done
  }

  /** Stores `buf`, which must not change before the promise settles. */
  write(offset: number, buf: Uint8Array, options: { fua?: boolean } = {}): Promise<void> {
    if (buf.length === 0) return Promise.resolve()
    const flags = options.fua === true ? NBD_CMD_FLAG.FUA : 0
    return this.#submit(NBD_CMD.WRITE, flags, offset, buf.length, buf).done
  }

  /** Makes a range read as zeroes; ENOTSUP when the server cannot, or not fast when `fast`. */
  writeZeroes(
    offset: number,
    bytes: number,
    options: { fua?: boolean; unmap?: boolean; fast?: boolean } = {},
  ): Promise<void> {
    let flags = 0
    if (options.fua === true) flags |= NBD_CMD_FLAG.FUA
    if (options.unmap !== true) flags |= NBD_CMD_FLAG.NO_HOLE
    if (options.fast === true) flags |= NBD_CMD_FLAG.FAST_ZERO
    return this.#submit(NBD_CMD.WRITE_ZEROES, flags, offset, bytes, undefined).done
  }

  /** Gives a range up. */
  trim(offset: number, bytes: number): Promise<void> {
    return this.#submit(NBD_CMD.TRIM, 0, offset, bytes, undefined).done
  }

  /** Makes every completed write stable. */
  flush(): Promise<void> {
    if (!this.can(NBD_FLAG.SEND_FLUSH)) return Promise.resolve()
    return this.#submit(NBD_CMD.FLUSH, 0, 0, 0, undefined).done
  }

  /** What the start of a range holds; all data when the server does not tell. */
  async blockStatus(offset: number, bytes: number): Promise<RemoteStatus> {
    if (this.remote.allocationContext === undefined) return { bytes, bits: 0 }
    const request = this.#submit(
      NBD_CMD.BLOCK_STATUS,
      NBD_CMD_FLAG.REQ_ONE,
      offset,
      bytes,
      undefined,
    )
    await request.done
    return request.extent ?? { bytes, bits: 0 }
  }

  /** Says goodbye and gives the connection up. Requests still running fail. */
  async disconnect(): Promise<void> {
    const channel = this.#channel
    this.#finish(new BlockError('ESHUTDOWN', 'NBD client was closed'))
    await channel?.close()
  }

  /** Cuts the connection for good, without waiting for the server; every request fails EIO. */
  yank(): void {
    const channel = this.#channel
    const error = new BlockError('EIO', 'NBD connection was yanked')
    this.#finish(error)
    channel?.cut(error)
  }

  /** A request got its reply. */
  completed(request: AwaitedReply): void {
    if (!(request instanceof ClientRequest)) return
    if (this.#outstanding.has(request)) this.#outstanding.remove(request)
    request.settle()
    this.#pump()
  }

  /** The connection is gone. */
  broken(channel: Channel, error: BlockError): void {
    if (channel !== this.#channel) return
    this.#channel = undefined
    if (this.#fatal !== undefined) return
    const delay = this.#options.reconnectDelayMs ?? 0
    if (delay > 0 && error.code !== 'ETIMEDOUT') {
      this.#patient = true
      this.#patience = this.#clock.setTimer(delay, () => {
        this.#patient = false
        this.#failAll('EIO', error)
      })
      this.#queue = [...this.#outstanding]
      for (const request of this.#queue) request.reset()
    } else this.#failAll(error.code === 'ETIMEDOUT' ? 'ETIMEDOUT' : 'EIO', error)
    void this.#reconnect(error)
  }

  #submit(
    type: number,
    flags: number,
    offset: number,
    length: number,
    buf: Uint8Array | undefined,
  ): ClientRequest {
    const context = { offset, bytes: length }
    if (this.#fatal !== undefined) {
      const code = this.#fatal.code === 'ESHUTDOWN' ? 'ESHUTDOWN' : 'EIO'
      throw new BlockError(code, codeWords(code), context, this.#fatal)
    }
    if (this.#channel === undefined) {
      this.#nudge()
      if (!this.#patient) throw new BlockError('EIO', codeWords('EIO'), context)
    }
    const timeout = this.#options.requestTimeoutMs ?? 0
    const deadline = timeout > 0 ? this.#clock.nowMs() + timeout : Number.POSITIVE_INFINITY
    const request = new ClientRequest(type, flags, offset, length, buf, deadline)
    this.#outstanding.add(request)
    this.#queue.push(request)
    if (timeout > 0 && this.#watch === undefined) this.#armWatch(timeout)
    this.#pump()
    return request
  }

  /** Sends what may be sent. */
  #pump(): void {
    const channel = this.#channel
    while (channel !== undefined && channel.inFlight < REPLY_SLOTS) {
      const request = this.#queue.shift()
      if (request === undefined) return
      channel.send(request, request.flags)
    }
  }

  /** Looks at the oldest request when its time must be over. */
  #armWatch(ms: number): void {
    this.#watch = this.#clock.setTimer(ms, () => {
      this.#watch = undefined
      const oldest = this.#outstanding.first
      if (oldest === undefined) return
      const left = oldest.deadline - this.#clock.nowMs()
      if (left > 0) this.#armWatch(left)
      else this.#timedOut()
    })
  }

  #timedOut(): void {
    const error = new BlockError('ETIMEDOUT', 'NBD server did not answer in time')
    if (this.#channel === undefined) this.#failAll('ETIMEDOUT', error)
    else this.#channel.cut(error)
  }

  #failAll(code: ErrorCode, cause: BlockError): void {
    const requests = [...this.#outstanding]
    for (const request of requests) this.#outstanding.remove(request)
    this.#queue = []
    for (const request of requests) request.fail(code, cause)
  }

  #finish(error: BlockError): void {
    this.#fatal ??= error
    this.#channel = undefined
    this.#patience?.cancel()
    this.#watch?.cancel()
    this.#stop.abort()
    this.#nap?.wake()
    this.#failAll(error.code === 'ESHUTDOWN' ? 'ESHUTDOWN' : 'EIO', error)
  }

  /** Tries until a connection is there or the client is finished. */
  async #reconnect(lost: BlockError): Promise<void> {
    for (let backoff = 1000; this.#fatal === undefined; ) {
      this.#lastAttempt = this.#clock.nowMs()
      try {
        const limits = openLimits(this.#options, this.#stop.signal)
        const name = this.#options.exportName ?? ''
        const channel = await Channel.open(this.#options.address, name, limits, this, this.#pool)
        if (this.#fatal === undefined) this.#resume(channel, lost)
        else await channel.close()
        return
      } catch {
        if (this.#fatal !== undefined) return
        await this.#sleep(backoff)
        backoff = Math.min(backoff * 2, LONGEST_BACKOFF_MS)
      }
    }
  }

  #resume(channel: Channel, lost: BlockError): void {
    const change = describeChange(this.remote, channel.remote)
    if (change !== undefined) {
      const name = this.#options.exportName ?? ''
      const words = `NBD export '${name}' changed while the connection was lost: ${change}`
      this.#finish(new BlockError('EIO', words, {}, lost))
      void channel.close()
      return
    }
    this.#patience?.cancel()
    this.#patience = undefined
    this.#patient = false
    this.#channel = channel
    channel.start()
    this.#pump()
  }

  #sleep(ms: number): Promise<void> {
    return new Promise<void>((resolve) => {
      const wake = (): void => {
        timer.cancel()
        this.#nap = undefined
        resolve()
      }
      const timer = this.#clock.setTimer(ms, wake)
      this.#nap = { timer, wake, until: this.#clock.nowMs() + ms }
    })
  }

  /** Somebody wants the connection: the next attempt need not wait for its backoff. */
  #nudge(): void {
    const nap = this.#nap
    if (nap === undefined) return
    const left = this.#lastAttempt + NUDGED_BACKOFF_MS - this.#clock.nowMs()
    if (left <= 0) nap.wake()
    else if (this.#clock.nowMs() + left < nap.until) {
      nap.timer.cancel()
      const timer = this.#clock.setTimer(left, nap.wake)
      this.#nap = { timer, wake: nap.wake, until: this.#clock.nowMs() + left }
    }
  }
}

/** Stands in for the client while its first connection is being made. */
class FirstHost implements ChannelHost {
  client: NbdClient | undefined
  completed(request: AwaitedReply): void {
    this.client?.completed(request)
  }
  broken(channel: Channel, error: BlockError): void {
    this.client?.broken(channel, error)
  }
}

function openLimits(
  options: Omit<NbdClientOptions, 'exportName'>,
  canceled?: AbortSignal,
): OpenLimits {
  const { ctx, handshakeMs, tls } = options
  return {
    clock: ctx.clock,
    timeoutMs: handshakeMs ?? HANDSHAKE_MS,
    ...(canceled === undefined ? {} : { canceled }),
    ...(tls === undefined ? {} : { tls }),
  }
}
