/**
 * Negotiation, the client's side: from a fresh socket to an export that can be used.
 *
 * Invariants:
 * - One option at a time; its last reply is read before the next one leaves.
 * - A server that knows neither structured replies nor GO is still good enough.
 * - What arrived after the handshake is handed on, not lost.
 */
import type { Socket } from 'node:net'
import { TLSSocket } from 'node:tls'
import { BlockError } from '../util/errors.ts'
import { getU64, infoData, metaData, optionRequest, protocolError } from './codec.ts'
import {
  NBD_GREETING_BYTES,
  NBD_HANDSHAKE,
  NBD_INFO,
  NBD_MAX_STRING,
  NBD_OPT,
  NBD_OPTION_REPLY_BYTES,
  NBD_OPTION_REPLY_MAGIC,
  NBD_REP,
} from './constants.ts'
import { isGreeting } from './handshake.ts'
import { optionName } from './option-data.ts'
import { connectTls, reasonOf, type TlsClientOptions } from './tls.ts'

/** What a server said of the export that was entered. */
export interface RemoteExport {
  /** Bytes. */
  readonly size: number
  /** Transmission flags. */
  readonly flags: number
  /** Replies may be structured. */
  readonly structured: boolean
  /** Number of the `base:allocation` context; undefined when there is none. */
  readonly allocationContext: number | undefined
  /** Smallest request unit in bytes; 1 when the server did not say. */
  readonly minBlock: number
  /** Longest payload in bytes; 32 MiB when the server did not say. */
  readonly maxBlock: number
}

/** An entry of a server's list. */
export interface ListedExport {
  readonly name: string
  readonly description: string
}

/** Longest reply to an option that is accepted. */
const MAX_REPLY = 1 << 20

interface OptionReply {
  readonly type: number
  readonly data: Buffer
}

/** Reads a socket in exact amounts during the handshake. */
class HandshakeReader {
  readonly #socket: Socket
  #have: Buffer = Buffer.alloc(0)
  #ended = false
  #error: Error | undefined
  #wake: (() => void) | undefined

  /** Listens from now on; `release` stops it. */
  constructor(socket: Socket) {
    this.#socket = socket
    socket.on('data', this.#onData)
    socket.on('close', this.#onClose)
    socket.on('error', this.#onError)
  }

  readonly #onData = (bytes: Buffer): void => {
    this.#have = this.#have.length === 0 ? bytes : Buffer.concat([this.#have, bytes])
    this.#wake?.()
  }

  readonly #onClose = (): void => {
    this.#ended = true
    this.#wake?.()
  }

  readonly #onError = (error: Error): void => {
    this.#error = error
  }

