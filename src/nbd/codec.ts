/**
 * Bytes of the NBD protocol to records and back, and the one place where errors become numbers.
 *
 * Invariants:
 * - A cookie is two opaque 32-bit words; it never becomes one number.
 * - A 64-bit offset that a double cannot hold comes out as `Infinity`, never rounded, so that every
 *   range check refuses it.
 * - Encoders write at a place the caller gives and allocate nothing; the option encoders, which run
 *   a few times a connection, return a new buffer.
 */
import { BlockError, type ErrorCode } from '../util/errors.ts'
import {
  NBD_CHUNK_MAGIC,
  NBD_ERROR,
  NBD_GREETING_BYTES,
  NBD_GREETING_MAGIC,
  NBD_OPTION_BYTES,
  NBD_OPTION_MAGIC,
  NBD_OPTION_REPLY_BYTES,
  NBD_OPTION_REPLY_MAGIC,
  NBD_REQUEST_MAGIC,
  NBD_SIMPLE_REPLY_MAGIC,
} from './constants.ts'

const TWO_32 = 0x1_0000_0000
const MAX_HIGH_WORD = 0x1f_ffff

/** A 64-bit unsigned integer; `Infinity` when it is above 2^53-1. */
export function getU64(buf: Buffer, at: number): number {
  const high = buf.readUInt32BE(at)
  if (high > MAX_HIGH_WORD) return Number.POSITIVE_INFINITY
  return high * TWO_32 + buf.readUInt32BE(at + 4)
}

/** Writes a number below 2^53 as 64 bits. */
export function putU64(buf: Buffer, at: number, value: number): void {
  buf.writeUInt32BE(Math.floor(value / TWO_32), at)
  buf.writeUInt32BE(value % TWO_32, at + 4)
}

/** Fields of a request; filled in place by `getRequest`. */
export interface RequestHeader {
  magic: number
  flags: number
  type: number
  /** High and low word of the cookie. */
  cookieHigh: number
  cookieLow: number
  /** Bytes; `Infinity` above 2^53-1. */
  offset: number
  /** Bytes. */
  length: number
}

/** A header with every field 0. */
export function emptyRequest(): RequestHeader {
  return { magic: 0, flags: 0, type: 0, cookieHigh: 0, cookieLow: 0, offset: 0, length: 0 }
}

/** Reads the 28 bytes of a request into `into`. */
export function getRequest(buf: Buffer, at: number, into: RequestHeader): void {
  into.magic = buf.readUInt32BE(at)
  into.flags = buf.readUInt16BE(at + 4)
  into.type = buf.readUInt16BE(at + 6)
  into.cookieHigh = buf.readUInt32BE(at + 8)
  into.cookieLow = buf.readUInt32BE(at + 12)
  into.offset = getU64(buf, at + 16)
  into.length = buf.readUInt32BE(at + 24)
}

/** Writes the 28 bytes of a request; the high cookie word is 0. */
export function putRequest(
  buf: Buffer,
  at: number,
  type: number,
  flags: number,
  cookie: number,
  offset: number,
  length: number,
): void {
  buf.writeUInt32BE(NBD_REQUEST_MAGIC, at)
  buf.writeUInt16BE(flags, at + 4)
  buf.writeUInt16BE(type, at + 6)
  buf.writeUInt32BE(0, at + 8)
  buf.writeUInt32BE(cookie, at + 12)
  putU64(buf, at + 16, offset)
  buf.writeUInt32BE(length, at + 24)
}

/** Writes the 16 bytes of a simple reply. */
export function putSimpleReply(
  buf: Buffer,
  at: number,
  error: number,
  cookieHigh: number,
  cookieLow: number,
): void {
  buf.writeUInt32BE(NBD_SIMPLE_REPLY_MAGIC, at)
  buf.writeUInt32BE(error, at + 4)
  buf.writeUInt32BE(cookieHigh, at + 8)
  buf.writeUInt32BE(cookieLow, at + 12)
}

/** Writes the 20 bytes before a chunk's payload of `length` bytes. */
export function putChunk(
  buf: Buffer,
  at: number,
  flags: number,
  type: number,
  cookieHigh: number,
  cookieLow: number,
  length: number,
): void {
  buf.writeUInt32BE(NBD_CHUNK_MAGIC, at)
  buf.writeUInt16BE(flags, at + 4)
  buf.writeUInt16BE(type, at + 6)
  buf.writeUInt32BE(cookieHigh, at + 8)
  buf.writeUInt32BE(cookieLow, at + 12)
  buf.writeUInt32BE(length, at + 16)
}

