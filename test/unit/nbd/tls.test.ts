import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { NbdClient, type NbdClientOptions } from '../../../src/nbd/client.ts'
import { optionRequest } from '../../../src/nbd/codec.ts'
import { NbdServer } from '../../../src/nbd/server.ts'
import type { TlsClientOptions, TlsServerOptions } from '../../../src/nbd/tls.ts'
import { pskFromFiles, x509FromFiles } from '../../../src/nbd/tls-files.ts'
import { clientDirectory, pskDirectory, serverDirectory } from '../../support/tls-files.ts'
import { RawClient } from './raw-client.ts'
import { type Served, serve, until } from './support.ts'

let dir: string
let served: Served[] = []

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'blockstep-tls-'))
})
afterEach(async () => {
  for (const one of served) await one.close()
  served = []
  rmSync(dir, { recursive: true })
})

async function start(tls?: TlsServerOptions): Promise<Served> {
  const one = await serve(tls === undefined ? {} : { tls })
  served.push(one)
  return one
}

function serverTls(more: Partial<TlsServerOptions> & { verifyPeer?: boolean } = {}) {
  const { verifyPeer = true, ...rest } = more
  const from = serverDirectory(join(dir, 'server'))
  return { credentials: x509FromFiles({ dir: from, endpoint: 'server', verifyPeer }), ...rest }
}

/** What a client shows, for `localhost`. */
function clientTls(who = 'client', ca = 'ca', hostname = 'localhost'): TlsClientOptions {
  const from = clientDirectory(join(dir, `of-${who}-${ca}`), who, ca)
  return {
    credentials: x509FromFiles({ dir: from, endpoint: 'client', sanityCheck: false }),
    hostname,
  }
}

function open(to: Served, more: Partial<NbdClientOptions> = {}): Promise<NbdClient> {
  return NbdClient.connect({ ctx: to.ctx, address: to.address, exportName: 'a', ...more })
}

async function works(client: NbdClient): Promise<void> {
  const sent = Buffer.alloc(300_000, 0x5a)
  await client.write(1000, sent)
  const back = Buffer.alloc(sent.length)
  await client.read(1000, back)
  expect(back.equals(sent)).toBe(true)
  await client.flush()
}

test('nbd / tls / both sides with certificates: data arrive, and the goodbye too', async () => {
  const to = await start(serverTls())
  const client = await open(to, { tls: clientTls() })
  expect(client.remote.structured).toBe(true)
  await works(client)
  await Promise.all(
    Array.from({ length: 100 }, (_, i) => client.write(i * 4096, Buffer.alloc(4096, i))),
  )
  expect(to.disk.bytes[99 * 4096]).toBe(99)
  await client.disconnect()
  await until(() => to.server.connections === 0, 'the end of the connection')
  const names = await NbdClient.list({ ctx: to.ctx, address: to.address, tls: clientTls() })
  expect(names.map(({ name }) => name)).toEqual(['a'])
})

test('nbd / tls / over tcp the host that was connected to is the name, as number too', async () => {
  const ctx = new AioContext()
  const to = await start()
  const server = new NbdServer({ ctx, tls: serverTls() })
  server.addExport({ name: 'a', backend: to.disk, readOnly: false })
  await server.listen({ type: 'inet', host: '127.0.0.1', port: 0 })
  const bound = server.address
  if (bound?.type !== 'inet') throw new Error('no address')
  const { credentials } = clientTls()
  const { port } = bound
  for (const host of ['127.0.0.1', 'localhost']) {
    const address = { type: 'inet' as const, host, port }
    const client = await NbdClient.connect({ ctx, address, exportName: 'a', tls: { credentials } })
    await works(client)
    await client.disconnect()
  }
  await server.close()
})

test('nbd / tls / shared keys, and nobody at all', async () => {
  const from = pskDirectory(join(dir, 'keys'))
  const to = await start({ credentials: pskFromFiles(from, 'server') })
  const alice = await open(to, { tls: { credentials: pskFromFiles(from, 'client', 'alice') } })
  await works(alice)
  await alice.disconnect()
  const wrong = pskFromFiles(pskDirectory(join(dir, 'wrong'), '00'.repeat(32)), 'client', 'alice')
  await expect(open(to, { tls: { credentials: wrong } })).rejects.toMatchObject({ code: 'EPROTO' })
  const keys = new Map([['carol', Buffer.alloc(32)]])
  const carol = open(to, { tls: { credentials: { kind: 'psk', keys, user: 'carol' } } })
  await expect(carol).rejects.toMatchObject({ code: 'EPROTO' })
  const none = open(to, { tls: { credentials: { kind: 'psk', keys } } })
  await expect(none).rejects.toMatchObject({ message: 'No key of user qemu' })

  const anonymous = { credentials: { kind: 'anon' as const } }
  const open2 = await start(anonymous)
  const client = await open(open2, { tls: anonymous })
  await works(client)
  await client.disconnect()
  await until(() => to.server.connections + open2.server.connections === 0, 'the ends')
})

