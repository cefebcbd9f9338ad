/**
 * Negotiation, the server's side: options arrive as bytes, answers leave as bytes.
 *
 * Invariants:
 * - No I/O: the owner feeds what arrived and sends what is handed out, in order.
 * - Option data is stored only up to 1 MiB; longer data is swallowed and refused, and above 32 MiB
 *   the connection is dropped, so a claimed length never costs memory.
 * - A context selection counts only for the export it named.
 */

import { BlockError } from '../util/errors.ts'
import { greeting, lengthPrefixed, optionReply, putU64 } from './codec.ts'
import {
  NBD_GREETING_MAGIC,
  NBD_HANDSHAKE,
  NBD_INFO,
  NBD_MAX_OPTION_DATA,
  NBD_MAX_STRING,
  NBD_OPT,
  NBD_OPTION_BYTES,
  NBD_OPTION_MAGIC,
  NBD_REP,
} from './constants.ts'
import {
  exportBlockSizes,
  exportFlags,
  type MetaContext,
  type NbdExport,
  selectContexts,
} from './export.ts'
import { optionName, parseInfo, parseMeta, type Refusal, shortened } from './option-data.ts'

/** What was agreed on when transmission begins. */
export interface NbdSession {
  /** The export that was chosen. */
  readonly export: NbdExport
  /** Size told to the client, in bytes. */
  readonly size: number
  /** Replies may be structured. */
  readonly structured: boolean
  /** Contexts for BLOCK_STATUS; empty when none was negotiated. */
  readonly contexts: readonly MetaContext[]
}

/** What a handshake needs of the server around it. */
export interface HandshakeHost {
  /** The export of that name, or undefined. */
  find(name: string): NbdExport | undefined
  /** Every export, in the order of listing. */
  exports(): Iterable<NbdExport>
  /** More than one client may connect. */
  readonly multiConn: boolean
  /** The server is going away. */
  readonly closing: boolean
  /** Nothing but the beginning of TLS is accepted in the clear. */
  readonly needsTls: boolean
}

/** Where a handshake stands after bytes were fed to it. */
export type HandshakeOutcome =
  | { readonly kind: 'more' }
  /** Close; what was handed out before may still be sent. */
  | { readonly kind: 'drop' }
  /** TLS begins when what was handed out before is sent; `rest` are bytes that came after. */
  | { readonly kind: 'tls'; readonly rest: Buffer }
  /** Transmission begins; `rest` are bytes that came after. */
  | { readonly kind: 'enter'; readonly session: NbdSession; readonly rest: Buffer }

const MORE: HandshakeOutcome = { kind: 'more' }
const DROP: HandshakeOutcome = { kind: 'drop' }
const STORED_OPTION_DATA = 1 << 20
const EMPTY = Buffer.alloc(0)

type OptionHandler = (shake: Handshake, option: number, data: Buffer) => HandshakeOutcome

const OPTIONS: ReadonlyMap<number, OptionHandler> = new Map<number, OptionHandler>([
  [NBD_OPT.EXPORT_NAME, (shake, _option, data) => shake.exportName(data)],
  [NBD_OPT.ABORT, (shake, option) => shake.abort(option)],
  [NBD_OPT.LIST, (shake, option, data) => shake.list(option, data)],
  [NBD_OPT.STARTTLS, (shake, option, data) => shake.startTls(option, data)],
  [NBD_OPT.INFO, (shake, option, data) => shake.info(option, data)],
  [NBD_OPT.GO, (shake, option, data) => shake.info(option, data)],
  [NBD_OPT.STRUCTURED_REPLY, (shake, option, data) => shake.structuredReply(option, data)],
  [NBD_OPT.LIST_META_CONTEXT, (shake, option, data) => shake.metaContext(option, data)],
  [NBD_OPT.SET_META_CONTEXT, (shake, option, data) => shake.metaContext(option, data)],
])

