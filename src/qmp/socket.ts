/**
 * Monitor sockets: where clients connect.
 *
 * Invariants:
 * - One client at a time; the next one is greeted when the first has left.
 * - A held monitor greets nobody before it is released.
 * - A socket file left by a dead process is replaced, one in use is never touched.
 * - A client that does not read its events is cut off before it costs the process its memory.
 */
import { existsSync, lstatSync, unlinkSync } from 'node:fs'
import net from 'node:net'
import { dirname } from 'node:path'
import type { Duplex } from 'node:stream'
import type { AioContext } from '../aio/aio-context.ts'
import { asBlockError, BlockError, codeWords } from '../util/errors.ts'
import type { CommandTable } from './command.ts'
import type { EventHub } from './events.ts'
import { prettyLine } from './json-pretty.ts'
import { MonitorSession } from './session.ts'

/** Longest path of a unix socket, its final zero not counted. */
const MAX_UNIX_PATH = 107
/** Bytes that a client may leave unread. */
const MAX_UNREAD = 64 * 1024 * 1024

/** How long a client may take to read the last lines. */
const LAST_WORDS_MS = 1000

/** Where a monitor listens. */
export type MonitorAddress =
  | { readonly type: 'unix'; readonly path: string }
  | { readonly type: 'tcp'; readonly host: string; readonly port: number }

/** Reads `unix:PATH` or `tcp:HOST:PORT`; `,server=on,wait=off` may follow. Errors: EINVAL. */
export function parseMonitorAddress(text: string): MonitorAddress {
  const [address = '', ...options] = text.split(',')
  for (const option of options) {
    if (/^(server|wait|nowait)(=(on|off))?$/.test(option)) continue
    throw new BlockError('EINVAL', `monitor address '${text}': unknown option '${option}'`)
  }
  if (address.startsWith('unix:') && address.length > 5)
    return { type: 'unix', path: address.slice(5) }
  const tcp = /^tcp:(\[[0-9a-fA-F:]+\]|[^:]*):([0-9]+)$/.exec(address)
  if (tcp !== null && Number(tcp[2]) <= 65535) {
    const host = (tcp[1] ?? '').replace(/^\[|\]$/g, '')
    return { type: 'tcp', host: host === '' ? '0.0.0.0' : host, port: Number(tcp[2]) }
  }
  throw new BlockError('EINVAL', `monitor address '${text}' is neither unix:PATH nor tcp:HOST:PORT`)
}

/**
 * Connects to somebody who listens at such an address. `allowHalfOpen` as the host's: our end stays
 * open when the other is closed. Errors: those of the host, with the address.
 */
export function dial(
  address: MonitorAddress,
  { allowHalfOpen = false }: { readonly allowHalfOpen?: boolean } = {},
): Promise<net.Socket> {
  const where = address.type === 'unix' ? address.path : `${address.host}:${address.port}`
  const target = address.type === 'unix' ? { path: address.path } : address
  return new Promise((resolve, reject) => {
    const socket = net.connect({ ...target, allowHalfOpen })
    const failed = (thrown: Error): void => {
      const { code, message } = asBlockError(thrown)
      const words = `Failed to connect to '${where}': ${message}`
      reject(new BlockError(code, words, { path: where }, thrown))
    }
    socket.once('error', failed)
    socket.once('connect', () => {
      socket.off('error', failed)
      resolve(socket)
    })
  })
}

/** Starts to listen. Errors: EBUSY when somebody else has the address, EINVAL, EACCES … */
export async function listenOn(server: net.Server, address: MonitorAddress): Promise<void> {
  if (address.type === 'unix') await clearSocketPath(address.path)
  const where = address.type === 'unix' ? address.path : `${address.host}:${address.port}`
  const options = address.type === 'unix' ? { path: address.path } : address
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(bindError(error, where)))
    // A server that is closed at once never says that it listens.
    server.once('close', resolve)
    server.listen(options, resolve)
  })
  server.on('error', () => {
    // Accepting one client failed (out of descriptors); the others are not concerned.
  })
}

/** A listening monitor. */
export class MonitorServer {
  readonly #commands: CommandTable
  readonly #ctx: AioContext
  readonly #events: EventHub
  readonly #server: net.Server
  readonly #waiting: Duplex[] = []
  #current: Duplex | undefined
  #held: boolean
  #pretty = false
  #noticed: () => void = () => undefined
  #closing = false