test('nbd / tls / who may not come in gets one clear error, and the server lives on', async () => {
  const to = await start(serverTls())
  const refused = async (tls?: TlsClientOptions): Promise<string> => {
    const client = open(to, tls === undefined ? {} : { tls })
    return client.then(
      () => 'accepted',
      (error: unknown) => (error instanceof Error ? error.message : String(error)),
    )
  }
  expect(await refused()).toBe('TLS negotiation required before option 7 (go)')
  expect(await refused(clientTls('client', 'other-ca'))).toBe(
    "The certificate hasn't got a known issuer",
  )
  expect(await refused(clientTls('client', 'ca', 'elsewhere'))).toBe(
    'Certificate does not match the hostname elsewhere',
  )
  const unnamed = { credentials: clientTls().credentials }
  expect(await refused(unnamed)).toBe('No hostname for certificate validation')
  expect(await refused(clientTls('other-client'))).toMatch(/dropped the connection/)
  const { credentials } = clientTls()
  if (credentials.kind !== 'x509') throw new Error('not certificates')
  const bare = { kind: 'x509' as const, ca: credentials.ca }
  expect(await refused({ credentials: bare, hostname: 'localhost' })).toMatch(
    /dropped the connection/,
  )
  const keys = pskFromFiles(pskDirectory(join(dir, 'keys')), 'client', 'alice')
  expect(await refused({ credentials: keys })).toMatch(/^TLS handshake failed: /)
  await until(() => to.server.connections === 0, 'the ends of all of them')
  await works(await open(to, { tls: clientTls() }))

  const plain = await start()
  await expect(open(plain, { tls: clientTls() })).rejects.toMatchObject({
    message: 'Denied by server for option 5 (starttls)',
  })
})

test('nbd / tls / credentials that cannot be used are refused where they are given', async () => {
  const { credentials } = serverTls()
  if (credentials.kind !== 'x509') throw new Error('not certificates')
  const ctx = new AioContext()
  const make = (more: object): NbdServer =>
    new NbdServer({ ctx, tls: { credentials: { ...credentials, ...more } } })
  expect(() => make({ key: 'no key' })).toThrow(/^TLS credentials cannot be used: /)
  expect(() => make({ cert: undefined })).toThrow('A TLS server needs a certificate and its key')
  const to = await start(serverTls())
  const broken = { credentials: { kind: 'x509' as const, ca: credentials.ca, cert: 'x', key: 'y' } }
  await expect(open(to, { tls: { ...broken, hostname: 'localhost' } })).rejects.toMatchObject({
    code: 'EINVAL',
  })
  await until(() => to.server.connections === 0, 'the end of the connection')
})

test('nbd / tls / withdrawn and outdated certificates are no proof', async () => {
  const from = serverDirectory(join(dir, 'strict'), { 'ca-crl': 'crl' })
  const to = await start({ credentials: x509FromFiles({ dir: from, endpoint: 'server' }) })
  await works(await open(to, { tls: clientTls() }))
  await expect(open(to, { tls: clientTls('revoked') })).rejects.toMatchObject({
    code: 'ECONNRESET',
  })
  const old = { 'server-cert': 'expired', 'server-key': 'expired-key' }
  const outdated = { dir: serverDirectory(join(dir, 'old'), old), endpoint: 'server' as const }
  expect(() => x509FromFiles(outdated)).toThrow(/server-cert.pem has expired/)
  const late = await start({ credentials: x509FromFiles({ ...outdated, sanityCheck: false }) })
  await expect(open(late, { tls: clientTls() })).rejects.toMatchObject({
    message: 'The certificate has expired',
  })
})

test('nbd / tls / rules see the name of the certificate or the user', async () => {
  const seen: string[] = []
  let welcome = true
  const authorize = (identity: string): boolean => {
    seen.push(identity)
    return welcome
  }
  const to = await start(serverTls({ authorize }))
  await works(await open(to, { tls: clientTls() }))
  welcome = false
  await expect(open(to, { tls: clientTls() })).rejects.toMatchObject({ code: 'ECONNRESET' })
  const from = pskDirectory(join(dir, 'keys'))
  const keys = await start({ credentials: pskFromFiles(from, 'server'), authorize })
  const alice = { credentials: pskFromFiles(from, 'client', 'alice') }
  await expect(open(keys, { tls: alice })).rejects.toMatchObject({ code: 'ECONNRESET' })
  const lax = await start({ ...serverTls({ verifyPeer: false }), authorize })
  await expect(open(lax, { tls: clientTls() })).rejects.toMatchObject({ code: 'ECONNRESET' })
  expect(seen).toEqual(['O=blockstep,CN=alice', 'O=blockstep,CN=alice', 'alice', ''])
})

