/**
 * TLS over a connection that began in the clear: the upgrade of a socket, on either side.
 *
 * Invariants:
 * - The caller has read and sent everything that belongs to the clear part; what it read beyond goes
 *   to the TLS layer and is never taken for a message.
 * - A connection of which the other side is not who it should be is closed before anything is
 *   exchanged on it.
 * - Every session is negotiated in full: nothing is resumed, so every certificate is looked at.
 */
import { isIP, type Socket } from 'node:net'
import {
  connect,
  createSecureContext,
  createServer,
  type PSKCallbackNegotation,
  type TLSSocket,
} from 'node:tls'
import { assert, BlockError } from '../util/errors.ts'
import { certificateWords, distinguishedName } from './tls-names.ts'

/** Certificates. */
export interface X509Credentials {
  /** Which kind of credentials. */
  readonly kind: 'x509'
  /** Certificates of the authorities that the other side's certificate must come from, PEM. */
  readonly ca: string
  /** Our own certificate, PEM, with those between it and its authority; a server needs one. */
  readonly cert?: string
  /** The key of `cert`, PEM. */
  readonly key?: string
  /** What `key` is encrypted with. */
  readonly passphrase?: string
  /** Certificates that were withdrawn, PEM. */
  readonly crl?: string
  /**
   * Turn away whoever shows no certificate of the authorities, or of another host; default true.
   */
  readonly verifyPeer?: boolean
}

/** Keys that both sides know. */
export interface PskCredentials {
  /** Which kind of credentials. */
  readonly kind: 'psk'
  /** The key of each user. */
  readonly keys: ReadonlyMap<string, Uint8Array>
  /** Who a client is; default `qemu`. */
  readonly user?: string
}

/** Encryption without proof of anybody's identity: no help against who sits in between. */
export interface AnonymousCredentials {
  /** Which kind of credentials. */
  readonly kind: 'anon'
}

/** What one side proves itself by, and the other side is checked against. */
export type TlsCredentials = X509Credentials | PskCredentials | AnonymousCredentials

/** TLS of a server: no client is served without it. */
export interface TlsServerOptions {
  /** What the server shows, and what it wants to see. */
  readonly credentials: TlsCredentials
  /**
   * Whether this client may come in, by the distinguished name of its certificate
   * (`O=Example,CN=alice`) or its user name, empty where neither was asked for; default everybody
   * whose proof is good.
   */
  readonly authorize?: (identity: string) => boolean
}

/** TLS of a client: it talks to no server without it. */
export interface TlsClientOptions {
  /** What the client shows, and what it wants to see. */
  readonly credentials: TlsCredentials
  /** The name that the server's certificate must be for; default the host that it connects to. */
  readonly hostname?: string
}

/** What both OpenSSL and GnuTLS have for shared keys. */
const PSK_CIPHERS = [
  ...['TLS_AES_128_GCM_SHA256', 'TLS_CHACHA20_POLY1305_SHA256'],
  ...['ECDHE-PSK-CHACHA20-POLY1305', 'ECDHE-PSK-AES128-CBC-SHA256'],
  ...['DHE-PSK-AES256-GCM-SHA384', 'DHE-PSK-AES128-GCM-SHA256'],
  ...['PSK-AES256-GCM-SHA384', 'PSK-AES128-GCM-SHA256'],
].join(':')
/** TLS 1.3 has none without certificates, and the library counts these as its weakest. */
const ANONYMOUS = {
  ciphers: 'ADH-AES256-GCM-SHA384:ADH-AES128-GCM-SHA256@SECLEVEL=0',
  maxVersion: 'TLSv1.2',
} as const

/**
 * Becomes the server of a TLS session on `socket`; `rest` was read from it too far. Errors: EPROTO
 * when the session cannot be made, EACCES for a client that may not come in.
 */
export async function acceptTls(
  socket: Socket,
  rest: Buffer,
  options: TlsServerOptions,
): Promise<TLSSocket> {
  if (rest.length > 0) socket.unshift(rest)
  // Half of a connection is no use to a handshake, and would leave it waiting.
  const { allowHalfOpen } = socket
  socket.allowHalfOpen = false
  const secured = await handshake(socket, options.credentials)
  secured.socket.allowHalfOpen = allowHalfOpen
  const refusal = refusalOf(secured, options)
  if (refusal === undefined) return secured.socket
  secured.socket.destroySoon()
  throw new BlockError('EACCES', refusal)
}

/** Refuses credentials that no session can be made with. Errors: EINVAL. */
export function checkCredentials(credentials: TlsCredentials, side: 'client' | 'server'): void {
  if (credentials.kind === 'psk' && side === 'client') {
    const user = credentials.user ?? 'qemu'
    if (!credentials.keys.has(user)) throw new BlockError('EINVAL', `No key of user ${user}`)
  }
  if (credentials.kind !== 'x509') return
  const { cert, key } = credentials
  if (side === 'server' && (cert === undefined || key === undefined)) {
    throw new BlockError('EINVAL', 'A TLS server needs a certificate and its key')
  }
  try {
    createSecureContext(secretsOf(credentials))
  } catch (error) {
    const words = `TLS credentials cannot be used: ${reasonOf(error)}`
    throw new BlockError('EINVAL', words, {}, error)
  }
}

interface Secured {
  readonly socket: TLSSocket
  /** The user of a shared key. */
  readonly user: string | undefined
}

