/**
 * Credentials that are kept in a directory, in the layout that GnuTLS's users have.
 *
 * Invariants:
 * - Everything is read and checked at once: what is answered needs no file any more.
 * - A file that must be there and is not, or cannot be used, is named in the error.
 */
import { createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createSecureContext } from 'node:tls'
import { asBlockError, BlockError, codeWords } from '../util/errors.ts'
import { wallClockMs } from '../util/wall-clock.ts'
import type { PskCredentials, X509Credentials } from './tls.ts'

/** Which side of a connection credentials are for. */
export type TlsEndpoint = 'client' | 'server'

/** How certificates are read from a directory. */
export interface X509Files {
  /** Holds `ca-cert.pem`, `server-cert.pem` and `server-key.pem` or `client-…`, `ca-crl.pem`. */
  readonly dir: string
  /** Whose side. */
  readonly endpoint: TlsEndpoint
  /** See `X509Credentials`; default true. */
  readonly verifyPeer?: boolean
  /** Refuse certificates that no peer would take; default true. */
  readonly sanityCheck?: boolean
  /** What the key is encrypted with. */
  readonly passphrase?: string
}

/** Certificates of a directory. Errors: ENOENT, EACCES, EINVAL for what is no certificate or key. */
export function x509FromFiles(files: X509Files): X509Credentials {
  const { endpoint, passphrase } = files
  const at = (name: string): string => join(files.dir, name)
  const caPath = at('ca-cert.pem')
  const ca = readCredentials(caPath)
  const certPath = at(`${endpoint}-cert.pem`)
  const keyPath = at(`${endpoint}-key.pem`)
  const crl = readIfThere(at('ca-crl.pem'))
  const read = endpoint === 'server' ? readCredentials : readIfThere
  const cert = read(certPath)
  const key = read(keyPath)
  const authorities = certificatesOf(ca, () => `Unable to import CA certificate list ${caPath}`)
  if (cert !== undefined) {
    const words = `Unable to import ${endpoint} certificate ${certPath}`
    const chain = certificatesOf(cert, (why) => `${words}: ${why}`)
    if (files.sanityCheck !== false) checkSanity(chain, certPath, authorities, caPath)
    if (key !== undefined) checkKey(chain, key, passphrase, `'${certPath}' & key '${keyPath}'`)
  }
  if (crl !== undefined) checkCrl(crl, at('ca-crl.pem'))
  const own = cert === undefined || key === undefined ? {} : { cert, key }
  return {
    kind: 'x509',
    ca,
    ...own,
    ...(passphrase === undefined ? {} : { passphrase }),
    ...(crl === undefined ? {} : { crl }),
    verifyPeer: files.verifyPeer !== false,
  }
}

/** Keys of `keys.psk` in a directory, lines of `user:hex`. Errors: ENOENT, EACCES, EINVAL. */
export function pskFromFiles(dir: string, endpoint: TlsEndpoint, user?: string): PskCredentials {
  const path = join(dir, 'keys.psk')
  if (endpoint === 'server' && user !== undefined) {
    throw new BlockError('EINVAL', 'username should not be set when endpoint=server')
  }
  const keys = new Map<string, Uint8Array>()
  for (const line of readCredentials(path).split('\n')) {
    const found = /^(?<name>[^:#][^:]*):(?<hex>(?:[0-9a-fA-F]{2})+)\s*$/.exec(line)?.groups
    if (found?.name !== undefined) keys.set(found.name, Buffer.from(found.hex ?? '', 'hex'))
  }
  if (endpoint === 'server') return { kind: 'psk', keys }
  const name = user ?? 'qemu'
  if (!keys.has(name)) {
    throw new BlockError('EINVAL', `Username ${name} not found in PSK file ${path}`, { path })
  }
  return { kind: 'psk', keys, user: name }
}

function readIfThere(path: string): string | undefined {
  return existsSync(path) ? readCredentials(path) : undefined
}

function readCredentials(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    const { code } = asBlockError(error)
    const words = `Unable to access credentials ${path}: ${codeWords(code)}`
    throw new BlockError(code, words, { path }, error)
  }
}

const PEM_CERTIFICATE = /-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g

function certificatesOf(pem: string, words: (why: string) => string): X509Certificate[] {
  const blocks = pem.match(PEM_CERTIFICATE)
  if (blocks === null) throw new BlockError('EINVAL', words('Base64 unexpected header error.'))
  try {
    return blocks.map((block) => new X509Certificate(block))
  } catch (error) {
    throw new BlockError('EINVAL', words('Base64 decoding error.'), {}, error)
  }
}

function checkKey(
  [certificate]: readonly X509Certificate[],
  pem: string,
  passphrase: string | undefined,
  what: string,
): void {
  const refuse = (why: string, cause?: unknown): never => {
    throw new BlockError('EINVAL', `Cannot load certificate ${what}: ${why}`, {}, cause)
  }
  let key: KeyObject
  try {
    key = createPrivateKey({ key: pem, ...(passphrase === undefined ? {} : { passphrase }) })
  } catch (error) {
    const encrypted = pem.includes('ENCRYPTED')
    refuse(encrypted ? 'Decryption has failed.' : 'The requested data were not available.', error)
    return
  }
  if (certificate?.checkPrivateKey(key) !== true) {
    refuse('The certificate and the given key do not match.')
  }
}

// A certificate that every peer would refuse is better found when it is loaded.
function checkSanity(
  chain: readonly X509Certificate[],
  path: string,
  authorities: readonly X509Certificate[],
  caPath: string,
): void {
  for (const authority of authorities) {
    checkTime(authority, caPath)
    if (!authority.ca) {
      const words = `The certificate ${caPath} basic constraints do not show a CA`
      throw new BlockError('EINVAL', words, { path: caPath })
    }
  }
  for (const one of chain) checkTime(one, path)
  const known = [...authorities, ...chain.slice(1)]
  const issued = (one: X509Certificate): boolean =>
    known.some((other) => one.checkIssued(other) && one.verify(other.publicKey))
  const own = `Our own certificate ${path} failed validation against ${caPath}`
  if (!chain.every(issued)) {
    throw new BlockError('EINVAL', `${own}: The certificate hasn't got a known issuer`, { path })
  }
}

function checkTime(certificate: X509Certificate, path: string): void {
  const from = Date.parse(certificate.validFrom)
  const to = Date.parse(certificate.validTo)
  const now = wallClockMs()
  if (now > to) throw new BlockError('EINVAL', `The certificate ${path} has expired`, { path })
  if (now < from) {
    throw new BlockError('EINVAL', `The certificate ${path} is not yet active`, { path })
  }
}

function checkCrl(crl: string, path: string): void {
  try {
    createSecureContext({ crl })
  } catch (error) {
    throw new BlockError('EINVAL', `Unable to load CRL ${path}`, { path }, error)
  }
}
