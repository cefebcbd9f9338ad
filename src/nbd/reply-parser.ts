/**
 * Replies out of a byte stream, the client's side.
 *
 * Invariants:
 * - Data of a READ goes from the chunk that arrived straight to its place in the request's buffer.
 * - Whatever does not fit a running request is a protocol error; nothing is written outside the
 *   buffer of its request.
 */
import { copyBytes } from '../util/copy.ts'
import { BlockError, codeWords } from '../util/errors.ts'
import { errorCode, getU64, protocolError } from './codec.ts'
import {
  NBD_CHUNK,
  NBD_CHUNK_BYTES,
  NBD_CHUNK_DONE,
  NBD_CHUNK_MAGIC,
  NBD_CMD,
  NBD_ERROR,
  NBD_SIMPLE_REPLY_BYTES,
  NBD_SIMPLE_REPLY_MAGIC,
} from './constants.ts'
import { roomIn } from './input.ts'

/** Longest chunk without data that is accepted. */
const MAX_SMALL_PAYLOAD = 1 << 20
const DATA_HEADER = NBD_CHUNK_BYTES + 8

/** A request as the parser sees it. */
export interface AwaitedReply {
  readonly type: number
  readonly offset: number
  readonly length: number
  /** Where a READ's data goes. */
  readonly buf: Uint8Array | undefined
  /** Bytes of data that arrived. */
  filled: number
  /** The first error that a chunk carried. */
  error: BlockError | undefined
  /** First extent of a BLOCK_STATUS: bytes and bits. */
  extent: { readonly bytes: number; readonly bits: number } | undefined
}

/** What a parser asks of its connection. */
export interface ReplyHost {
  /** The running request with that cookie. */
  awaited(cookie: number): AwaitedReply | undefined
  /** The request got its last reply. */
  finished(cookie: number, request: AwaitedReply): void
  /** Structured replies were negotiated. */
  readonly structured: boolean
  /** Number of the `base:allocation` context. */
  readonly allocationContext: number | undefined
}

/** Parser of one connection; `feed` throws EPROTO when the server breaks the protocol. */
export class ReplyParser {
  readonly #host: ReplyHost
  readonly #head: Buffer = Buffer.alloc(DATA_HEADER)
  #fill = 0
  #need = NBD_SIMPLE_REPLY_BYTES
  #request: AwaitedReply | undefined
  #cookie = 0
  #flags = 0
  #type = 0
  #small: Buffer | undefined
  #smallFill = 0
  #dataAt = 0
  #dataLeft = 0

  constructor(host: ReplyHost) {
    this.#host = host
  }

