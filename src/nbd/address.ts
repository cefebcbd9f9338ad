/**
 * Socket addresses: how they are written, and the words for what goes wrong with them.
 *
 * Invariants:
 * - Nothing here opens a socket.
 */
import { asBlockError, BlockError, codeWords } from '../util/errors.ts'

/** A unix socket. */
export interface UnixAddress {
  readonly type: 'unix'
  /** Path of the socket; at most 107 bytes. */
  readonly path: string
}

/** A TCP socket. */
export interface InetAddress {
  readonly type: 'inet'
  /** Name or number of the host; empty means any when listening. */
  readonly host: string
  /** Port; a number or its decimal text. */
  readonly port: number | string
  /** Last port to try when listening. */
  readonly to?: number
}

/** Where an NBD server is. */
export type NbdAddress = UnixAddress | InetAddress

/** The longest path the host takes for a unix socket. */
export const MAX_SOCKET_PATH = 107

/** The port as a number. Errors: EINVAL when it is none. */
export function portOf(address: InetAddress): number {
  const text = String(address.port)
  const port = /^\d+$/.test(text) ? Number(text) : Number.NaN
  if (port >= 0 && port <= 65535) return port
  const words = `address resolution failed for ${address.host}:${text}`
  throw new BlockError('EINVAL', `${words}: Servname not supported for ai_socktype`)
}

/** How an address is shown: a path, or `host:port`. */
export function addressText(address: NbdAddress): string {
  if (address.type === 'unix') return address.path
  const host = address.host.includes(':') ? `[${address.host}]` : address.host
  return `${host}:${address.port}`
}

/** Refuses a path that does not fit into a socket address. */
export function checkSocketPath(path: string): void {
  if (Buffer.byteLength(path) > MAX_SOCKET_PATH) {
    throw new BlockError('EINVAL', `UNIX socket path '${path}' is too long`, { path })
  }
}

/** The error for a connection that could not be made. */
export function connectError(address: NbdAddress, thrown: unknown): BlockError {
  const path = addressText(address)
  if (isResolveError(thrown)) {
    const words = `address resolution failed for ${path}: Name or service not known`
    return new BlockError('EINVAL', words, { path }, thrown)
  }
  const { code } = asBlockError(thrown)
  return new BlockError(code, `Failed to connect to '${path}': ${words(thrown)}`, { path }, thrown)
}

/** The error for a socket that could not be listened on. */
export function listenError(address: NbdAddress, thrown: unknown): BlockError {
  const path = addressText(address)
  if (isResolveError(thrown)) {
    const text = `address resolution failed for ${path}: Name or service not known`
    return new BlockError('EINVAL', text, { path }, thrown)
  }
  const busy = hostCode(thrown) === 'EADDRINUSE'
  const code = busy ? 'EBUSY' : asBlockError(thrown).code
  const what =
    address.type === 'unix'
      ? `Failed to bind socket to ${path}`
      : 'Failed to find an available port'
  return new BlockError(code, `${what}: ${words(thrown)}`, { path }, thrown)
}

function hostCode(thrown: unknown): string {
  return typeof thrown === 'object' && thrown !== null && 'code' in thrown
    ? String(thrown.code)
    : ''
}

function isResolveError(thrown: unknown): boolean {
  return ['ENOTFOUND', 'EAI_AGAIN', 'EAI_NONAME'].includes(hostCode(thrown))
}

const WORDS: Readonly<Record<string, string>> = {
  EADDRINUSE: 'Address already in use',
  EADDRNOTAVAIL: 'Cannot assign requested address',
  ENETUNREACH: 'Network is unreachable',
  EHOSTUNREACH: 'No route to host',
  ENOTSOCK: 'Socket operation on non-socket',
  ENOTDIR: 'Not a directory',
}

function words(thrown: unknown): string {
  return WORDS[hostCode(thrown)] ?? codeWords(asBlockError(thrown).code)
}
