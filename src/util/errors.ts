/**
 * The whole error vocabulary of blockstep.
 *
 * Invariants:
 * - Everything thrown across a room's wall is a `BlockError`; its `code` is stable, its words are not.
 * - Errors cross threads only as the plain record that `toRecord` makes.
 * - A broken `assert` is a mistake of ours, never of a user, and is not caught.
 */

/** Errno-like codes, plus two for image formats and one for each class a monitor tells apart. */
export type ErrorCode =
  | 'EIO'
  | 'EINVAL'
  | 'ENOSPC'
  | 'ENOTSUP'
  | 'EPERM'
  | 'EACCES'
  | 'EBUSY'
  | 'ENOENT'
  | 'EEXIST'
  | 'ECANCELED'
  | 'ENOMEDIUM'
  | 'ENOMEM'
  | 'ESHUTDOWN'
  | 'EPROTO'
  | 'ECONNREFUSED'
  | 'ECONNRESET'
  | 'ETIMEDOUT'
  | 'EAGAIN'
  | 'EOVERFLOW'
  | 'CORRUPT_IMAGE'
  | 'UNSUPPORTED_FEATURE'
  /** A node or device that a command names does not exist (QMP class DeviceNotFound). */
  | 'DEVICE_NOT_FOUND'
  /** A block job that a command names is not there (QMP class DeviceNotActive). */
  | 'DEVICE_NOT_ACTIVE'

/** Where an error happened, as far as it is known. */
export interface ErrorContext {
  /** Name of the node. */
  readonly node?: string
  /** First byte of the failed range. */
  readonly offset?: number
  /** Length of the failed range in bytes. */
  readonly bytes?: number
  /** The operation: `read`, `write`, `flush`, `checkpoint`, `blockdev-add` … */
  readonly op?: string
  /** A path or address that the error is about. */
  readonly path?: string
}

/** The plain form in which an error crosses a thread. */
export interface ErrorRecord {
  readonly code: ErrorCode
  readonly message: string
  readonly context: ErrorContext
}

/** The one error class: match on `code`, show `message`, log `context`. */
export class BlockError extends Error {
  /** Stable; what callers match on. */
  readonly code: ErrorCode
  /** Where it happened. */
  readonly context: ErrorContext

  constructor(code: ErrorCode, message: string, context: ErrorContext = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.name = 'BlockError'
    this.code = code
    this.context = context
  }
}

const ERRNO_WORDS: Partial<Record<ErrorCode, string>> = {
  EIO: 'Input/output error',
  EINVAL: 'Invalid argument',
  ENOSPC: 'No space left on device',
  ENOTSUP: 'Operation not supported',
  EPERM: 'Operation not permitted',
  EACCES: 'Permission denied',
  EBUSY: 'Device or resource busy',
  ENOENT: 'No such file or directory',
  EEXIST: 'File exists',
  ECANCELED: 'Operation canceled',
  ENOMEDIUM: 'No medium found',
  ENOMEM: 'Cannot allocate memory',
  ESHUTDOWN: 'Cannot send after transport endpoint shutdown',
  ECONNREFUSED: 'Connection refused',
  ECONNRESET: 'Connection reset by peer',
  ETIMEDOUT: 'Connection timed out',
  EAGAIN: 'Resource temporarily unavailable',
  EOVERFLOW: 'Value too large for defined data type',
}

/** The words strerror has for a code; the code itself where there are none. */
export function codeWords(code: ErrorCode): string {
  return ERRNO_WORDS[code] ?? code
}

/** An error that says only what its errno says. */
export function ioError(code: ErrorCode, context: ErrorContext = {}): BlockError {
  return new BlockError(code, codeWords(code), context)
}

/** Linux errno numbers that options such as blkdebug's `errno` use. */
const ERRNO_NUMBERS: Readonly<Record<number, ErrorCode>> = {
  1: 'EPERM',
  2: 'ENOENT',
  5: 'EIO',
  11: 'EAGAIN',
  12: 'ENOMEM',
  13: 'EACCES',
  16: 'EBUSY',
  17: 'EEXIST',
  22: 'EINVAL',
  28: 'ENOSPC',
  30: 'EPERM',
  75: 'EOVERFLOW',
  95: 'ENOTSUP',
  104: 'ECONNRESET',
  108: 'ESHUTDOWN',
  110: 'ETIMEDOUT',
  111: 'ECONNREFUSED',
  122: 'ENOSPC',
  123: 'ENOMEDIUM',
  125: 'ECANCELED',
}

/** The code of a Linux errno number; EIO for one we have no name for. */
export function codeOfErrno(errno: number): ErrorCode {
  return ERRNO_NUMBERS[Math.abs(errno)] ?? 'EIO'
}

const HOST_CODES: Readonly<Record<string, ErrorCode>> = {
  EROFS: 'EPERM',
  EDQUOT: 'ENOSPC',
  EFBIG: 'ENOSPC',
  ENOTSUP: 'ENOTSUP',
  EOPNOTSUPP: 'ENOTSUP',
  EPIPE: 'ECONNRESET',
}

/** Turns whatever was thrown into a `BlockError`; host errors keep their code and become the cause. */
export function asBlockError(thrown: unknown, context: ErrorContext = {}): BlockError {
  if (thrown instanceof BlockError) return thrown
  const code = hostCode(thrown)
  if (code !== undefined) return new BlockError(code, codeWords(code), context, thrown)
  const message = thrown instanceof Error ? thrown.message : String(thrown)
  return new BlockError('EIO', message, context, thrown)
}

function hostCode(thrown: unknown): ErrorCode | undefined {
  if (typeof thrown !== 'object' || thrown === null || !('code' in thrown)) return undefined
  const code = String(thrown.code)
  if (code in HOST_CODES) return HOST_CODES[code]
  return code in ERRNO_WORDS ? (code as ErrorCode) : undefined
}

/** The record that crosses a thread. */
export function toRecord(thrown: unknown): ErrorRecord {
  const error = asBlockError(thrown)
  return { code: error.code, message: error.message, context: error.context }
}

/** The error that `toRecord` described on the other side. */
export function fromRecord(record: ErrorRecord): BlockError {
  return new BlockError(record.code, record.message, record.context)
}

/** Stops on a mistake of ours, with a sentence that says which. */
export function assert(condition: unknown, sentence: string): asserts condition {
  if (!condition) throw new Error(`assertion failed: ${sentence}`)
}
