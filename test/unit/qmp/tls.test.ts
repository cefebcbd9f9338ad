import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { JsonObject } from '../../../src/qmp/json.ts'
import {
  ALICE_KEY,
  clientDirectory,
  pskDirectory,
  serverDirectory,
  tlsDirectory,
} from '../../support/tls-files.ts'
import { memory, Rig } from './rig.ts'

let rig: Rig
let dir: string

beforeEach(() => {
  rig = new Rig()
  dir = mkdtempSync(join(tmpdir(), 'blockstep-tls-'))
})
afterEach(async () => {
  await rig.close()
  rmSync(dir, { recursive: true })
})

const object = (type: string, id: string, more: JsonObject): JsonObject => ({
  'qom-type': type,
  id,
  ...more,
})

const x509 = (id: string, dir: string, endpoint: string, more: JsonObject = {}): JsonObject =>
  object('tls-creds-x509', id, { dir, endpoint, ...more })

const server = (): JsonObject => x509('server', serverDirectory(join(dir, 'server')), 'server')
const client = (who = 'client', ca = 'ca'): JsonObject =>
  x509(who, clientDirectory(join(dir, `of-${who}`), who, ca), 'client')

async function serve(more: JsonObject): Promise<number> {
  await rig.run('nbd-server-start', {
    addr: { type: 'inet', data: { host: '127.0.0.1', port: '0' } },
    ...more,
  })
  await rig.run('blockdev-add', memory('disk'))
  await rig.run('nbd-server-add', { device: 'disk', writable: true })
  const address = rig.exports.server?.address
  return address?.type === 'inet' ? Number(address.port) : 0
}

function node(port: number, more: JsonObject): JsonObject {
  const server = { type: 'inet', host: '127.0.0.1', port: String(port) }
  return { driver: 'nbd', 'node-name': 'far', server, export: 'disk', ...more }
}

test('scenario / nbd / N37 plain, right, wrong authority and TLS where there is none', async () => {
  await rig.run('object-add', server())
  await rig.run('object-add', client())
  await rig.run('object-add', client('other-client', 'other-ca'))
  const bare = tlsDirectory(join(dir, 'bare'), { 'ca-cert': 'ca' })
  await rig.run('object-add', x509('bare', bare, 'client'))
  const port = await serve({ 'tls-creds': 'server' })
  const refused = (more: JsonObject): Promise<string> =>
    rig.refused('blockdev-add', node(port, more))
  expect(await refused({})).toBe('TLS negotiation required before option 7 (go)')
  expect(await refused({ 'tls-creds': 'other-client' })).toBe(
    "The certificate hasn't got a known issuer",
  )
  expect(await refused({ 'tls-creds': 'bare' })).toMatch(/^Failed to read option reply: /)
  expect(await refused({ 'tls-creds': 'client', 'tls-hostname': 'elsewhere' })).toBe(
    'Certificate does not match the hostname elsewhere',
  )
  expect(await refused({ 'tls-creds': 'server' })).toBe(
    'Expected TLS credentials for a client endpoint',
  )
  expect(await refused({ 'tls-creds': 'nope' })).toBe("No TLS credentials with id 'nope'")
  expect(rig.graph.find('far')).toBeUndefined()
  await rig.run('blockdev-add', node(port, { 'tls-creds': 'client' }))
  // Who uses credentials keeps them.
  await rig.run('object-del', { id: 'client' })
  expect(rig.graph.lookup(undefined, 'far').length()).toBe(65536)
  await rig.run('yank', { instances: [{ type: 'block-node', 'node-name': 'far' }] })
  await rig.run('blockdev-del', { 'node-name': 'far' })
  await rig.run('nbd-server-stop')
  await rig.run('object-add', client())
  await rig.run('blockdev-del', { 'node-name': 'disk' })
  const plain = await serve({})
  const late = await rig.refused('blockdev-add', node(plain, { 'tls-creds': 'client' }))
  expect(late).toBe('Denied by server for option 5 (starttls)')
})