function handshake(socket: Socket, credentials: TlsCredentials): Promise<Secured> {
  let user: string | undefined
  const server = createServer(
    serverOptions(credentials, (name) => {
      user = name
    }),
  )
  return new Promise((resolve, reject) => {
    const fail = (error?: unknown): void =>
      reject(new BlockError('EPROTO', `TLS handshake failed: ${reasonOf(error)}`, {}, error))
    if (socket.destroyed) fail()
    server.once('tlsClientError', fail)
    socket.once('close', fail)
    server.once('secureConnection', (secured) => {
      secured.on('error', () => secured.destroy())
      resolve({ socket: secured, user })
    })
    server.emit('connection', socket)
  })
}

function serverOptions(credentials: TlsCredentials, sawUser: (name: string) => void): object {
  switch (credentials.kind) {
    case 'x509': {
      const requestCert = credentials.verifyPeer !== false
      // Whether the certificate is good is asked afterwards: here an answer would not be told.
      return { ...secretsOf(credentials), requestCert, rejectUnauthorized: false }
    }
    case 'psk':
      return {
        ciphers: PSK_CIPHERS,
        dhparam: 'auto',
        pskCallback: (_socket: unknown, name: string): Uint8Array | null => {
          sawUser(name)
          return credentials.keys.get(name) ?? null
        },
      }
    case 'anon':
      return { ...ANONYMOUS, dhparam: 'auto' }
  }
}

/** Why a client may not come in. */
function refusalOf(secured: Secured, options: TlsServerOptions): string | undefined {
  const { credentials, authorize } = options
  let identity = secured.user ?? ''
  if (credentials.kind === 'x509' && credentials.verifyPeer !== false) {
    const certificate = secured.socket.getPeerX509Certificate()
    if (certificate === undefined) return 'Verify failed: No certificate was found'
    if (!secured.socket.authorized) {
      return certificateWords(String(secured.socket.authorizationError))
    }
    identity = distinguishedName(certificate)
  }
  if (authorize === undefined || authorize(identity)) return undefined
  return `TLS authorization of ${identity === '' ? 'somebody unknown' : identity} is denied`
}

/**
 * Becomes the client of a TLS session on `socket`; `rest` was read from it too far, `host` is where
 * it leads, undefined for a socket without a host. Errors: EPROTO when the session cannot be made,
 * EACCES when the server is not who it should be.
 */
export async function connectTls(
  socket: Socket,
  rest: Buffer,
  options: TlsClientOptions,
  host: string | undefined,
): Promise<TLSSocket> {
  const { credentials } = options
  const name = options.hostname ?? host
  if (credentials.kind === 'x509' && credentials.verifyPeer !== false && name === undefined) {
    throw new BlockError('EACCES', 'No hostname for certificate validation')
  }
  checkCredentials(credentials, 'client')
  if (rest.length > 0) socket.unshift(rest)
  const named = name === undefined ? {} : { host: name }
  const servername = name === undefined || isIP(name) !== 0 ? {} : { servername: name }
  const secured = connect({ socket, ...named, ...servername, ...clientOptions(credentials) })
  secured.on('error', () => secured.destroy())
  try {
    await agreed(socket, secured)
  } catch (error) {
    throw connectFailure(error, credentials, name)
  }
  return secured
}

function agreed(below: Socket, secured: TLSSocket): Promise<void> {
  return new Promise((resolve, reject) => {
    const closed = (): void => reject(new Error('Connection closed by peer'))
    // A socket that is gone already tells nobody.
    if (below.destroyed) closed()
    below.once('close', closed)
    secured.once('close', closed)
    secured.once('error', reject)
    secured.once('secureConnect', () => {
      below.off('close', closed)
      secured.off('close', closed)
      secured.off('error', reject)
      resolve()
    })
  })
}

function clientOptions(credentials: TlsCredentials): object {
  switch (credentials.kind) {
    case 'x509':
      return { ...secretsOf(credentials), rejectUnauthorized: credentials.verifyPeer !== false }
    case 'psk': {
      const user = credentials.user ?? 'qemu'
      const psk = credentials.keys.get(user)
      assert(psk !== undefined, 'credentials are checked before they are used')
      const answer = (): PSKCallbackNegotation => ({ psk, identity: user })
      // The key is the proof: no name is compared, and no certificate would do instead.
      const never = { ca: [], checkServerIdentity: () => undefined }
      return { ...never, ciphers: PSK_CIPHERS, pskCallback: answer }
    }
    case 'anon':
      return { ...ANONYMOUS, rejectUnauthorized: false }
  }
}

function secretsOf(credentials: X509Credentials): object {
  const { ca, cert, key, passphrase, crl } = credentials
  return {
    ca,
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
    ...(passphrase === undefined ? {} : { passphrase }),
    ...(crl === undefined ? {} : { crl }),
  }
}

function connectFailure(
  error: unknown,
  credentials: TlsCredentials,
  name: string | undefined,
): BlockError {
  const code = codeOf(error)
  const certificate = certificateWords(code)
  if (certificate !== '' && credentials.kind === 'psk') {
    const words = 'TLS handshake failed: The server has no keys to share'
    return new BlockError('EPROTO', words, {}, error)
  }
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    const words = `Certificate does not match the hostname ${name}`
    return new BlockError('EACCES', words, {}, error)
  }
  if (certificate !== '') return new BlockError('EACCES', certificate, {}, error)
  return new BlockError('EPROTO', `TLS handshake failed: ${reasonOf(error)}`, {}, error)
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : ''
}

/** What the TLS library says went wrong: the part of its message that is for people. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return 'The connection was closed'
  if ('reason' in error && typeof error.reason === 'string') return error.reason
  return error.message
}
