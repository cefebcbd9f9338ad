/**
 * The NBD server: one listening socket, a set of exports, and the clients of both.
 *
 * Invariants:
 * - An export's name is unique; a client that entered one keeps it until the export is removed.
 * - Above the limit of connections a client waits, ungreeted, until another one leaves.
 * - Every client of an export stops being read while the disk of the export is quiesced.
 */
import { fstatSync, lstatSync, statSync, unlinkSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { dirname } from 'node:path'
import type { AioContext } from '../aio/aio-context.ts'
import { BlockError } from '../util/errors.ts'
import {
  checkSocketPath,
  type InetAddress,
  listenError,
  type NbdAddress,
  portOf,
  type UnixAddress,
} from './address.ts'
import { BufferPool } from './buffer-pool.ts'
import { type ConnectionHost, NbdConnection } from './connection.ts'
import { NBD_MAX_STRING } from './constants.ts'
import type { NbdExport } from './export.ts'
import type { NbdSession } from './handshake.ts'
import { checkCredentials, type TlsServerOptions } from './tls.ts'
import { WriterTurn } from './writer-turn.ts'

/** How a server is made. */
export interface NbdServerOptions {
  /** The event loop that runs its requests. */
  readonly ctx: AioContext
  /** Most clients at once; 0 = no limit; default 100. With 1, multi-conn is not advertised. */
  readonly maxConnections?: number
  /** Longest handshake in milliseconds; default 10 000. */
  readonly handshakeMs?: number
  /** Serve only clients that begin TLS; default: TLS is not offered. */
  readonly tls?: TlsServerOptions
}

interface ExportState {
  readonly exp: NbdExport
  readonly clients: Set<NbdConnection>
  readonly turn: WriterTurn | undefined
  quiesced: boolean
}

/** An NBD server. */
export class NbdServer implements ConnectionHost {
  /** Time for deadlines. */
  readonly ctx: AioContext
  /** Buffers of large payloads, shared by all clients. */
  readonly pool: BufferPool = new BufferPool()
  /** Longest handshake in milliseconds. */
  readonly handshakeMs: number
  /** How clients that begin TLS are served. */
  readonly tls: TlsServerOptions | undefined
  readonly #maxConnections: number
  readonly #exports = new Map<string, ExportState>()
  readonly #clients = new Set<NbdConnection>()
  #waiting: Socket[] = []
  #server: Server | undefined
  #address: NbdAddress | undefined
  #closing = false

  /** Errors: EINVAL for TLS credentials that cannot be used. */
  constructor(options: NbdServerOptions) {
    if (options.tls !== undefined) checkCredentials(options.tls.credentials, 'server')
    this.ctx = options.ctx
    this.handshakeMs = options.handshakeMs ?? 10_000
    this.tls = options.tls
    this.#maxConnections = options.maxConnections ?? 100
  }

  /** Where the server listens, with the real port; undefined before `listen` and after `close`. */
  get address(): NbdAddress | undefined {
    return this.#address
  }

  /** More than one client may connect. */
  get multiConn(): boolean {
    return this.#maxConnections !== 1
  }

  /** Nothing but the beginning of TLS is accepted in the clear. */
  get needsTls(): boolean {
    return this.tls !== undefined
  }

  /** `close` was called. */
  get closing(): boolean {
    return this.#closing
  }

  /** Clients that are connected. */
  get connections(): number {
    return this.#clients.size
  }

  /**
   * Opens the listening socket. A stale socket file in the way is removed. With `to`, ports up to
   * that one are tried. Errors: EINVAL for an address that cannot be, EBUSY when it is taken.
   */
  async listen(address: NbdAddress): Promise<void> {
    if (this.#server !== undefined) throw new BlockError('EBUSY', 'NBD server already running')
    if (address.type === 'unix') {
      checkSocketPath(address.path)
      checkDirectory(address)
      removeStaleSocket(address.path)
      this.#server = await this.#open({ path: address.path }, address)
      this.#address = { type: 'unix', path: address.path }
      return
    }
    await this.#listenInet(address)
  }

  /**
   * Takes clients from a listening socket that the process was started with. Errors: EINVAL for a
   * number that is no such socket, EBUSY when the server runs.
   */
  async listenFd(fd: number): Promise<void> {
    if (this.#server !== undefined) throw new BlockError('EBUSY', 'NBD server already running')
    if (!isSocket(fd)) throw new BlockError('EINVAL', `File descriptor '${fd}' is not a socket`)
    this.#server = await this.#open({ fd }, { type: 'unix', path: `fd:${fd}` })
  }

  /** Offers a disk. Errors: EEXIST for a name in use, EINVAL for texts that are too long. */
  addExport(exp: NbdExport): void {
    if (Buffer.byteLength(exp.name) > NBD_MAX_STRING) {
      throw new BlockError('EINVAL', `export name '${exp.name}' too long`)
    }
    if (Buffer.byteLength(exp.description ?? '') > NBD_MAX_STRING) {
      throw new BlockError('EINVAL', `description '${exp.description}' too long`)
    }
    if (this.#exports.has(exp.name)) {
      throw new BlockError('EEXIST', `NBD server already has export named '${exp.name}'`)
    }
    const turn = exp.exclusive === true ? new WriterTurn() : undefined
    const state: ExportState = { exp, clients: new Set(), turn, quiesced: false }
    this.#exports.set(exp.name, state)
    exp.backend.setHooks({
      drainedBegin: () => quiesce(state, true),
      drainedEnd: () => quiesce(state, false),
    })
  }

  /**
   * Takes an export away. `safe` refuses while a client uses it (EBUSY); `hard` cuts the clients.
   * Requests that run go on against the backend, whose `close` waits for them.
   */
  removeExport(name: string, mode: 'safe' | 'hard' = 'safe'): void {
    const state = this.#exports.get(name)
    if (state === undefined) throw new BlockError('ENOENT', `Export '${name}' is not found`)
    if (mode === 'safe' && state.clients.size > 0) {
      throw new BlockError('EBUSY', `export '${name}' still in use`)
    }
    this.#exports.delete(name)
    state.exp.backend.setHooks({})
    for (const client of [...state.clients]) client.cut()
  }

  /** Removes every export, cuts every client and gives the socket up. */
  async close(): Promise<void> {
    this.#closing = true
    for (const name of [...this.#exports.keys()]) this.removeExport(name, 'hard')
    for (const socket of this.#waiting) socket.destroy()
    this.#waiting = []
    for (const client of [...this.#clients]) client.cut()
    const server = this.#server
    this.#server = undefined
    this.#address = undefined
    if (server !== undefined) await new Promise<void>((done) => server.close(() => done()))
  }

  /** The export of that name. */
  find(name: string): NbdExport | undefined {
    return this.#exports.get(name)?.exp
  }

  /** Every export, oldest first. */
  *exports(): Iterable<NbdExport> {
    for (const { exp } of this.#exports.values()) yield exp
  }

  /** What a client works with: on an exclusive export, its turn to write. */
  session(connection: NbdConnection, session: NbdSession): NbdSession {
    const turn = this.#exports.get(session.export.name)?.turn
    return turn?.join(session, () => connection.cut()) ?? session
  }

  /** A client finished its handshake. */
  entered(connection: NbdConnection): void {
    const state = this.#stateOf(connection)
    if (state === undefined) {
      connection.cut()
      return
    }
    state.clients.add(connection)
    if (state.quiesced) connection.quiesce(true)
  }

  /** A client is gone; one that waited takes its place. */
  gone(connection: NbdConnection): void {
    this.#clients.delete(connection)
    for (const state of this.#exports.values()) state.clients.delete(connection)
    while (this.#hasRoom()) {
      const next = this.#waiting.shift()
      if (next === undefined) return
      if (!next.destroyed) this.#admit(next)
    }
  }

  #stateOf(connection: NbdConnection): ExportState | undefined {
    const exp = connection.export
    const state = exp === undefined ? undefined : this.#exports.get(exp.name)
    return state !== undefined && state.exp === exp ? state : undefined
  }

  #hasRoom(): boolean {
    return this.#maxConnections === 0 || this.#clients.size < this.#maxConnections
  }

  #accept(socket: Socket): void {
    if (this.#closing) {
      socket.destroy()
      return
    }
    if (this.#hasRoom()) {
      this.#admit(socket)
      return
    }
    // A client that gives up while it waits must not kill the process with an unheard error.
    socket.on('error', () => socket.destroy())
    this.#waiting.push(socket)
  }

  #admit(socket: Socket): void {
    this.#clients.add(new NbdConnection(socket, this))
    socket.resume()
  }

  async #listenInet(address: InetAddress): Promise<void> {
    const first = portOf(address)
    const host = address.host === '' ? {} : { host: address.host }
    const last = Math.max(first, address.to ?? first)
    for (let port = first; ; port++) {
      try {
        this.#server = await this.#open({ ...host, port }, address)
        break
      } catch (error) {
        if (!(error instanceof BlockError) || error.code !== 'EBUSY' || port >= last) throw error
      }
    }
    const bound = this.#server.address()
    const port = typeof bound === 'object' && bound !== null ? bound.port : first
    this.#address = { type: 'inet', host: address.host, port }
  }

  #open(
    where: { path: string } | { host?: string; port: number } | { fd: number },
    address: NbdAddress,
  ): Promise<Server> {
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) =>
      this.#accept(socket),
    )
    return new Promise<Server>((resolve, reject) => {
      server.once('error', (error) => reject(listenError(address, error)))
      server.listen(where, () => {
        server.removeAllListeners('error')
        server.on('error', () => undefined)
        resolve(server)
      })
    })
  }
}

// The first three belong to the program itself.
function isSocket(fd: number): boolean {
  try {
    return fd > 2 && fstatSync(fd).isSocket()
  } catch {
    return false
  }
}

function quiesce(state: ExportState, on: boolean): void {
  state.quiesced = on
  for (const client of state.clients) client.quiesce(on)
}

/** The host says EACCES for a directory that is not there; ask it directly. */
function checkDirectory(address: UnixAddress): void {
  try {
    statSync(dirname(address.path))
  } catch (error) {
    throw listenError(address, error)
  }
}

/** A socket file that a dead server left behind; anything else stays and makes listening fail. */
function removeStaleSocket(path: string): void {
  try {
    if (lstatSync(path).isSocket()) unlinkSync(path)
  } catch {
    // Nothing there, or not ours to remove: listening will say what is wrong.
  }
}
