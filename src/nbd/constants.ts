/**
 * The numbers of the NBD protocol, as its document fixes them.
 *
 * Invariants:
 * - Values are those on the wire; all integers there are big-endian.
 * - Names are the document's, without their prefix.
 */

/** `NBDMAGIC`, the first eight bytes of a greeting. */
export const NBD_GREETING_MAGIC = 'NBDMAGIC'
/** `IHAVEOPT`: the second magic of a greeting and the first of every option. */
export const NBD_OPTION_MAGIC = 'IHAVEOPT'
/** First word (high, low) of every option reply. */
export const NBD_OPTION_REPLY_MAGIC: readonly [number, number] = [0x0003e889, 0x045565a9]
/** First word of a request. */
export const NBD_REQUEST_MAGIC = 0x25609513
/** First word of a simple reply. */
export const NBD_SIMPLE_REPLY_MAGIC = 0x67446698
/** First word of a structured reply chunk. */
export const NBD_CHUNK_MAGIC = 0x668e33ef

/** Bytes of a request header. */
export const NBD_REQUEST_BYTES = 28
/** Bytes of a simple reply header. */
export const NBD_SIMPLE_REPLY_BYTES = 16
/** Bytes of a chunk header. */
export const NBD_CHUNK_BYTES = 20
/** Bytes of the greeting: two magics and the handshake flags. */
export const NBD_GREETING_BYTES = 18
/** Bytes of an option header. */
export const NBD_OPTION_BYTES = 16
/** Bytes of an option reply header. */
export const NBD_OPTION_REPLY_BYTES = 20

/** Longest name, description or query string in bytes. */
export const NBD_MAX_STRING = 4096
/** Longest READ, WRITE or CACHE that is accepted; the document's default of 32 MiB. */
export const NBD_MAX_PAYLOAD: number = 32 << 20
/** Longest option data that is swallowed before the connection is dropped. */
export const NBD_MAX_OPTION_DATA: number = 32 << 20
/** TCP port registered for NBD. */
export const NBD_DEFAULT_PORT = 10809

/** Handshake flags, the same bits from server and client. */
export const NBD_HANDSHAKE = { FIXED_NEWSTYLE: 0x1, NO_ZEROES: 0x2 } as const

/** Options of the handshake. */
export const NBD_OPT = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const

/** Replies to options; errors have the top bit set. */
export const NBD_REP = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x80000001,
  ERR_POLICY: 0x80000002,
  ERR_INVALID: 0x80000003,
  ERR_PLATFORM: 0x80000004,
  ERR_TLS_REQD: 0x80000005,
  ERR_UNKNOWN: 0x80000006,
  ERR_SHUTDOWN: 0x80000007,
  ERR_BLOCK_SIZE_REQD: 0x80000008,
  ERR_TOO_BIG: 0x80000009,
  ERR_EXT_HEADER_REQD: 0x8000000a,
} as const

/** Kinds of information in INFO and GO. */
export const NBD_INFO = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const

/** Transmission flags of an export. */
export const NBD_FLAG = {
  HAS_FLAGS: 0x1,
  READ_ONLY: 0x2,
  SEND_FLUSH: 0x4,
  SEND_FUA: 0x8,
  ROTATIONAL: 0x10,
  SEND_TRIM: 0x20,
  SEND_WRITE_ZEROES: 0x40,
  SEND_DF: 0x80,
  CAN_MULTI_CONN: 0x100,
  SEND_RESIZE: 0x200,
  SEND_CACHE: 0x400,
  SEND_FAST_ZERO: 0x800,
} as const

/** Commands of the transmission phase. */
export const NBD_CMD = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const

/** Flags of a command. */
export const NBD_CMD_FLAG = {
  FUA: 0x1,
  NO_HOLE: 0x2,
  DF: 0x4,
  REQ_ONE: 0x8,
  FAST_ZERO: 0x10,
} as const

/** Flag of a chunk: the last one of its reply. */
export const NBD_CHUNK_DONE = 0x1

/** Types of chunks. */
export const NBD_CHUNK = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const

/** Bits of a `base:allocation` extent. */
export const NBD_STATE = { HOLE: 0x1, ZERO: 0x2 } as const

/** Error numbers on the wire. */
export const NBD_ERROR = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const
