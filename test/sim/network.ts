/**
 * A network inside the process: sockets whose bytes travel on a virtual clock, and may be cut.
 *
 * Invariants:
 * - Bytes of one direction arrive in order or not at all; connections do not wait for each other.
 * - After a cut the two ends learn of it at different times, and what was under way may still arrive.
 */
import { EventEmitter } from 'node:events'
import { Socket } from 'node:net'
import type { Clock } from '../../src/util/clock.ts'
import type { Random } from '../../src/util/random.ts'
import type { HostNet } from './host-net.ts'

/** What a network does to its connections. */
export interface NetworkOptions {
  readonly clock: Clock
  readonly random: Random
  /** Longest delay of a piece, in milliseconds. */
  readonly delayMs: number
  readonly trace: (line: string) => void
}

/** What `connect` and `listen` are told. */
export interface Where {
  readonly path?: string
  readonly port?: number
}

const CHUNK_SPLIT = 0.1

/** One end of a connection. */
class SimSocket extends Socket {
  peer: SimSocket | undefined
  readonly label: string
  readonly #network: SimNetwork
  #arrives = 0

  constructor(network: SimNetwork, label: string, allowHalfOpen: boolean) {
    super({ allowHalfOpen })
    this.#network = network
    this.label = label
  }

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error | null) => void): void {
    for (const piece of this.#network.split(Buffer.from(chunk))) this.#send(piece)
    done()
  }

  override _writev(
    chunks: { chunk: Buffer; encoding: string }[],
    done: (error?: Error | null) => void,
  ): void {
    this._write(Buffer.concat(chunks.map((each) => each.chunk)), '', done)
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#send(null)
    done()
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#send(null)
    super._destroy(error, done)
  }

  #send(piece: Buffer | null): void {
    const { peer } = this
    if (peer === undefined) return
    const network = this.#network
    this.#arrives = Math.max(this.#arrives, network.arrival())
    network.at(this.#arrives, () => {
      if (peer.destroyed || peer.readableEnded || peer.ended) return
      network.trace(`${this.label} ${piece === null ? 'end' : piece.length}`)
      if (piece === null) peer.ended = true
      peer.push(piece)
    })
  }

  /** Nothing more arrives here. */
  ended = false
}

/** A listening socket. */
class SimServer extends EventEmitter {
  readonly #network: SimNetwork
  readonly #accept: (socket: Socket) => void
  readonly #sockets = new Set<Socket>()
  #path = ''
  #closed: (() => void) | undefined

  constructor(network: SimNetwork, accept: (socket: Socket) => void) {
    super()
    this.#network = network
    this.#accept = accept
  }

  listen(where: Where, done: () => void): void {
    this.#path = where.path ?? `:${where.port}`
    this.#network.servers.set(this.#path, this)
    this.#network.at(this.#network.now, done)
  }

  address(): string {
    return this.#path
  }

  admit(socket: Socket): void {
    this.#sockets.add(socket)
    socket.once('close', () => {
      this.#sockets.delete(socket)
      this.#maybeClosed()
    })
    socket.pause()
    this.#accept(socket)
  }

  close(done: () => void): void {
    this.#network.servers.delete(this.#path)
    this.#closed = done
    this.#maybeClosed()
  }

  #maybeClosed(): void {
    if (this.#closed === undefined || this.#sockets.size > 0) return
    this.#network.at(this.#network.now, this.#closed)
    this.#closed = undefined
  }
}

/** The network of one history. */
export class SimNetwork implements HostNet {
  readonly servers: Map<string, SimServer> = new Map()
  readonly #options: NetworkOptions
  readonly #links = new Set<{ client: SimSocket; server: SimSocket }>()
  #count = 0
  #down = false

  constructor(options: NetworkOptions) {
    this.#options = options
  }

  get now(): number {
    return this.#options.clock.nowMs()
  }

  /** Connections that were cut so far. */
  cuts = 0

  trace(line: string): void {
    this.#options.trace(`net ${line}`)
  }

  at(timeMs: number, fn: () => void): void {
    this.#options.clock.setTimer(timeMs - this.now, fn)
  }

  arrival(): number {
    const { random, delayMs } = this.#options
    return this.now + random.next() ** 3 * delayMs
  }

  split(bytes: Buffer): Buffer[] {
    const { random } = this.#options
    if (bytes.length < 2 || !random.chance(CHUNK_SPLIT)) return [bytes]
    const at = 1 + random.int(bytes.length - 1)
    return [bytes.subarray(0, at), bytes.subarray(at)]
  }

  /** No connection can be made from now on, and those that are there are cut. */
  takeDown(): void {
    this.#down = true
    this.cut()
  }

  /** Cuts every connection. */
  cut(): void {
    for (const link of [...this.#links]) {
      this.cuts += 1
      this.trace('cut')
      this.#links.delete(link)
      // What each end still gets of the other is what arrives before it learns.
      for (const end of [link.client, link.server]) this.at(this.arrival(), () => end.destroy())
    }
  }

  createServer(_options: object, accept: (socket: Socket) => void): SimServer {
    return new SimServer(this, accept)
  }

  connect(where: Where): Socket {
    const path = where.path ?? `:${where.port}`
    this.#count += 1
    const client = new SimSocket(this, `c${this.#count}>`, false)
    this.at(this.arrival(), () => {
      const listener = this.servers.get(path)
      if (client.destroyed) return
      if (listener === undefined || this.#down) {
        client.destroy(Object.assign(new Error('refused'), { code: 'ECONNREFUSED' }))
        return
      }
      const server = new SimSocket(this, client.label.replace('c', 's'), true)
      client.peer = server
      server.peer = client
      const link = { client, server }
      this.#links.add(link)
      for (const end of [client, server]) end.once('close', () => this.#links.delete(link))
      listener.admit(server)
      client.emit('connect')
    })
    return client
  }
}
