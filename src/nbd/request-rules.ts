/**
 * Which requests are refused before the disk hears of them, and with which words.
 *
 * Invariants:
 * - A request that passes names a range inside the export and flags its command knows.
 * - The error numbers are the document's: EPERM for a read-only export, ENOSPC for writing past the
 *   end, EINVAL for everything else.
 */
import type { RequestHeader } from './codec.ts'
import { NBD_CMD, NBD_CMD_FLAG, NBD_ERROR, NBD_MAX_PAYLOAD } from './constants.ts'
import type { NbdSession } from './handshake.ts'

/** Why a request is refused. */
export interface RequestRefusal {
  /** Number for the wire. */
  readonly error: number
  /** Sentence for an error chunk. */
  readonly text: string
}

/** What a refused request is counted as. */
type CountedOperation = 'read' | 'write' | 'flush' | 'unmap'

interface CommandRule {
  readonly name: string
  readonly flags: number
  readonly writes: boolean
  /** Bound by the longest payload. */
  readonly bounded: boolean
  /** Has a range that must lie inside the export. */
  readonly ranged: boolean
}

const { FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO } = NBD_CMD_FLAG

const RULES: ReadonlyMap<number, CommandRule> = new Map<number, CommandRule>([
  [NBD_CMD.READ, rule('read', FUA | DF, false, true, true)],
  [NBD_CMD.WRITE, rule('write', FUA, true, true, true)],
  [NBD_CMD.FLUSH, rule('flush', FUA, false, false, false)],
  [NBD_CMD.TRIM, rule('trim', FUA, true, false, true)],
  [NBD_CMD.CACHE, rule('cache', FUA, false, true, true)],
  [NBD_CMD.WRITE_ZEROES, rule('write zeroes', FUA | NO_HOLE | FAST_ZERO, true, false, true)],
  [NBD_CMD.BLOCK_STATUS, rule('block status', FUA | REQ_ONE, false, false, true)],
])

function rule(
  name: string,
  flags: number,
  writes: boolean,
  bounded: boolean,
  ranged: boolean,
): CommandRule {
  return { name, flags, writes, bounded, ranged }
}

const COUNTED: ReadonlyMap<number, CountedOperation> = new Map<number, CountedOperation>([
  [NBD_CMD.READ, 'read'],
  [NBD_CMD.WRITE, 'write'],
  [NBD_CMD.WRITE_ZEROES, 'write'],
  [NBD_CMD.FLUSH, 'flush'],
  [NBD_CMD.TRIM, 'unmap'],
])

/** What a request is counted as, by its type; undefined for those that move and change nothing. */
export function countedAs(type: number): CountedOperation | undefined {
  return COUNTED.get(type)
}

/** The refusal of a request, or undefined when it may run. */
export function checkRequest(
  session: NbdSession,
  request: RequestHeader,
): RequestRefusal | undefined {
  const known = RULES.get(request.type)
  if (known === undefined) return invalid(`invalid request type (${request.type}) received`)
  const { offset, length, flags } = request
  if (known.writes && session.export.readOnly) {
    return { error: NBD_ERROR.EPERM, text: 'Export is read-only' }
  }
  if (known.bounded && length > NBD_MAX_PAYLOAD) {
    return invalid(`len (${length} ) is larger than max len (${NBD_MAX_PAYLOAD})`)
  }
  if (known.ranged && offset + length > session.size) {
    const text = `operation past EOF; From: ${offset}, Len: ${length}, Size: ${session.size}`
    const full = request.type === NBD_CMD.WRITE || request.type === NBD_CMD.WRITE_ZEROES
    return { error: full ? NBD_ERROR.ENOSPC : NBD_ERROR.EINVAL, text }
  }
  const valid = session.structured ? known.flags : known.flags & ~DF
  if ((flags & ~valid) !== 0) {
    return invalid(`unsupported flags for command ${known.name} (got 0x${flags.toString(16)})`)
  }
  return request.type === NBD_CMD.BLOCK_STATUS ? checkStatus(session, length) : undefined
}

function checkStatus(session: NbdSession, length: number): RequestRefusal | undefined {
  if (length === 0) return invalid('need non-zero length')
  if (session.contexts.length === 0) return invalid('CMD_BLOCK_STATUS not negotiated')
  return undefined
}

function invalid(text: string): RequestRefusal {
  return { error: NBD_ERROR.EINVAL, text }
}