/** One negotiation. Feed it what arrives until it says `drop` or `enter`. */
export class Handshake {
  readonly #host: HandshakeHost
  readonly #send: (bytes: Buffer) => void
  #have: Buffer = EMPTY
  #flags: number | undefined
  #secured = false
  #structured = false
  #selected: { readonly name: string; readonly contexts: readonly MetaContext[] } | undefined
  #swallow = 0
  #swallowed = 0

  /** Sends the greeting through `send` at once. */
  constructor(host: HandshakeHost, send: (bytes: Buffer) => void) {
    this.#host = host
    this.#send = send
    send(greeting(NBD_HANDSHAKE.FIXED_NEWSTYLE | NBD_HANDSHAKE.NO_ZEROES))
  }

  /**
   * Takes bytes that arrived. After `drop` or `enter` nothing may be fed any more, after `tls` only
   * what came through the secured connection.
   */
  feed(bytes: Buffer): HandshakeOutcome {
    this.#have = this.#have.length === 0 ? bytes : Buffer.concat([this.#have, bytes])
    for (;;) {
      const outcome = this.#step()
      if (outcome === undefined) return MORE
      if (outcome.kind !== 'more') return outcome
    }
  }

  /** One unit of input; undefined when more bytes are needed. */
  #step(): HandshakeOutcome | undefined {
    if (this.#flags === undefined) return this.#clientFlags()
    if (this.#swallow > 0) return this.#swallowData()
    if (this.#have.length < NBD_OPTION_BYTES) return undefined
    if (this.#have.toString('latin1', 0, 8) !== NBD_OPTION_MAGIC) return DROP
    const option = this.#have.readUInt32BE(8)
    const length = this.#have.readUInt32BE(12)
    if (length > NBD_MAX_OPTION_DATA) return DROP
    const oldStyle = (this.#flags & NBD_HANDSHAKE.FIXED_NEWSTYLE) === 0
    if (oldStyle && option !== NBD_OPT.EXPORT_NAME) return DROP
    if (length > STORED_OPTION_DATA) {
      if (option === NBD_OPT.EXPORT_NAME) return DROP
      this.#have = this.#have.subarray(NBD_OPTION_BYTES)
      this.#swallow = length
      this.#swallowed = option
      return MORE
    }
    if (this.#have.length < NBD_OPTION_BYTES + length) return undefined
    const data = this.#have.subarray(NBD_OPTION_BYTES, NBD_OPTION_BYTES + length)
    this.#have = this.#have.subarray(NBD_OPTION_BYTES + length)
    return this.#option(option, data)
  }

  #clientFlags(): HandshakeOutcome | undefined {
    if (this.#have.length < 4) return undefined
    const flags = this.#have.readUInt32BE(0)
    const known = NBD_HANDSHAKE.FIXED_NEWSTYLE | NBD_HANDSHAKE.NO_ZEROES
    if ((flags & ~known) !== 0) return DROP
    this.#flags = flags
    this.#have = this.#have.subarray(4)
    return MORE
  }

  #swallowData(): HandshakeOutcome | undefined {
    const take = Math.min(this.#swallow, this.#have.length)
    this.#have = this.#have.subarray(take)
    this.#swallow -= take
    if (this.#swallow > 0) return undefined
    const option = this.#swallowed
    if (!this.#inTheClear(option)) return this.#tlsRequired(option)
    if (!OPTIONS.has(option)) return this.#unsupported(option)
    return this.#refuse(option, { type: NBD_REP.ERR_TOO_BIG, text: 'Option data is too long' })
  }

  /** A disk that cannot even tell its length costs the client its connection, nobody else anything. */
  #option(option: number, data: Buffer): HandshakeOutcome {
    try {
      return this.#handle(option, data)
    } catch (error) {
      if (error instanceof BlockError) return DROP
      throw error
    }
  }

  #handle(option: number, data: Buffer): HandshakeOutcome {
    const handler = OPTIONS.get(option)
    if (!this.#inTheClear(option)) return this.#tlsRequired(option)
    if (handler === undefined) return this.#unsupported(option)
    if (this.#host.closing && option !== NBD_OPT.ABORT) {
      if (option === NBD_OPT.EXPORT_NAME) return DROP
      return this.#refuse(option, { type: NBD_REP.ERR_SHUTDOWN, text: 'Server is shutting down' })
    }
    return handler(this, option, data)
  }

  /** Whether an option may come now as far as TLS goes. */
  #inTheClear(option: number): boolean {
    return !this.#host.needsTls || this.#secured || option === NBD_OPT.STARTTLS
  }

  #tlsRequired(option: number): HandshakeOutcome {
    if (option === NBD_OPT.EXPORT_NAME) return DROP
    const text = `Option 0x${option.toString(16)} not permitted before TLS`
    return this.#refuse(option, { type: NBD_REP.ERR_TLS_REQD, text })
  }

  #unsupported(option: number): HandshakeOutcome {
    const text = `Unsupported option ${option} (${optionName(option)})`
    return this.#refuse(option, { type: NBD_REP.ERR_UNSUP, text })
  }

  #refuse(option: number, refusal: Refusal): HandshakeOutcome {
    const text = Buffer.from(refusal.text).subarray(0, NBD_MAX_STRING)
    this.#send(optionReply(option, refusal.type, text))
    return MORE
  }

  #invalid(option: number, text: string): HandshakeOutcome {
    return this.#refuse(option, { type: NBD_REP.ERR_INVALID, text })
  }

  #acknowledge(option: number): HandshakeOutcome {
    this.#send(optionReply(option, NBD_REP.ACK))
    return MORE
  }