test('scenario / nbd / N37 rules say who may come in, and may be replaced meanwhile', async () => {
  await rig.run('object-add', server())
  await rig.run('object-add', client())
  const port = await serve({ 'tls-creds': 'server', 'tls-authz': 'rules' })
  const far = node(port, { 'tls-creds': 'client' })
  const enters = async (): Promise<boolean> => {
    if ((await rig.refused('blockdev-add', far)) !== 'accepted') return false
    await rig.run('blockdev-del', { 'node-name': 'far' })
    return true
  }
  const withRules = async (type: string, more: JsonObject): Promise<boolean> => {
    await rig.run('object-add', object(type, 'rules', more))
    const result = await enters()
    await rig.run('object-del', { id: 'rules' })
    return result
  }
  const rule = (match: string, policy: string, format: string) => ({ match, policy, format })
  expect(await enters()).toBe(false)
  expect(await withRules('authz-simple', { identity: 'O=blockstep,CN=alice' })).toBe(true)
  expect(await withRules('authz-simple', { identity: 'CN=alice' })).toBe(false)
  expect(await withRules('authz-list', {})).toBe(false)
  expect(await withRules('authz-list', { policy: 'allow' })).toBe(true)
  const glob = [rule('*,CN=al?ce', 'allow', 'glob'), rule('*', 'deny', 'glob')]
  expect(await withRules('authz-list', { policy: 'deny', rules: glob })).toBe(true)
  expect(await withRules('authz-list', { policy: 'allow', rules: [...glob].reverse() })).toBe(false)
  const exact = [rule('O=blockstep,CN=alice', 'deny', 'exact')]
  expect(await withRules('authz-list', { policy: 'allow', rules: exact })).toBe(false)
  const dots = [rule('O.blockstep*', 'deny', 'glob')]
  expect(await withRules('authz-list', { policy: 'allow', rules: dots })).toBe(true)
  expect(await withRules('secret', { data: 'x' })).toBe(false)
})

describe('qmp / objects', () => {
  test('credentials that cannot be used are refused with the file and the reason', async () => {
    const add = (options: JsonObject): Promise<string> => rig.refused('object-add', options)
    const none = join(dir, 'none')
    expect(await add(x509('a', none, 'server'))).toBe(
      `Unable to access credentials ${none}/ca-cert.pem: No such file or directory`,
    )
    expect(await add(object('tls-creds-x509', 'a', {}))).toBe("Missing 'dir' property value")
    const good = serverDirectory(join(dir, 'good'))
    expect(await add(x509('a', good, 'server', { loaded: true }))).toBe(
      "Property 'tls-creds-x509.loaded' is not writable",
    )
    const other = serverDirectory(join(dir, 'other'), { 'ca-cert': 'other-ca' })
    expect(await add(x509('a', other, 'server'))).toBe(
      `Our own certificate ${other}/server-cert.pem failed validation against ` +
        `${other}/ca-cert.pem: The certificate hasn't got a known issuer`,
    )
    expect(await add(x509('insane', other, 'server', { 'sanity-check': false }))).toBe('accepted')
    const mixed = serverDirectory(join(dir, 'mixed'), { 'server-key': 'client-key' })
    expect(await add(x509('a', mixed, 'server'))).toBe(
      `Cannot load certificate '${mixed}/server-cert.pem' & key '${mixed}/server-key.pem': ` +
        'The certificate and the given key do not match.',
    )
  })

  test('a key under a password needs the secret that opens it', async () => {
    const locked = serverDirectory(join(dir, 'locked'), { 'server-key': 'server-key-encrypted' })
    const add = (id: string, passwordid?: string): Promise<string> =>
      rig.refused('object-add', x509(id, locked, 'server', passwordid ? { passwordid } : {}))
    await rig.run('object-add', object('secret', 'right', { data: 'aHVzaA==', format: 'base64' }))
    await rig.run('object-add', object('secret', 'wrong', { data: 'loud' }))
    expect(await add('a')).toMatch(/Decryption has failed\.$/)
    expect(await add('a', 'wrong')).toMatch(/Decryption has failed\.$/)
    expect(await add('a', 'nope')).toBe("No secret with id 'nope'")
    expect(await add('a', 'right')).toBe('accepted')
    expect(await add('b', 'a')).toBe("Object with id 'a' is not a secret")
    const got = await rig.run('qom-get', { path: '/objects/a', property: 'passwordid' })
    expect(got).toBe('right')
  })

  test('shared keys are looked up by user', async () => {
    const keys = pskDirectory(join(dir, 'keys'), ALICE_KEY)
    const psk = (id: string, more: JsonObject): Promise<string> =>
      rig.refused('object-add', object('tls-creds-psk', id, { dir: keys, ...more }))
    expect(await psk('a', {})).toBe(`Username qemu not found in PSK file ${keys}/keys.psk`)
    expect(await psk('a', { endpoint: 'server', username: 'alice' })).toBe(
      'username should not be set when endpoint=server',
    )
    expect(await psk('server', { endpoint: 'server' })).toBe('accepted')
    expect(await psk('alice', { username: 'alice' })).toBe('accepted')
    const port = await serve({ 'tls-creds': 'server' })
    await rig.run('blockdev-add', node(port, { 'tls-creds': 'alice' }))
    await rig.run('blockdev-del', { 'node-name': 'far' })
  })

  test('a running server is said first, then the credentials', async () => {
    await rig.run('object-add', client())
    const start = (id: string): Promise<string> =>
      rig.refused('nbd-server-start', {
        addr: { type: 'unix', data: { path: join(dir, 'sock') } },
        'tls-creds': id,
      })
    expect(await start('nope')).toBe("No TLS credentials with id 'nope'")
    expect(await start('client')).toBe('Expected TLS credentials for a server endpoint')
    await serve({})
    expect(await start('nope')).toBe('NBD server already running')
  })
})
