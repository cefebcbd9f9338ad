import type { ChildProcess } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect } from 'vitest'
import { AioContext } from '../../src/aio/aio-context.ts'
import { NbdClient } from '../../src/nbd/client.ts'
import { NbdServer } from '../../src/nbd/server.ts'
import type { TlsClientOptions, TlsServerOptions } from '../../src/nbd/tls.ts'
import { pskFromFiles, x509FromFiles } from '../../src/nbd/tls-files.ts'
import {
  clientDirectory,
  pskDirectory,
  serverDirectory,
  tlsDirectory,
} from '../support/tls-files.ts'
import { FakeDisk } from '../unit/nbd/fake-disk.ts'
import { must, type Ran, run, serving, withTools } from './nbd-peers.ts'

const SIZE = 4 << 20

let dir: string
let closing: (() => Promise<void>)[] = []

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'blockstep-tls-'))
})
afterEach(async () => {
  for (const close of closing) await close()
  closing = []
  rmSync(dir, { recursive: true })
})

/** Our server on a port and on a unix socket, with one disk of which the second MiB is 0x11. */
async function ours(
  tls: TlsServerOptions,
): Promise<{ port: number; path: string; disk: FakeDisk }> {
  const ctx = new AioContext()
  const disk = new FakeDisk(SIZE)
  disk.bytes.fill(0x11, 1 << 20, 2 << 20)
  const path = join(dir, 'sock')
  let port = 0
  for (const where of [
    { type: 'inet', host: '127.0.0.1', port: 0 } as const,
    { type: 'unix', path } as const,
  ]) {
    const server = new NbdServer({ ctx, tls })
    server.addExport({ name: 'a', backend: disk, readOnly: false })
    await server.listen(where)
    closing.push(() => server.close())
    if (server.address?.type === 'inet') port = Number(server.address.port)
  }
  return { port, path, disk }
}

const certificates = (more: Partial<TlsServerOptions> = {}): TlsServerOptions => {
  const from = serverDirectory(join(dir, 'server'))
  return { credentials: x509FromFiles({ dir: from, endpoint: 'server' }), ...more }
}

/** A directory as libnbd's users have it, which is that of a client. */
const alice = (): string => clientDirectory(join(dir, 'alice'))

withTools(['nbdinfo', 'nbdcopy'], 'nbd / tls / interop / libnbd with certificates', async () => {
  const { port, path, disk } = await ours(certificates())
  const uri = `nbds://localhost:${port}/a?tls-certificates=${alice()}`
  expect((await must('nbdinfo', ['--size', uri])).trim()).toBe(String(SIZE))
  const info = JSON.parse(await must('nbdinfo', ['--json', uri]))
  expect(info.TLS).toBe(true)
  expect(await must('nbdinfo', ['--map', uri])).toMatch(/1048576 +1048576 +0/)
  writeFileSync(join(dir, 'flat'), Buffer.alloc(SIZE, 0x77))
  await must('nbdcopy', ['--flush', join(dir, 'flat'), uri])
  expect(disk.bytes.every((byte) => byte === 0x77)).toBe(true)
  const over = `nbds+unix:///a?socket=${path}&tls-certificates=${alice()}&tls-verify-peer=false`
  expect((await must('nbdinfo', ['--size', over])).trim()).toBe(String(SIZE))

  const plain = await run('nbdinfo', ['--size', `nbd://localhost:${port}/a`])
  expect(plain.code).not.toBe(0)
  const wrong = clientDirectory(join(dir, 'wrong'), 'other-client', 'other-ca')
  const stranger = await run('nbdinfo', [`nbds://localhost:${port}/a?tls-certificates=${wrong}`])
  expect(stranger.code).not.toBe(0)
  const bare = tlsDirectory(join(dir, 'bare'), { 'ca-cert': 'ca' })
  const nobody = await run('nbdinfo', [`nbds://localhost:${port}/a?tls-certificates=${bare}`])
  expect(nobody.code).not.toBe(0)
  expect((await must('nbdinfo', ['--size', uri])).trim()).toBe(String(SIZE))
})