  /** Exactly `bytes`; ECONNRESET when the server closes before. */
  async read(bytes: number): Promise<Buffer> {
    while (this.#have.length < bytes) {
      if (this.#ended) {
        throw new BlockError('ECONNRESET', this.#endWords(), {}, this.#error)
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    const taken = this.#have.subarray(0, bytes)
    this.#have = this.#have.subarray(bytes)
    return taken
  }

  // Over TLS that is how a server turns away who did not prove itself.
  #endWords(): string {
    const dropped = 'Server dropped the connection during the handshake'
    if (!(this.#socket instanceof TLSSocket)) return dropped
    const why = this.#error === undefined ? dropped : reasonOf(this.#error)
    return `Failed to read option reply: Cannot read from TLS channel: ${why}`
  }

  /** Stops listening and pauses the socket; gives what was read ahead. */
  release(): Buffer {
    this.#socket.pause()
    this.#socket.off('data', this.#onData)
    this.#socket.off('close', this.#onClose)
    this.#socket.off('error', this.#onError)
    return this.#have
  }
}

/** How a client secures a connection. */
export interface HandshakeTls extends TlsClientOptions {
  /** The host that the socket leads to; undefined for a socket without one. */
  readonly host: string | undefined
}

/** A negotiation, and the connection that it goes over. */
export class ClientHandshake {
  readonly #tls: HandshakeTls | undefined
  #socket: Socket
  #reader: HandshakeReader

  /** Talks over `socket`, with `tls` secured as soon as that can be. */
  constructor(socket: Socket, tls: HandshakeTls | undefined) {
    this.#socket = socket
    this.#tls = tls
    this.#reader = new HandshakeReader(socket)
  }

  /** Stops reading: the connection as it is now, and what was read of it too far. */
  release(): { readonly socket: Socket; readonly rest: Buffer } {
    return { socket: this.#socket, rest: this.#reader.release() }
  }

  /** Closes the connection. */
  giveUp(): void {
    this.#socket.destroySoon()
  }

  /** Reads the greeting and answers it; whether options other than EXPORT_NAME may be sent. */
  async greet(): Promise<boolean> {
    const hello = await this.#reader.read(NBD_GREETING_BYTES)
    if (!isGreeting(hello)) throw protocolError('Bad initial magic received from the NBD server')
    const known = NBD_HANDSHAKE.FIXED_NEWSTYLE | NBD_HANDSHAKE.NO_ZEROES
    const flags = hello.readUInt16BE(16) & known
    const answer = Buffer.alloc(4)
    answer.writeUInt32BE(flags, 0)
    this.#socket.write(answer)
    this.noZeroes = (flags & NBD_HANDSHAKE.NO_ZEROES) !== 0
    const fixed = (flags & NBD_HANDSHAKE.FIXED_NEWSTYLE) !== 0
    if (this.#tls !== undefined) await this.#secure(fixed, this.#tls)
    return fixed
  }

  async #secure(fixed: boolean, tls: HandshakeTls): Promise<void> {
    if (!fixed) throw new BlockError('ENOTSUP', 'Server does not support STARTTLS')
    const last = lastOf(await this.option(NBD_OPT.STARTTLS))
    if (last.type !== NBD_REP.ACK) {
      this.abort()
      throw optionError(NBD_OPT.STARTTLS, last)
    }
    this.#socket = await connectTls(this.#socket, this.#reader.release(), tls, tls.host)
    this.#reader = new HandshakeReader(this.#socket)
  }

  /** The answer to EXPORT_NAME has no padding. */
  noZeroes = false

  /** Sends an option; every reply up to and with the last one. */
  async option(option: number, data?: Buffer): Promise<OptionReply[]> {
    this.#socket.write(optionRequest(option, data))
    const replies: OptionReply[] = []
    for (;;) {
      const header = await this.#reader.read(NBD_OPTION_REPLY_BYTES)
      const [high, low] = NBD_OPTION_REPLY_MAGIC
      if (header.readUInt32BE(0) !== high || header.readUInt32BE(4) !== low) {
        throw protocolError('Unexpected option reply magic')
      }
      if (header.readUInt32BE(8) !== option) {
        throw protocolError('Unexpected option type in a reply')
      }
      const type = header.readUInt32BE(12)
      const length = header.readUInt32BE(16)
      if (length > MAX_REPLY) throw protocolError('Reply to an option is too long')
      replies.push({ type, data: Buffer.from(await this.#reader.read(length)) })
      if (type === NBD_REP.ACK || type >= NBD_REP.ERR_UNSUP) return replies
    }
  }

  async structuredReply(): Promise<boolean> {
    return lastOf(await this.option(NBD_OPT.STRUCTURED_REPLY)).type === NBD_REP.ACK
  }

  async allocationContext(name: string): Promise<number | undefined> {
    const data = metaData(name, ['base:allocation'])
    const replies = await this.option(NBD_OPT.SET_META_CONTEXT, data)
    const found = replies.find(
      ({ type, data }) =>
        type === NBD_REP.META_CONTEXT && data.toString('utf8', 4) === 'base:allocation',
    )
    return lastOf(replies).type === NBD_REP.ACK ? found?.data.readUInt32BE(0) : undefined
  }

  /** The old way in: no error reply, an unknown export just closes. */
  async exportName(name: string): Promise<{ size: number; flags: number }> {
    this.#socket.write(optionRequest(NBD_OPT.EXPORT_NAME, Buffer.from(name)))
    const answer = await this.#reader.read(10 + (this.noZeroes ? 0 : 124))
    return { size: getU64(answer, 0), flags: answer.readUInt16BE(8) }
  }

  abort(): void {
    this.#socket.end(optionRequest(NBD_OPT.ABORT))
  }
}

/** Enters an export. Errors: EINVAL not available, EACCES, EPROTO, ECONNRESET. */
export async function enterExport(shake: ClientHandshake, name: string): Promise<RemoteExport> {
  if (Buffer.byteLength(name) > NBD_MAX_STRING) {
    throw new BlockError('EINVAL', 'export name too long to send to server')
  }
  if (!(await shake.greet())) return plain(await shake.exportName(name), false)
  const structured = await shake.structuredReply()
  const allocationContext = structured ? await shake.allocationContext(name) : undefined
  const replies = await shake.option(NBD_OPT.GO, infoData(name, [NBD_INFO.BLOCK_SIZE]))
  const last = lastOf(replies)
  if (last.type === NBD_REP.ERR_UNSUP) return plain(await shake.exportName(name), structured)
  if (last.type !== NBD_REP.ACK) {
    shake.abort()
    throw optionError(NBD_OPT.GO, last)
  }
  return checked(readInfos(replies, structured, allocationContext))
}

/** Every export of a server. Errors: EPERM when it does not list them. */
export async function listOf(shake: ClientHandshake): Promise<ListedExport[]> {
  if (!(await shake.greet())) throw new BlockError('ENOTSUP', 'Server does not support option 0x3')
  const replies = await shake.option(NBD_OPT.LIST)
  shake.abort()
  if (lastOf(replies).type !== NBD_REP.ACK) throw optionError(NBD_OPT.LIST, lastOf(replies))
  return replies.filter(({ type }) => type === NBD_REP.SERVER).map(({ data }) => listed(data))
}

function listed(data: Buffer): ListedExport {
  const length = data.length >= 4 ? data.readUInt32BE(0) : Number.POSITIVE_INFINITY
  if (4 + length > data.length) throw protocolError('Inconsistent length of an export name')
  return {
    name: data.toString('utf8', 4, 4 + length),
    description: data.toString('utf8', 4 + length),
  }
}

function plain(said: { size: number; flags: number }, structured: boolean): RemoteExport {
  return checked({
    ...said,
    structured,
    allocationContext: undefined,
    minBlock: 1,
    maxBlock: 32 << 20,
  })
}

function readInfos(
  replies: readonly OptionReply[],
  structured: boolean,
  allocationContext: number | undefined,
): RemoteExport {
  let size = Number.NaN
  let flags = 0
  let minBlock = 1
  let maxBlock = 32 << 20
  for (const { type, data } of replies) {
    if (type !== NBD_REP.INFO || data.length < 2) continue
    const info = data.readUInt16BE(0)
    if (info === NBD_INFO.EXPORT && data.length === 12) {
      size = getU64(data, 2)
      flags = data.readUInt16BE(10)
    } else if (info === NBD_INFO.BLOCK_SIZE && data.length === 14) {
      minBlock = data.readUInt32BE(2)
      maxBlock = Math.min(maxBlock, data.readUInt32BE(10))
    }
  }
  return { size, flags, structured, allocationContext, minBlock, maxBlock }
}

function checked(remote: RemoteExport): RemoteExport {
  const { size, minBlock, maxBlock } = remote
  if (!Number.isSafeInteger(size)) throw protocolError('Server did not tell a usable export size')
  const power = minBlock > 0 && (minBlock & (minBlock - 1)) === 0
  if (!power || minBlock > 65536 || maxBlock < minBlock) {
    throw protocolError(`Server requires an unusable minimum block size of ${minBlock}`)
  }
  return remote
}

function lastOf(replies: readonly OptionReply[]): OptionReply {
  const last = replies.at(-1)
  if (last === undefined) throw protocolError('Option without a reply')
  return last
}

const ERROR_WORDS: Readonly<Record<number, string>> = {
  [NBD_REP.ERR_UNKNOWN]: 'Requested export not available',
  [NBD_REP.ERR_POLICY]: 'Denied by server for',
  [NBD_REP.ERR_INVALID]: 'Invalid parameters for option',
  [NBD_REP.ERR_PLATFORM]: 'Server lacks support for option',
  [NBD_REP.ERR_TLS_REQD]: 'TLS negotiation required before',
  [NBD_REP.ERR_SHUTDOWN]: 'Server shutting down before option',
  [NBD_REP.ERR_BLOCK_SIZE_REQD]: 'Server requires INFO_BLOCK_SIZE',
}

/** The error of a refused option; what the server said is its cause. */
function optionError(option: number, reply: OptionReply): BlockError {
  const { type } = reply
  const known = ERROR_WORDS[type] ?? `Server refused an option (0x${type.toString(16)})`
  const named = type === NBD_REP.ERR_POLICY || type === NBD_REP.ERR_TLS_REQD
  const words = named ? `${known} option ${option} (${optionName(option)})` : known
  const said = reply.data.toString('utf8', 0, NBD_MAX_STRING)
  const hint = said === '' ? undefined : new BlockError('EINVAL', `server reported: ${said}`)
  return new BlockError('EINVAL', words, {}, hint)
}