/** The 18 bytes with which a server begins. */
export function greeting(handshakeFlags: number): Buffer {
  const buf = Buffer.alloc(NBD_GREETING_BYTES)
  buf.write(NBD_GREETING_MAGIC + NBD_OPTION_MAGIC, 'latin1')
  buf.writeUInt16BE(handshakeFlags, 16)
  return buf
}

/** One option with its data, as a client sends it. */
export function optionRequest(option: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const buf = Buffer.alloc(NBD_OPTION_BYTES + data.length)
  buf.write(NBD_OPTION_MAGIC, 'latin1')
  buf.writeUInt32BE(option, 8)
  buf.writeUInt32BE(data.length, 12)
  data.copy(buf, NBD_OPTION_BYTES)
  return buf
}

/** One reply to an option; text is the human part of an error. */
export function optionReply(option: number, type: number, data: Buffer | string = ''): Buffer {
  const bytes = typeof data === 'string' ? Buffer.from(data) : data
  const buf = Buffer.alloc(NBD_OPTION_REPLY_BYTES + bytes.length)
  buf.writeUInt32BE(NBD_OPTION_REPLY_MAGIC[0], 0)
  buf.writeUInt32BE(NBD_OPTION_REPLY_MAGIC[1], 4)
  buf.writeUInt32BE(option, 8)
  buf.writeUInt32BE(type, 12)
  buf.writeUInt32BE(bytes.length, 16)
  bytes.copy(buf, NBD_OPTION_REPLY_BYTES)
  return buf
}

/** A string with its 32-bit length before it. */
export function lengthPrefixed(text: string): Buffer {
  const bytes = Buffer.from(text)
  const buf = Buffer.alloc(4 + bytes.length)
  buf.writeUInt32BE(bytes.length, 0)
  bytes.copy(buf, 4)
  return buf
}

/** Data of INFO and GO: the export and which information is wanted. */
export function infoData(name: string, infos: readonly number[]): Buffer {
  const tail = Buffer.alloc(2 + infos.length * 2)
  tail.writeUInt16BE(infos.length, 0)
  infos.forEach((info, i) => {
    tail.writeUInt16BE(info, 2 + i * 2)
  })
  return Buffer.concat([lengthPrefixed(name), tail])
}

/** Data of LIST_META_CONTEXT and SET_META_CONTEXT. */
export function metaData(name: string, queries: readonly string[]): Buffer {
  const count = Buffer.alloc(4)
  count.writeUInt32BE(queries.length, 0)
  return Buffer.concat([lengthPrefixed(name), count, ...queries.map(lengthPrefixed)])
}

const NUMBER_OF_CODE: Partial<Record<ErrorCode, number>> = {
  EPERM: NBD_ERROR.EPERM,
  EIO: NBD_ERROR.EIO,
  ENOMEM: NBD_ERROR.ENOMEM,
  ENOSPC: NBD_ERROR.ENOSPC,
  EOVERFLOW: NBD_ERROR.EOVERFLOW,
  ENOTSUP: NBD_ERROR.ENOTSUP,
  ESHUTDOWN: NBD_ERROR.ESHUTDOWN,
  ECANCELED: NBD_ERROR.EIO,
  ECONNREFUSED: NBD_ERROR.EIO,
  ECONNRESET: NBD_ERROR.EIO,
  CORRUPT_IMAGE: NBD_ERROR.EIO,
}

/** The wire's number for an error code; EINVAL for those the protocol has no word for. */
export function errorNumber(code: ErrorCode): number {
  return NUMBER_OF_CODE[code] ?? NBD_ERROR.EINVAL
}

const CODE_OF_NUMBER: Readonly<Record<number, ErrorCode>> = {
  [NBD_ERROR.EPERM]: 'EPERM',
  [NBD_ERROR.EIO]: 'EIO',
  [NBD_ERROR.ENOMEM]: 'ENOMEM',
  [NBD_ERROR.ENOSPC]: 'ENOSPC',
  [NBD_ERROR.EOVERFLOW]: 'EOVERFLOW',
  [NBD_ERROR.ENOTSUP]: 'ENOTSUP',
  [NBD_ERROR.ESHUTDOWN]: 'ESHUTDOWN',
}

/** The code of a number a server sent; EINVAL for one that the protocol does not know. */
export function errorCode(number: number): ErrorCode {
  return CODE_OF_NUMBER[number] ?? 'EINVAL'
}

/** A peer that breaks the protocol. */
export function protocolError(message: string): BlockError {
  return new BlockError('EPROTO', message)
}