withTools(['nbdinfo', 'nbdcopy'], 'nbd / tls / interop / libnbd with shared keys', async () => {
  const keys = pskDirectory(join(dir, 'keys'))
  const { port, disk } = await ours({ credentials: pskFromFiles(keys, 'server') })
  const uri = (user: string, file: string): string =>
    `nbds://${user}@localhost:${port}/a?tls-psk-file=${file}`
  const file = join(keys, 'keys.psk')
  expect((await must('nbdinfo', ['--size', uri('alice', file)])).trim()).toBe(String(SIZE))
  await must('nbdcopy', [uri('bob', file), join(dir, 'copy')])
  expect(readFileSync(join(dir, 'copy')).equals(disk.bytes)).toBe(true)
  const other = join(pskDirectory(join(dir, 'other'), '00'.repeat(32)), 'keys.psk')
  expect((await run('nbdinfo', ['--size', uri('alice', other)])).code).not.toBe(0)
  expect((await must('nbdinfo', ['--size', uri('alice', file)])).trim()).toBe(String(SIZE))
})

function qemuIo(object: string, image: string, ...commands: string[]): Promise<Ran> {
  const list = commands.flatMap((command) => ['-c', command])
  return run('qemu-io', ['--object', object, ...list, '--image-opts', image])
}

withTools(['qemu-io', 'qemu-img'], 'nbd / tls / interop / QEMU tools with every kind', async () => {
  let denied = ''
  const authorize = (who: string): boolean => who !== denied
  const { port, path } = await ours(certificates({ authorize }))
  const object = `tls-creds-x509,id=t,dir=${alice()},endpoint=client`
  const inet = `driver=nbd,host=127.0.0.1,port=${port},export=a,tls-creds=t`
  const unix = `driver=nbd,path=${path},export=a,tls-creds=t`
  const good = await qemuIo(object, inet, 'read -P 0x11 1M 1M', 'write -P 0x22 0 3M', 'flush')
  expect(good).toMatchObject({ code: 0, err: '' })
  expect(good.out).not.toContain('failed')
  const named = await qemuIo(object, `${unix},tls-hostname=localhost`, 'read -P 0x22 0 3M')
  expect(named).toMatchObject({ code: 0, err: '' })
  const misnamed = await qemuIo(object, `${unix},tls-hostname=elsewhere`, 'read 0 512')
  expect(misnamed.err).toMatch(/does not match the hostname elsewhere/)
  const plain = await run('qemu-img', ['info', `nbd:127.0.0.1:${port}:exportname=a`])
  expect(plain.err).toMatch(/TLS negotiation required before option/)
  const wrong = clientDirectory(join(dir, 'wrong'), 'other-client', 'other-ca')
  const strange = `tls-creds-x509,id=t,dir=${wrong},endpoint=client`
  expect((await qemuIo(strange, inet, 'read 0 512')).err).toMatch(/known issuer/)
  denied = 'O=blockstep,CN=alice'
  expect((await qemuIo(object, inet, 'read 0 512')).code).not.toBe(0)
  denied = ''
  const info = ['info', '--object', object, '--image-opts', inet]
  expect(await must('qemu-img', info)).toMatch(/4 MiB/)
})

withTools(['qemu-io'], 'nbd / tls / interop / QEMU tools with keys and with nothing', async () => {
  const keys = pskDirectory(join(dir, 'keys'))
  const shared = await ours({ credentials: pskFromFiles(keys, 'server') })
  const image = (path: string): string => `driver=nbd,path=${path},export=a,tls-creds=t`
  const psk = `tls-creds-psk,id=t,dir=${keys},endpoint=client,username=alice`
  const good = await qemuIo(psk, image(shared.path), 'read -P 0x11 1M 1M', 'write -P 2 0 1M')
  expect(good).toMatchObject({ code: 0, err: '' })
  await closing.pop()?.()
  const open = await ours({ credentials: { kind: 'anon' } })
  const anon = 'tls-creds-anon,id=t,endpoint=client'
  const nobody = await qemuIo(anon, image(open.path), 'read -P 0x11 1M 1M')
  expect(nobody).toMatchObject({ code: 0, err: '' })
})