  /** Takes bytes that arrived. */
  feed(bytes: Buffer): void {
    let at = 0
    while (at < bytes.length) {
      if (this.#dataLeft > 0) at = this.#takeData(bytes, at)
      else if (this.#small !== undefined) at = this.#takeSmall(bytes, at, this.#small)
      else at = this.#takeHead(bytes, at)
    }
  }

  /** The rest of a READ's data, to be read straight to its place. */
  room(): Buffer | undefined {
    if (this.#dataLeft === 0) return undefined
    return roomIn(this.#request?.buf?.subarray(0, this.#dataAt + this.#dataLeft), this.#dataAt)
  }

  /** So much of `room` arrived. */
  filled(bytes: number): void {
    const request = this.#request
    if (request === undefined) throw protocolError('Data without a READ')
    this.#advance(request, bytes)
  }

  #takeHead(bytes: Buffer, at: number): number {
    const take = Math.min(this.#need - this.#fill, bytes.length - at)
    bytes.copy(this.#head, this.#fill, at, at + take)
    this.#fill += take
    if (this.#fill < this.#need) return at + take
    const magic = this.#head.readUInt32BE(0)
    if (magic === NBD_SIMPLE_REPLY_MAGIC) this.#simple()
    else if (magic !== NBD_CHUNK_MAGIC) {
      throw protocolError(`Unexpected reply magic 0x${magic.toString(16)}`)
    } else if (this.#need === NBD_SIMPLE_REPLY_BYTES) this.#need = NBD_CHUNK_BYTES
    else if (this.#need === NBD_CHUNK_BYTES) this.#chunk()
    else this.#data()
    return at + take
  }

  #simple(): void {
    const error = this.#head.readUInt32BE(4)
    const request = this.#find()
    this.#restart()
    if (this.#host.structured && request.type === NBD_CMD.READ) {
      throw protocolError('Simple reply to a READ after structured replies were negotiated')
    }
    this.#flags = NBD_CHUNK_DONE
    if (error !== 0) request.error ??= remoteError(error, '')
    if (error === 0 && request.type === NBD_CMD.READ && request.length > 0) {
      this.#dataAt = 0
      this.#dataLeft = request.length
    } else this.#endChunk()
  }

  #chunk(): void {
    if (!this.#host.structured) throw protocolError('Structured reply that was not negotiated')
    this.#flags = this.#head.readUInt16BE(4)
    this.#type = this.#head.readUInt16BE(6)
    const length = this.#head.readUInt32BE(16)
    const request = this.#find()
    if (this.#type === NBD_CHUNK.OFFSET_DATA) {
      if (length <= 8 || request.type !== NBD_CMD.READ) throw protocolError('Misplaced data chunk')
      this.#need = DATA_HEADER
      return
    }
    if (length > MAX_SMALL_PAYLOAD) throw protocolError('Chunk is too long')
    this.#restart()
    if (length === 0) this.#payload(Buffer.alloc(0))
    else {
      this.#small = Buffer.alloc(length)
      this.#smallFill = 0
    }
  }

  #data(): void {
    const length = this.#head.readUInt32BE(16) - 8
    this.#dataAt = this.#place(getU64(this.#head, NBD_CHUNK_BYTES), length)
    this.#dataLeft = length
    this.#restart()
  }

  #takeData(bytes: Buffer, at: number): number {
    const request = this.#request
    if (request?.buf === undefined) throw protocolError('Data without a READ')
    const take = Math.min(this.#dataLeft, bytes.length - at)
    copyBytes(request.buf, this.#dataAt, bytes.subarray(at, at + take))
    this.#advance(request, take)
    return at + take
  }

  #advance(request: AwaitedReply, bytes: number): void {
    this.#dataAt += bytes
    this.#dataLeft -= bytes
    request.filled += bytes
    if (this.#dataLeft === 0) this.#endChunk()
  }

  #takeSmall(bytes: Buffer, at: number, small: Buffer): number {
    const take = Math.min(small.length - this.#smallFill, bytes.length - at)
    bytes.copy(small, this.#smallFill, at, at + take)
    this.#smallFill += take
    if (this.#smallFill === small.length) {
      this.#small = undefined
      this.#payload(small)
    }
    return at + take
  }

  /** A chunk without data, complete. */
  #payload(data: Buffer): void {
    const request = this.#request
    if (request === undefined) throw protocolError('Chunk without a request')
    if ((this.#type & 0x8000) !== 0) this.#error(request, data)
    else if (this.#type === NBD_CHUNK.OFFSET_HOLE) this.#hole(request, data)
    else if (this.#type === NBD_CHUNK.BLOCK_STATUS) this.#status(request, data)
    else if (this.#type !== NBD_CHUNK.NONE || (this.#flags & NBD_CHUNK_DONE) === 0) {
      throw protocolError(`Unexpected chunk type ${this.#type}`)
    }
    this.#endChunk()
  }

  #error(request: AwaitedReply, data: Buffer): void {
    if (data.length < 6) throw protocolError('Error chunk is too short')
    const length = Math.min(data.readUInt16BE(4), data.length - 6)
    const number = data.readUInt32BE(0)
    request.error ??= remoteError(
      number === 0 ? NBD_ERROR.EINVAL : number,
      data.toString('utf8', 6, 6 + length),
    )
  }

  #hole(request: AwaitedReply, data: Buffer): void {
    if (data.length !== 12 || request.type !== NBD_CMD.READ) throw protocolError('Misplaced hole')
    const length = data.readUInt32BE(8)
    const at = this.#place(getU64(data, 0), length)
    request.buf?.fill(0, at, at + length)
    request.filled += length
  }

  #status(request: AwaitedReply, data: Buffer): void {
    if (data.length < 12 || data.length % 8 !== 4 || request.type !== NBD_CMD.BLOCK_STATUS) {
      throw protocolError('Misplaced block status')
    }
    if (data.readUInt32BE(0) !== this.#host.allocationContext) return
    const bytes = Math.min(data.readUInt32BE(4), request.length)
    if (bytes === 0) throw protocolError('Block status with an empty extent')
    request.extent ??= { bytes, bits: data.readUInt32BE(8) }
  }

  #find(): AwaitedReply {
    if (this.#head.readUInt32BE(8) !== 0) throw protocolError('Reply with an unknown cookie')
    this.#cookie = this.#head.readUInt32BE(12)
    const request = this.#host.awaited(this.#cookie)
    if (request === undefined) throw protocolError('Reply with an unknown cookie')
    this.#request = request
    return request
  }

  /** Where in the request's buffer a range goes; refuses one that is not inside. */
  #place(offset: number, length: number): number {
    const request = this.#request
    const at = request === undefined ? -1 : offset - request.offset
    if (request === undefined || at < 0 || at + length > request.length) {
      throw protocolError('Server sent data outside of the request')
    }
    return at
  }

  #restart(): void {
    this.#fill = 0
    this.#need = NBD_SIMPLE_REPLY_BYTES
  }

  #endChunk(): void {
    const request = this.#request
    if (request === undefined || (this.#flags & NBD_CHUNK_DONE) === 0) return
    this.#request = undefined
    const short = request.type === NBD_CMD.READ && request.filled < request.length
    if (short && request.error === undefined) throw protocolError('Server sent too little data')
    this.#host.finished(this.#cookie, request)
  }
}

function remoteError(number: number, text: string): BlockError {
  const code = errorCode(number)
  const said = text === '' ? undefined : new BlockError(code, `server reported: ${text}`)
  return new BlockError(code, codeWords(code), {}, said)
}