  #unexpectedLength(option: number): HandshakeOutcome {
    return this.#invalid(option, `option '${optionName(option)}' has unexpected length`)
  }

  /** EXPORT_NAME: has no error reply, so an unknown export closes the connection. */
  exportName(data: Buffer): HandshakeOutcome {
    if (data.length > NBD_MAX_STRING) return DROP
    const exp = this.#host.find(data.toString('utf8'))
    if (exp === undefined) return DROP
    const size = exp.backend.length()
    const padding = ((this.#flags ?? 0) & NBD_HANDSHAKE.NO_ZEROES) === 0 ? 124 : 0
    const answer = Buffer.alloc(10 + padding)
    putU64(answer, 0, size)
    answer.writeUInt16BE(exportFlags(exp, this.#structured, this.#host.multiConn), 8)
    this.#send(answer)
    return this.#enter(exp, size)
  }

  /** ABORT: acknowledged, then closed. */
  abort(option: number): HandshakeOutcome {
    this.#acknowledge(option)
    return DROP
  }

  /** LIST: one SERVER reply an export. */
  list(option: number, data: Buffer): HandshakeOutcome {
    if (data.length > 0) return this.#unexpectedLength(option)
    for (const exp of this.#host.exports()) {
      const description = Buffer.from(exp.description ?? '')
      const entry = Buffer.concat([lengthPrefixed(exp.name), description])
      this.#send(optionReply(option, NBD_REP.SERVER, entry))
    }
    return this.#acknowledge(option)
  }

  /** STARTTLS: what was negotiated in the clear does not count any more. */
  startTls(option: number, data: Buffer): HandshakeOutcome {
    if (data.length > 0) return this.#unexpectedLength(option)
    if (this.#secured) return this.#invalid(option, 'TLS already enabled')
    if (!this.#host.needsTls) {
      return this.#refuse(option, { type: NBD_REP.ERR_POLICY, text: 'TLS not configured' })
    }
    this.#acknowledge(option)
    this.#secured = true
    this.#structured = false
    this.#selected = undefined
    const rest = this.#have
    this.#have = EMPTY
    return { kind: 'tls', rest }
  }

  /** STRUCTURED_REPLY: once. */
  structuredReply(option: number, data: Buffer): HandshakeOutcome {
    if (data.length > 0) return this.#unexpectedLength(option)
    if (this.#structured) return this.#invalid(option, 'structured reply already negotiated')
    this.#structured = true
    return this.#acknowledge(option)
  }

  /** INFO and GO: tell of an export; GO also enters it. */
  info(option: number, data: Buffer): HandshakeOutcome {
    const parsed = parseInfo(data, optionName(option))
    if ('type' in parsed) return this.#refuse(option, parsed)
    const exp = this.#host.find(parsed.name)
    if (exp === undefined) return this.#unknownExport(option, parsed.name)
    const size = exp.backend.length()
    if (parsed.infos.includes(NBD_INFO.NAME)) {
      this.#sendInfo(option, NBD_INFO.NAME, Buffer.from(exp.name))
    }
    if (exp.description !== undefined && exp.description !== '') {
      this.#sendInfo(option, NBD_INFO.DESCRIPTION, Buffer.from(exp.description))
    }
    const sizes = Buffer.alloc(12)
    const [smallest, best, largest] = exportBlockSizes(exp)
    sizes.writeUInt32BE(smallest, 0)
    sizes.writeUInt32BE(best, 4)
    sizes.writeUInt32BE(largest, 8)
    this.#sendInfo(option, NBD_INFO.BLOCK_SIZE, sizes)
    const about = Buffer.alloc(10)
    putU64(about, 0, size)
    about.writeUInt16BE(exportFlags(exp, this.#structured, this.#host.multiConn), 8)
    this.#sendInfo(option, NBD_INFO.EXPORT, about)
    // Whoever enters may still send any request: what is too small is made whole here.
    if (option === NBD_OPT.INFO && smallest > 1 && !parsed.infos.includes(NBD_INFO.BLOCK_SIZE)) {
      const text = 'request NBD_INFO_BLOCK_SIZE to use this export'
      return this.#refuse(option, { type: NBD_REP.ERR_BLOCK_SIZE_REQD, text })
    }
    this.#acknowledge(option)
    return option === NBD_OPT.GO ? this.#enter(exp, size) : MORE
  }

  /** LIST_META_CONTEXT and SET_META_CONTEXT. */
  metaContext(option: number, data: Buffer): HandshakeOutcome {
    const listing = option === NBD_OPT.LIST_META_CONTEXT
    if (!listing && !this.#structured) {
      const text = `request option '${optionName(option)}' when structured reply is not negotiated`
      return this.#invalid(option, text)
    }
    const parsed = parseMeta(data, option)
    if ('type' in parsed) return this.#refuse(option, parsed)
    if (!listing) this.#selected = undefined
    const exp = this.#host.find(parsed.name)
    if (exp === undefined) return this.#unknownExport(option, parsed.name)
    const contexts = selectContexts(exp, parsed.queries, listing)
    for (const context of contexts) {
      const id = Buffer.alloc(4)
      id.writeUInt32BE(listing ? 0 : context.id, 0)
      const reply = Buffer.concat([id, Buffer.from(context.name)])
      this.#send(optionReply(option, NBD_REP.META_CONTEXT, reply))
    }
    if (!listing) this.#selected = { name: parsed.name, contexts }
    return this.#acknowledge(option)
  }

  #unknownExport(option: number, name: string): HandshakeOutcome {
    const text = `export '${shortened(name)}' not present`
    return this.#refuse(option, { type: NBD_REP.ERR_UNKNOWN, text })
  }

  #sendInfo(option: number, info: number, data: Buffer): void {
    const kind = Buffer.alloc(2)
    kind.writeUInt16BE(info, 0)
    this.#send(optionReply(option, NBD_REP.INFO, Buffer.concat([kind, data])))
  }

  #enter(exp: NbdExport, size: number): HandshakeOutcome {
    const selected = this.#selected
    const contexts = selected !== undefined && selected.name === exp.name ? selected.contexts : []
    const session = { export: exp, size, structured: this.#structured, contexts }
    return { kind: 'enter', session, rest: this.#have }
  }
}

/** Whether bytes begin as a server's greeting does. */
export function isGreeting(bytes: Buffer): boolean {
  return bytes.toString('latin1', 0, 16) === NBD_GREETING_MAGIC + NBD_OPTION_MAGIC
}