  /** `held`: whoever connects waits for `release`. */
  constructor(commands: CommandTable, events: EventHub, ctx: AioContext, held = false) {
    this.#commands = commands
    this.#ctx = ctx
    this.#events = events
    this.#held = held
    this.#server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) =>
      this.accept(socket),
    )
  }

  /** Starts to listen. Errors: EBUSY when somebody else has the address, EINVAL, EACCES … */
  async listen(address: MonitorAddress): Promise<void> {
    await listenOn(this.#server, address)
  }

  /** Greets who waits and who comes; `pretty` spreads every message over lines. */
  release(pretty: boolean): void {
    this.#held = false
    this.#pretty = pretty
    const next = this.#waiting.shift()
    if (next !== undefined) this.#serve(next)
  }

  /** Settles when the first client is there, or nobody will be heard any more. */
  async firstClient(): Promise<void> {
    if (this.#closing || this.#current !== undefined || this.#waiting.length > 0) return
    await new Promise<void>((resolve) => {
      this.#noticed = resolve
    })
  }

  /** The TCP port, when it is one. */
  get port(): number | undefined {
    const address = this.#server.address()
    return typeof address === 'object' && address !== null ? address.port : undefined
  }

  /** Stops listening and lets the client read what was sent. */
  async close(): Promise<void> {
    this.#closing = true
    this.#noticed()
    for (const socket of this.#waiting.splice(0)) socket.destroy()
    const current = this.#current
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve())
    })
    // A client that does not read, or keeps its half open, must not keep the process.
    const cancel = this.#events.later(LAST_WORDS_MS, () => current?.destroy())
    current?.end(() => current.destroy())
    await closed
    cancel()
  }

  /** Takes a connection that was made elsewhere; it is paused. */
  accept(socket: Duplex): void {
    socket.on('error', () => socket.destroy())
    this.#noticed()
    if (this.#closing) socket.destroy()
    else if (this.#current === undefined && !this.#held) this.#serve(socket)
    else {
      this.#waiting.push(socket)
      socket.once('close', () => {
        const at = this.#waiting.indexOf(socket)
        if (at >= 0) this.#waiting.splice(at, 1)
      })
    }
  }

  #serve(socket: Duplex): void {
    this.#current = socket
    const wire = {
      send: (line: string) => {
        if (socket.destroyed || socket.writableEnded) return
        socket.write(this.#pretty ? prettyLine(line) : line, 'latin1')
        if (socket.writableLength > MAX_UNREAD) socket.destroy()
      },
      pauseInput: (paused: boolean) => {
        if (paused) socket.pause()
        else socket.resume()
      },
    }
    const session = new MonitorSession(this.#commands, wire, this.#ctx)
    const unsubscribe = this.#events.subscribe((message) => session.sendEvent(message))
    socket.on('data', (chunk) => {
      if (typeof chunk !== 'string') session.push(chunk)
    })
    // A client may shut its sending half and still wait for its replies.
    socket.on('end', () => void session.finished().then(() => socket.end()))
    socket.once('close', () => {
      session.end()
      unsubscribe()
      this.#current = undefined
      const next = this.#waiting.shift()
      if (next !== undefined && !this.#closing) this.#serve(next)
    })
    session.greet()
    socket.resume()
  }
}

function bindError(error: Error, where: string): BlockError {
  const known = asBlockError(error)
  if ('code' in error && error.code === 'EADDRINUSE') return inUse(where)
  if ('syscall' in error && error.syscall === 'getaddrinfo') {
    return new BlockError('EINVAL', `address resolution failed for ${where}`, {}, error)
  }
  return new BlockError(
    known.code,
    `Failed to bind socket to ${where}: ${known.message}`,
    {},
    error,
  )
}

function inUse(where: string): BlockError {
  return new BlockError('EBUSY', `Failed to bind socket to ${where}: Address already in use`)
}

// Removes a socket file nobody listens on. Errors: EBUSY when somebody does, EEXIST for other files.
async function clearSocketPath(path: string): Promise<void> {
  if (Buffer.byteLength(path) > MAX_UNIX_PATH) {
    throw new BlockError('EINVAL', `UNIX socket path '${path}' is too long`)
  }
  const stat = lstatSync(path, { throwIfNoEntry: false })
  if (stat === undefined) {
    // Listening would call a missing directory a missing permission.
    if (existsSync(dirname(path))) return
    throw new BlockError('ENOENT', `Failed to bind socket to ${path}: ${codeWords('ENOENT')}`)
  }
  if (!stat.isSocket()) {
    throw new BlockError('EEXIST', `Failed to bind socket to ${path}: ${codeWords('EEXIST')}`)
  }
  const busy = await new Promise<boolean>((resolve) => {
    const probe = net.connect(path)
    probe.once('connect', () => {
      probe.destroy()
      resolve(true)
    })
    probe.once('error', (error) => resolve(!('code' in error) || error.code !== 'ECONNREFUSED'))
  })
  if (busy) throw inUse(path)
  unlinkSync(path)
}