/** Data go out and come back, at a server on that unix socket. */
async function exchange(path: string, tls: TlsClientOptions): Promise<void> {
  const ctx = new AioContext()
  const client = await NbdClient.connect({ ctx, address: { type: 'unix', path }, tls })
  const sent = Buffer.alloc(1 << 20, 0x3c)
  await client.write(512, sent)
  await client.flush()
  const back = Buffer.alloc(sent.length)
  await client.read(512, back)
  expect(back.equals(sent)).toBe(true)
  await client.disconnect()
}

function clientTls(more: Partial<TlsClientOptions> = {}): TlsClientOptions {
  const credentials = x509FromFiles({ dir: alice(), endpoint: 'client' })
  return { credentials, hostname: 'localhost', ...more }
}

/** Starts a foreign server; gone after the test. */
async function theirs(tool: string, args: string[], uri: string): Promise<void> {
  const child: ChildProcess = await serving(tool, args, uri)
  closing.push(async () => {
    const ended = new Promise((resolve) => child.once('exit', resolve))
    if (child.exitCode === null && child.kill()) await ended
  })
}

/** A server's directory as servers built on GnuTLS want it. */
const theirDirectory = (): string =>
  serverDirectory(join(dir, 'server'), { 'dh-params': 'dh-params' })

/** A foreign server that knows its clients by certificate, on `path`. */
const byCertificate = (path: string): string =>
  `nbds+unix:///?socket=${path}&tls-certificates=${alice()}&tls-verify-peer=false`

const byKey = (path: string, user: string, keys: string): string =>
  `nbds+unix://${user}@/?socket=${path}&tls-psk-file=${join(keys, 'keys.psk')}`

withTools(['qemu-nbd', 'nbdinfo'], 'nbd / tls / interop / our client at qemu-nbd', async () => {
  const image = join(dir, 'image')
  writeFileSync(image, Buffer.alloc(SIZE))
  const start = (name: string, creds: string, uri: (path: string) => string): Promise<string> => {
    const path = join(dir, name)
    const options = ['-t', '-e', '0', '-f', 'raw', '-k', path, '--tls-creds', 't']
    return theirs('qemu-nbd', [...options, '--object', creds, image], uri(path)).then(() => path)
  }
  const x509 = `tls-creds-x509,id=t,dir=${theirDirectory()},endpoint=server`
  const certified = await start('x509', x509, byCertificate)
  await exchange(certified, clientTls())
  await exchange(certified, clientTls({ hostname: 'disks.example' }))
  const other = clientDirectory(join(dir, 'other'), 'other-client', 'other-ca')
  const stranger = x509FromFiles({ dir: other, endpoint: 'client' })
  const refused = exchange(certified, { credentials: stranger, hostname: 'localhost' })
  await expect(refused).rejects.toMatchObject({ code: 'EACCES' })
  await expect(exchange(certified, clientTls({ hostname: 'elsewhere' }))).rejects.toMatchObject({
    code: 'EACCES',
  })

  const keys = tlsDirectory(pskDirectory(join(dir, 'keys')), { 'dh-params': 'dh-params' })
  const psk = `tls-creds-psk,id=t,dir=${keys},endpoint=server`
  const shared = await start('psk', psk, (path) => byKey(path, 'alice', keys))
  await exchange(shared, { credentials: pskFromFiles(keys, 'client', 'alice') })
})

withTools(['nbdkit', 'nbdinfo'], 'nbd / tls / interop / our client at nbdkit', async () => {
  const start = (name: string, tls: string[], uri: (path: string) => string): Promise<string> => {
    const path = join(dir, name)
    const options = ['-f', '-U', path, '--tls=require', ...tls]
    return theirs('nbdkit', [...options, 'memory', String(SIZE)], uri(path)).then(() => path)
  }
  const x509 = [`--tls-certificates=${theirDirectory()}`, '--tls-verify-peer']
  const certified = await start('x509', x509, byCertificate)
  await exchange(certified, clientTls())
  const address = { type: 'unix' as const, path: certified }
  const plain = NbdClient.connect({ ctx: new AioContext(), address })
  await expect(plain).rejects.toMatchObject({ code: 'EINVAL' })

  const keys = pskDirectory(join(dir, 'keys'))
  const psk = [`--tls-psk=${join(keys, 'keys.psk')}`]
  const shared = await start('psk', psk, (path) => byKey(path, 'bob', keys))
  await exchange(shared, { credentials: pskFromFiles(keys, 'client', 'bob') })
})
