/**
 * Directories of TLS credentials, made of the certificates in `test/support/tls`.
 *
 * Invariants:
 * - What is made lies in the directory that the caller gave.
 */
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const source = fileURLToPath(new URL('./tls/', import.meta.url))

/** The key of `alice` in directories of shared keys. */
export const ALICE_KEY = '5ca1ab1e'.repeat(8)

/** A directory with these files: name in it to name of the certificate, without `.pem`. */
export function tlsDirectory(at: string, files: Readonly<Record<string, string>>): string {
  mkdirSync(at, { recursive: true })
  for (const [name, from] of Object.entries(files)) {
    copyFileSync(join(source, `${from}.pem`), join(at, `${name}.pem`))
  }
  return at
}

/** What a server shows: certificates of `localhost`. */
export function serverDirectory(at: string, more: Readonly<Record<string, string>> = {}): string {
  const own = { 'server-cert': 'server', 'server-key': 'server-key' }
  return tlsDirectory(at, { 'ca-cert': 'ca', ...own, ...more })
}

/** What a client shows: certificates of `who`, `client` being alice. */
export function clientDirectory(at: string, who = 'client', ca = 'ca'): string {
  const own = { 'client-cert': who, 'client-key': `${who}-key` }
  return tlsDirectory(at, { 'ca-cert': ca, ...own })
}

/** Shared keys. */
export function pskDirectory(at: string, key: string = ALICE_KEY): string {
  mkdirSync(at, { recursive: true })
  writeFileSync(join(at, 'keys.psk'), `alice:${key}\nbob:${'ab'.repeat(32)}\n`)
  return at
}