test('nbd / tls / a server that does not ask takes anybody, a client that does not ask any server', async () => {
  const to = await start(serverTls({ verifyPeer: false }))
  const { credentials } = clientTls('other-client', 'other-ca')
  if (credentials.kind !== 'x509') throw new Error('not certificates')
  const client = await open(to, { tls: { credentials: { ...credentials, verifyPeer: false } } })
  await works(client)
  await client.disconnect()
})

test('nbd / tls / in the clear only the beginning of TLS is accepted, and nothing of it counts after', async () => {
  const to = await start(serverTls())
  const raw = await RawClient.connect(to.address)
  for (const option of [2, 3, 6, 7, 8, 9, 10, 99]) {
    const [reply] = await raw.option(option)
    expect(reply?.type).toBe(0x80000005)
    expect(reply?.data.toString()).toBe(`Option 0x${option.toString(16)} not permitted before TLS`)
  }
  const [withData] = await raw.option(5, Buffer.from('x'))
  expect(withData?.data.toString()).toBe("option 'starttls' has unexpected length")
  raw.socket.destroy()
  const named = await RawClient.connect(to.address)
  named.socket.write(optionRequest(1, Buffer.from('a')))
  await named.closed()
  await until(() => to.server.connections === 0, 'the end of the connection')
})

test('nbd / tls / garbage and silence in the middle of the upgrade cost the client its connection', async () => {
  const to = await serve({ tls: serverTls(), handshakeMs: 1500 })
  served.push(to)
  const raw = await RawClient.connect(to.address)
  raw.socket.write(optionRequest(5))
  raw.socket.write('IHAVEOPT this is no client hello at all')
  await raw.closed()
  const silent = await RawClient.connect(to.address)
  expect((await silent.option(5))[0]?.type).toBe(1)
  await silent.closed()
  await until(() => to.server.connections === 0, 'the ends of both')
})

test('nbd / tls / a hard removal, the end of the server and yank cut a secured connection', async () => {
  const to = await start(serverTls())
  const first = await open(to, { tls: clientTls() })
  to.disk.slow = true
  const reading = first.read(0, Buffer.alloc(4096))
  first.yank()
  await expect(reading).rejects.toMatchObject({ code: 'EIO' })
  await until(() => to.server.connections === 0, 'the end of the first')
  const second = await open(to, { tls: clientTls() })
  to.server.removeExport('a', 'hard')
  await until(() => !second.connected, 'the end of the second')
  await second.disconnect()
})

test('nbd / tls / a connection that was lost comes back secured', async () => {
  const to = await start(serverTls())
  const client = await open(to, { tls: clientTls(), reconnectDelayMs: 60_000 })
  await works(client)
  await to.server.close()
  const writing = client.write(0, Buffer.alloc(4096, 7))
  const again = new NbdServer({ ctx: to.ctx, tls: serverTls() })
  again.addExport({ name: 'a', backend: to.disk, readOnly: false })
  await again.listen(to.address)
  await writing
  expect(to.disk.bytes[0]).toBe(7)
  await client.disconnect()
  await again.close()
})

test.each(['with its acknowledgement', 'at the first message'])(
  'nbd / tls / a server that dies %s is an error, not a wait',
  async (when) => {
    const path = join(dir, 'dies')
    const fake = createServer((socket) => {
      socket.write('NBDMAGICIHAVEOPT\0\x03')
      socket.on('data', (bytes: Buffer) => {
        if (bytes.toString('latin1').includes('IHAVEOPT')) {
          socket.write(Buffer.from('0003e889045565a9000000050000000100000000', 'hex'))
          if (when === 'with its acknowledgement') socket.destroy()
        } else if (bytes[0] === 22) socket.destroy()
      })
      socket.on('error', () => undefined)
    })
    await new Promise<void>((resolve) => fake.listen(path, resolve))
    const address = { type: 'unix' as const, path }
    const client = NbdClient.connect({ ctx: new AioContext(), address, tls: clientTls() })
    await expect(client).rejects.toMatchObject({ code: 'EPROTO' })
    await new Promise((resolve) => fake.close(resolve))
  },
)
