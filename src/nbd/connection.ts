/**
 * One client of the server: handshake, then transmission, until the socket is gone.
 *
 * Invariants:
 * - A client that leaves in whatever way is normal: nothing is reported, nothing is thrown.
 * - `gone` is called once, after the socket closed and the last request of it finished.
 * - A handshake that takes longer than its deadline is cut.
 */
import type { Socket } from 'node:net'
import type { AioContext } from '../aio/aio-context.ts'
import type { TimerHandle } from '../util/clock.ts'
import { assert } from '../util/errors.ts'
import type { BufferPool } from './buffer-pool.ts'
import type { NbdExport } from './export.ts'
import { Handshake, type HandshakeHost, type NbdSession } from './handshake.ts'
import { type InputTaker, takeInput } from './input.ts'
import { acceptTls, type TlsServerOptions } from './tls.ts'
import { Transmission } from './transmission.ts'

const KEEP_ALIVE_MS = 15_000
/** A client that does not read answers to options is cut when this much waits for it. */
const MAX_WAITING_OPTIONS = 8 << 20
const NOTHING = Buffer.alloc(0)

/** What a connection needs of its server. */
export interface ConnectionHost extends HandshakeHost {
  readonly ctx: AioContext
  readonly pool: BufferPool
  /** Longest handshake in milliseconds. */
  readonly handshakeMs: number
  /** How clients that begin TLS are served; undefined when that is not offered. */
  readonly tls: TlsServerOptions | undefined
  /** What a client works with that agreed on `session`. */
  session(connection: NbdConnection, session: NbdSession): NbdSession
  /** The client entered an export. */
  entered(connection: NbdConnection): void
  /** The client and its requests are gone. */
  gone(connection: NbdConnection): void
}

/** A connected client. */
export class NbdConnection implements InputTaker {
  #socket: Socket
  readonly #host: ConnectionHost
  readonly #deadline: TimerHandle
  #handshake: Handshake | undefined
  #transmission: Transmission | undefined
  #export: NbdExport | undefined
  #closed = false
  #gone = false

  /** Greets the client at once. */
  constructor(socket: Socket, host: ConnectionHost) {
    this.#socket = socket
    this.#host = host
    socket.setNoDelay(true)
    socket.setKeepAlive(true, KEEP_ALIVE_MS)
    this.#listen(socket)
    this.#deadline = host.ctx.clock.setTimer(host.handshakeMs, () => this.cut())
    this.#handshake = new Handshake(host, (bytes) => this.#answer(bytes))
    this.#read()
  }

  /** The export the client entered. */
  get export(): NbdExport | undefined {
    return this.#export
  }

  /** Stops or resumes taking requests. */
  quiesce(on: boolean): void {
    this.#transmission?.quiesce(on)
  }

  /** Cuts the client off; requests that run finish without an answer. */
  cut(): void {
    this.#socket.destroy()
  }

  #read(): void {
    this.#socket.on('data', (bytes: Buffer) => this.arrived(bytes))
  }

  #listen(socket: Socket): void {
    socket.on('error', () => socket.destroy())
    socket.on('close', () => this.#closeDone())
    socket.on('end', () => this.#inputEnded())
  }

  #answer(bytes: Buffer): void {
    if (this.#socket.destroyed || this.#socket.writableEnded) return
    this.#socket.write(bytes)
    if (this.#socket.writableLength > MAX_WAITING_OPTIONS) this.#socket.destroy()
  }

  /** Takes bytes from the socket. */
  arrived(bytes: Buffer): void {
    if (this.#transmission !== undefined) this.#transmission.feed(bytes)
    else if (this.#handshake !== undefined) this.#negotiate(this.#handshake, bytes)
  }

  /** Room for a payload. */
  room(): Buffer | undefined {
    return this.#transmission?.room()
  }

  /** So much of the room arrived. */
  filled(bytes: number): void {
    this.#transmission?.filled(bytes)
  }

  #negotiate(handshake: Handshake, bytes: Buffer): void {
    this.#socket.cork()
    const outcome = handshake.feed(bytes)
    this.#socket.uncork()
    switch (outcome.kind) {
      case 'more':
        return
      case 'drop':
        this.#handshake = undefined
        this.#socket.destroySoon()
        return
      case 'tls':
        this.#secure(outcome.rest)
        return
      case 'enter':
        this.#enter(outcome.session, outcome.rest)
    }
  }

  /** Goes on over TLS, once the acknowledgement has left. */
  #secure(rest: Buffer): void {
    const { tls } = this.#host
    const plain = this.#socket
    assert(tls !== undefined, 'TLS begins only where it is offered')
    plain.pause()
    plain.removeAllListeners('data')
    plain.write(NOTHING, () => void this.#upgrade(plain, rest, tls))
  }

  async #upgrade(plain: Socket, rest: Buffer, tls: TlsServerOptions): Promise<void> {
    // Its end is the secured one's from here on; its close stays ours, whatever becomes of it.
    plain.removeAllListeners('end')
    try {
      const secured = await acceptTls(plain, rest, tls)
      secured.on('end', () => this.#inputEnded())
      this.#socket = secured
      this.#read()
    } catch {
      // A client that could not prove itself is a client that left.
      plain.destroySoon()
    }
  }

  #enter(session: NbdSession, rest: Buffer): void {
    this.#handshake = undefined
    this.#deadline.cancel()
    this.#export = session.export
    const { pool, ctx } = this.#host
    const socket = takeInput(this.#socket, this)
    if (socket !== this.#socket) this.#listen(socket)
    this.#socket = socket
    const own = this.#host.session(this, session)
    this.#transmission = new Transmission(own, socket, pool, ctx, () => this.#maybeGone())
    this.#host.entered(this)
    socket.resume()
    this.#transmission.feed(rest)
  }

  #inputEnded(): void {
    if (this.#transmission !== undefined) this.#transmission.end()
    else this.#socket.destroySoon()
  }

  #closeDone(): void {
    this.#closed = true
    this.#deadline.cancel()
    this.#transmission?.end()
    this.#maybeGone()
  }

  #maybeGone(): void {
    if (this.#gone || !this.#closed || (this.#transmission?.inFlight ?? 0) > 0) return
    this.#gone = true
    this.#host.gone(this)
  }
}
