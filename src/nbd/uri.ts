/**
 * NBD addresses as users type them: `nbd://host:port/name`, `nbd+unix:///name?socket=/path`, and the
 * older `nbd:host:port:exportname=name` and `nbd:unix:/path:exportname=name`.
 *
 * Invariants:
 * - `parseNbdUri(nbdUri(address, name))` gives the same address and name.
 */
import { BlockError } from '../util/errors.ts'
import { addressText, type NbdAddress } from './address.ts'
import { NBD_DEFAULT_PORT } from './constants.ts'

/** A server and one of its exports. */
export interface NbdTarget {
  readonly address: NbdAddress
  /** Name of the export; empty = the default one. */
  readonly exportName: string
}

/** The URI of an export. */
export function nbdUri(address: NbdAddress, exportName: string): string {
  const name = exportName.split('/').map(encodeURIComponent).join('/')
  if (address.type === 'inet')
    return `nbd://${addressText(address)}${name === '' ? '' : `/${name}`}`
  const path = address.path.split('/').map(encodeURIComponent).join('/')
  return `nbd+unix:///${name}?socket=${path}`
}

/** What a URI or an older string says. Errors: EINVAL when it is neither. */
export function parseNbdUri(text: string): NbdTarget {
  if (/^nbd(\+unix|\+tcp)?:\/\//.test(text)) return parseUri(text)
  if (text.startsWith('nbd:')) return parseLegacy(text)
  throw invalid(text)
}

function parseUri(text: string): NbdTarget {
  let url: URL
  try {
    url = new URL(text)
  } catch (error) {
    throw invalid(text, error)
  }
  const exportName = decode(text, url.pathname.replace(/^\//, ''))
  if (url.protocol === 'nbd+unix:') {
    const path = url.searchParams.get('socket')
    if (path === null || path === '') throw invalid(text)
    return { address: { type: 'unix', path }, exportName }
  }
  const host = decode(text, url.hostname).replace(/^\[|\]$/g, '')
  if (host === '') throw invalid(text)
  const port = url.port === '' ? NBD_DEFAULT_PORT : Number(url.port)
  return { address: { type: 'inet', host, port }, exportName }
}

function parseLegacy(text: string): NbdTarget {
  const mark = text.indexOf(':exportname=')
  const exportName = mark < 0 ? '' : text.slice(mark + ':exportname='.length)
  const where = text.slice('nbd:'.length, mark < 0 ? undefined : mark)
  if (where.startsWith('unix:')) {
    const path = where.slice('unix:'.length)
    if (path === '') throw invalid(text)
    return { address: { type: 'unix', path }, exportName }
  }
  const found = /^(?<host>\[[^\]]+\]|[^:]+):(?<port>\d+)$/.exec(where)?.groups
  if (found?.host === undefined) throw invalid(text)
  const host = found.host.replace(/^\[|\]$/g, '')
  return { address: { type: 'inet', host, port: Number(found.port) }, exportName }
}

function decode(text: string, part: string): string {
  try {
    return decodeURIComponent(part)
  } catch (error) {
    throw invalid(text, error)
  }
}

function invalid(text: string, cause?: unknown): BlockError {
  return new BlockError('EINVAL', `'${text}' is not an NBD address`, {}, cause)
}
