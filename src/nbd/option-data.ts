/**
 * What options of the handshake carry: their names and their data, taken apart.
 *
 * Invariants:
 * - Lengths that do not fit together are a refusal, never a read beyond the data.
 */
import { NBD_MAX_STRING, NBD_OPT, NBD_REP } from './constants.ts'

/** Longest name that a refusal repeats. */
const SHOWN_NAME = 80

const OPTION_NAMES: Readonly<Record<number, string>> = {
  [NBD_OPT.EXPORT_NAME]: 'export name',
  [NBD_OPT.ABORT]: 'abort',
  [NBD_OPT.LIST]: 'list',
  [NBD_OPT.STARTTLS]: 'starttls',
  [NBD_OPT.INFO]: 'info',
  [NBD_OPT.GO]: 'go',
  [NBD_OPT.STRUCTURED_REPLY]: 'structured reply',
  [NBD_OPT.LIST_META_CONTEXT]: 'list meta context',
  [NBD_OPT.SET_META_CONTEXT]: 'set meta context',
}

/** An option's refusal: reply type and human text. */
export interface Refusal {
  /** Type of the reply. */
  readonly type: number
  /** Why, in words. */
  readonly text: string
}

/** What an option is called. */
export function optionName(option: number): string {
  return OPTION_NAMES[option] ?? '<unknown>'
}

/** A name that came from a client, short enough for a sentence. */
export function shortened(name: string): string {
  return name.length > SHOWN_NAME ? `${name.slice(0, SHOWN_NAME)}...` : name
}

function nameAt(data: Buffer, at: number, what: string): string | Refusal {
  const length = data.length >= at + 4 ? data.readUInt32BE(at) : -1
  if (length > NBD_MAX_STRING) {
    return { type: NBD_REP.ERR_INVALID, text: `Invalid name length: ${length}` }
  }
  if (length < 0 || at + 4 + length > data.length) {
    return { type: NBD_REP.ERR_INVALID, text: `Inconsistent lengths in option ${what}` }
  }
  return data.toString('utf8', at + 4, at + 4 + length)
}

/** An export's name and the kinds of information that INFO or GO ask for. */
export function parseInfo(data: Buffer, what: string): { name: string; infos: number[] } | Refusal {
  const name = nameAt(data, 0, what)
  if (typeof name !== 'string') return name
  const at = 4 + data.readUInt32BE(0)
  const inconsistent = { type: NBD_REP.ERR_INVALID, text: `Inconsistent lengths in option ${what}` }
  if (data.length < at + 2) return inconsistent
  const count = data.readUInt16BE(at)
  if (data.length < at + 2 + count * 2) return inconsistent
  if (data.length > at + 2 + count * 2) {
    return { type: NBD_REP.ERR_INVALID, text: `option '${what}' has unexpected length` }
  }
  const infos = Array.from({ length: count }, (_, i) => data.readUInt16BE(at + 2 + i * 2))
  return { name, infos }
}

/** An export's name and the queries of an option about contexts. */
export function parseMeta(
  data: Buffer,
  option: number,
): { name: string; queries: string[] } | Refusal {
  const what = OPTION_NAMES[option] ?? ''
  const name = nameAt(data, 0, what)
  if (typeof name !== 'string') return name
  const inconsistent = { type: NBD_REP.ERR_INVALID, text: `Inconsistent lengths in option ${what}` }
  let at = 4 + data.readUInt32BE(0)
  if (data.length < at + 4) return inconsistent
  const count = data.readUInt32BE(at)
  at += 4
  const queries: string[] = []
  for (let i = 0; i < count; i++) {
    const end = data.length >= at + 4 ? at + 4 + data.readUInt32BE(at) : Number.POSITIVE_INFINITY
    if (end > data.length) return inconsistent
    // A name that long is no context's, and yet the list is not empty.
    const long = end - at - 4 > NBD_MAX_STRING
    queries.push(long ? '' : data.toString('utf8', at + 4, end))
    at = end
  }
  return at === data.length ? { name, queries } : inconsistent
}
