import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, expect, test } from 'vitest'
import { NBD_CMD, NBD_CMD_FLAG, NBD_FLAG } from '../../../src/nbd/constants.ts'
import { NbdServer } from '../../../src/nbd/server.ts'
import { BlockError } from '../../../src/util/errors.ts'
import { eio } from './fake-disk.ts'
import { RawClient } from './raw-client.ts'
import { type Served, serve, until } from './support.ts'

const { READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS } = NBD_CMD
const { FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO } = NBD_CMD_FLAG
const K = 4096
let open: Served[] = []

async function start(options: Parameters<typeof serve>[0] = {}): Promise<Served> {
  const served = await serve(options)
  open.push(served)
  return served
}

afterEach(async () => {
  for (const served of open) await served.close()
  open = []
})

for (const structured of [true, false]) {
  for (const slow of [false, true]) {
    const how = `${structured ? 'structured' : 'simple'}, ${slow ? 'slow' : 'inline'}`
    test(`nbd / server / every command works (${how})`, async () => {
      const { disk, address } = await start()
      disk.slow = slow
      const c = await RawClient.enter(address, 'a', { structured })
      expect(c.size).toBe(1 << 20)
      const data = Buffer.alloc(70_001, 7)
      expect(await c.command(WRITE, 4097, data.length, 0, data)).toMatchObject({
        error: 0,
        simple: true,
      })
      expect((await c.command(READ, 4097, data.length)).data?.equals(data)).toBe(true)
      expect((await c.command(READ, 0, 8192)).data?.equals(disk.bytes.subarray(0, 8192))).toBe(true)
      expect((await c.command(WRITE, 0, 3, FUA, Buffer.from('abc'))).error).toBe(0)
      expect(disk.log).toContain('fua')
      expect((await c.command(FLUSH)).error).toBe(0)
      expect((await c.command(FLUSH, 512, 512, FUA)).error).toBe(0)
      expect((await c.command(TRIM, 0, K)).error).toBe(0)
      expect((await c.command(TRIM, 0, K, FUA)).error).toBe(0)
      expect(disk.log.slice(-2)).toEqual(['discard', 'flush'])
      expect((await c.command(CACHE, 0, 1 << 20)).error).toBe(0)
      expect((await c.command(WRITE_ZEROES, 4097, 70_001)).error).toBe(0)
      expect(disk.bytes.every((byte) => byte === 0)).toBe(true)
      c.close()
    })
  }
}

test('nbd / server / zero flags reach the disk', async () => {
  const { disk, address } = await start()
  const c = await RawClient.enter(address, 'a')
  for (const flags of [0, NO_HOLE, NO_HOLE | FUA, NO_HOLE | FAST_ZERO]) {
    expect((await c.command(WRITE_ZEROES, 0, K, flags)).error).toBe(0)
  }
  const zeroes = disk.log.filter((line) => line.startsWith('zeroes '))
  expect(zeroes).toEqual(['zeroes 4', 'zeroes 0', 'zeroes 16', 'zeroes 256'])
  disk.fail = { zeroes: new BlockError('ENOTSUP', 'slow') }
  expect((await c.command(WRITE_ZEROES, 0, K, FAST_ZERO)).error).toBe(95)
})

test('nbd / server / refused requests have these numbers and words', async () => {
  const { address, server, disk } = await start()
  server.addExport({ name: 'ro', backend: disk, readOnly: true })
  const c = await RawClient.enter(address, 'a')
  const size = 1 << 20
  const said = async (...a: Parameters<RawClient['command']>): Promise<string> => {
    const { error, message } = await c.command(...a)
    return `${error} ${message}`
  }
  expect(await said(READ, 0, 0)).toBe('0 ')
  expect(await said(READ, size - 1, 2)).toBe(
    `22 operation past EOF; From: ${size - 1}, Len: 2, Size: ${size}`,
  )
  expect(await said(READ, 0xffffffffffffff00n, 512)).toMatch(/^22 operation past EOF/)
  expect(await said(WRITE, size, 4, 0, Buffer.from('abcd'))).toMatch(/^28 operation past EOF/)
  expect(await said(WRITE_ZEROES, size, 4)).toMatch(/^28/)
  expect(await said(TRIM, size, 4)).toMatch(/^22/)
  expect(await said(WRITE, 0, 0)).toBe('0 ')
  expect(await said(WRITE_ZEROES, 0, 0)).toBe('0 ')
  expect(await said(TRIM, 0, 0)).toBe('0 ')
  expect(await said(READ, 0, 512, 0x100)).toBe('22 unsupported flags for command read (got 0x100)')
  expect(await said(READ, 0, 512, FUA)).toBe('0 ')
  expect(await said(TRIM, 0, 512, NO_HOLE)).toMatch(/^22 unsupported flags/)
  expect(await said(READ, 0, (32 << 20) + 1)).toBe(
    '22 len (33554433 ) is larger than max len (33554432)',
  )
  expect(await said(CACHE, 0, (32 << 20) + 1)).toMatch(/^22 len/)
  expect(await said(BLOCK_STATUS, 0, 512)).toBe('22 CMD_BLOCK_STATUS not negotiated')
  expect(await said(BLOCK_STATUS, 0, 0)).toBe('22 need non-zero length')
  expect(await said(8)).toBe('22 invalid request type (8) received')
  const ro = await RawClient.enter(address, 'ro')
  const refused = await ro.command(WRITE, 0, 4, 0, Buffer.from('abcd'))
  expect([refused.error, refused.message]).toEqual([1, 'Export is read-only'])
  expect((await ro.command(WRITE_ZEROES, 0, 4)).error).toBe(1)
  expect((await ro.command(FLUSH)).error).toBe(0)
  expect((await ro.command(CACHE, 0, 512)).error).toBe(0)
  const simple = await RawClient.enter(address, 'a', { structured: false })
  expect((await simple.command(READ, 0, 512, DF)).error).toBe(22)
  expect((await simple.command(READ, 0, 512)).data?.length).toBe(512)
})

test('nbd / server / a bad magic is answered once, then the client is dropped', async () => {
  const { address } = await start()
  const c = await RawClient.enter(address, 'a')
  const junk = Buffer.alloc(28)
  junk.writeUInt32BE(0x12345678, 0)
  junk.writeBigUInt64BE(c.cookie, 8)
  c.socket.write(junk)
  const reply = await c.reply(READ, 0, 0)
  expect([reply.error, reply.message]).toEqual([22, 'invalid magic (got 0x12345678)'])
  expect(await c.closed()).toBe(true)
})

test('nbd / server / a write above the limit drops the client', async () => {
  const { address } = await start()
  const c = await RawClient.enter(address, 'a')
  c.send(WRITE, 0, (32 << 20) + 1)
  expect(await c.closed()).toBe(true)
})

test('nbd / server / errors of the disk reach the client in both styles', async () => {
  const { address, disk } = await start()
  disk.bytes.fill(1)
  for (const slow of [false, true]) {
    disk.slow = slow
    for (const structured of [true, false]) {
      const c = await RawClient.enter(address, 'a', { structured })
      disk.fail = { read: eio(), write: new BlockError('ENOSPC', 'full'), flush: eio() }
      expect((await c.command(READ, 0, 512)).error).toBe(5)
      expect((await c.command(READ, 0, 8192)).error).toBe(5)
      expect((await c.command(WRITE, 0, 4, 0, Buffer.from('abcd'))).error).toBe(28)
      expect((await c.command(FLUSH)).error).toBe(5)
      disk.fail = { discard: eio() }
      expect((await c.command(TRIM, 0, 512)).error).toBe(5)
      expect((await c.command(TRIM, 0, 512, FUA)).error).toBe(5)
      disk.fail = {}
      expect((await c.command(READ, 0, 512)).data?.[0]).toBe(1)
    }
  }
})

test('nbd / server / a disk that refuses block status fails reads and status, holes too', async () => {
  const { address, disk } = await start()
  const c = await RawClient.enter(address, 'a', { contexts: ['base:allocation'] })
  disk.fail = { status: eio() }
  for (const slow of [false, true]) {
    disk.slow = slow
    const read = await c.command(READ, 0, 512)
    expect([read.error, read.message]).toEqual([5, 'no such luck'])
    expect((await c.command(BLOCK_STATUS, 0, 512)).error).toBe(5)
  }
})

for (const slow of [false, true]) {
  test(`nbd / server / reads come in pieces of data and holes (${slow ? 'slow' : 'inline'})`, async () => {
    const { address, disk } = await start()
    disk.slow = slow
    disk.bytes.fill(1, 0, 2 * K)
    disk.bytes.fill(2, 4 * K, 5 * K)
    const c = await RawClient.enter(address, 'a')
    const read = await c.command(READ, 100, 6 * K)
    expect(read.chunks).toEqual([
      { kind: 'data', offset: 100, bytes: 2 * K - 100, done: false },
      { kind: 'hole', offset: 2 * K, bytes: 2 * K, done: false },
      { kind: 'data', offset: 4 * K, bytes: K, done: false },
      { kind: 'hole', offset: 5 * K, bytes: K + 100, done: true },
    ])
    expect(read.data?.equals(disk.bytes.subarray(100, 100 + 6 * K))).toBe(true)
    const whole = await c.command(READ, 0, 6 * K, DF)
    expect(whole.chunks).toEqual([{ kind: 'data', offset: 0, bytes: 6 * K, done: true }])
    const hole = await c.command(READ, 8 * K, 2 * K)
    expect(hole.chunks).toEqual([{ kind: 'hole', offset: 8 * K, bytes: 2 * K, done: true }])
    expect((await c.command(READ, 0, 0)).chunks).toMatchObject([{ kind: 'none', done: true }])
  })
}

test('nbd / server / block status shows allocation, depth and dirty bits', async () => {
  const runs = [{ offset: K, bytes: K }]
  const bitmap = { nextDirty: (from: number) => runs.find((run) => run.offset + run.bytes > from) }
  const exp = { allocationDepth: true, bitmaps: [{ name: 'b', bitmap }] }
  const { address, disk } = await start({ exp })
  disk.bytes.fill(1, 0, 2 * K)
  const contexts = ['base:allocation', 'qemu:allocation-depth', 'qemu:dirty-bitmap:b']
  const c = await RawClient.enter(address, 'a', { contexts })
  const all = await c.command(BLOCK_STATUS, 0, 4 * K)
  expect(all.extents).toEqual({
    0: [2 * K, 0, 2 * K, 3],
    1: [2 * K, 1, 2 * K, 0],
    2: [K, 0, K, 1, 2 * K, 0],
  })
  const one = await c.command(BLOCK_STATUS, K, 2 * K, REQ_ONE)
  expect(one.extents).toEqual({ 0: [K, 0], 1: [K, 1], 2: [K, 1] })
})

test('nbd / server / many requests in flight are answered, each with its own data', async () => {
  const { address, disk, ctx } = await start()
  const { NbdClient } = await import('../../../src/nbd/client.ts')
  disk.slow = true
  for (let i = 0; i < disk.bytes.length; i++) disk.bytes[i] = (i >> 12) + 1
  const client = await NbdClient.connect({ ctx, address, exportName: 'a' })
  const reads = Array.from({ length: 200 }, async (_, i) => {
    const buf = Buffer.alloc(K)
    await client.read((i % 200) * K, buf)
    return buf.every((byte) => byte === ((i + 1) & 0xff))
  })
  expect((await Promise.all(reads)).every(Boolean)).toBe(true)
  await client.disconnect()
})

test('nbd / server / a client that does not read its replies is not read either', async () => {
  const { address, disk } = await start({ size: 32 << 20 })
  disk.bytes.fill(1)
  const c = await RawClient.enter(address, 'a')
  c.socket.removeAllListeners('data')
  c.socket.pause()
  for (let i = 0; i < 20; i++) c.send(READ, 0, 8 << 20, DF)
  await until(() => disk.log.length >= 2, 'the first reads')
  for (let i = 0; i < 50; i++) await new Promise((resolve) => setImmediate(resolve))
  expect(disk.log.length).toBeLessThan(8)
  c.socket.resume()
  await until(() => disk.log.length === 20, 'the rest')
  c.close()
})

test('nbd / server / a quiesced disk gets no new requests until it is let go', async () => {
  const { address, disk } = await start()
  const c = await RawClient.enter(address, 'a')
  disk.hooks.drainedBegin?.()
  c.send(WRITE, 0, 4, 0, Buffer.from('abcd'))
  const other = await RawClient.enter(address, 'a')
  other.send(FLUSH, 0, 0)
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve))
  expect(disk.log).toEqual([])
  disk.hooks.drainedEnd?.()
  expect((await c.reply(WRITE, 0, 4)).error).toBe(0)
  expect((await other.reply(FLUSH, 0, 0)).error).toBe(0)
})

test('nbd / server / DISC waits for what runs, then closes', async () => {
  const { address, disk, server } = await start()
  const c = await RawClient.enter(address, 'a')
  let release = (): void => undefined
  disk.hold = new Promise((resolve) => {
    release = resolve
  })
  c.send(WRITE, 0, 4, 0, Buffer.from('abcd'))
  c.send(DISC, 0, 0)
  c.cookie -= 1n
  await until(() => disk.log.includes('write'), 'the write')
  release()
  expect((await c.reply(WRITE, 0, 4)).error).toBe(0)
  expect(await c.closed()).toBe(true)
  await until(() => server.connections === 0, 'the client to be gone')
})

test('nbd / server / exports in use are removed only hard, and the name is free again', async () => {
  const { address, server, disk } = await start()
  const c = await RawClient.enter(address, 'a')
  expect(() => server.removeExport('a', 'safe')).toThrow("export 'a' still in use")
  expect(() => server.removeExport('b')).toThrow("Export 'b' is not found")
  expect(() => server.addExport({ name: 'a', backend: disk, readOnly: true })).toThrow(
    "NBD server already has export named 'a'",
  )
  server.removeExport('a', 'hard')
  expect(await c.closed()).toBe(true)
  server.addExport({ name: 'a', backend: disk, readOnly: true })
  const again = await RawClient.enter(address, 'a')
  expect(again.flags & NBD_FLAG.READ_ONLY).not.toBe(0)
  again.close()
  await until(() => server.connections === 0, 'the client to be gone')
  server.removeExport('a', 'safe')
})

test('nbd / server / above the limit a client waits for another to leave', async () => {
  const { address, server } = await start({ max: 1 })
  const first = await RawClient.enter(address, 'a')
  expect(first.flags & NBD_FLAG.CAN_MULTI_CONN).toBe(0)
  let greeted = false
  const second = RawClient.enter(address, 'a').then((client) => {
    greeted = true
    return client
  })
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve))
  expect(greeted).toBe(false)
  first.close()
  expect((await second).size).toBe(1 << 20)
  expect(server.connections).toBe(1)
})

test('nbd / server / a silent client is cut after the handshake deadline', async () => {
  const { address } = await start({ handshakeMs: 30 })
  const silent = await RawClient.connect(address, undefined)
  expect(await silent.closed()).toBe(true)
})

test('nbd / server / addresses that cannot be listened on are refused in words', async () => {
  const { address, dir, ctx } = await start()
  const fresh = (): NbdServer => new NbdServer({ ctx })
  const unix = (path: string) => fresh().listen({ type: 'unix', path })
  await expect(unix(`/tmp/${'x'.repeat(120)}`)).rejects.toThrow(
    /^UNIX socket path '.*' is too long$/,
  )
  await expect(unix('/nonexistent/dir/x')).rejects.toThrow(
    'Failed to bind socket to /nonexistent/dir/x: No such file or directory',
  )
  writeFileSync(join(dir, 'file'), '')
  await expect(unix(join(dir, 'file'))).rejects.toThrow(/Address already in use/)
  const inet = (port: number | string) => ({ type: 'inet' as const, host: '127.0.0.1', port })
  await expect(fresh().listen(inet('abc'))).rejects.toThrow(
    'address resolution failed for 127.0.0.1:abc: Servname not supported for ai_socktype',
  )
  const one = fresh()
  await one.listen(inet(0))
  const bound = one.address
  const port = bound?.type === 'inet' ? Number(bound.port) : 0
  await expect(one.listen(inet(0))).rejects.toThrow('NBD server already running')
  await expect(fresh().listen(inet(port))).rejects.toThrow(
    'Failed to find an available port: Address already in use',
  )
  const two = fresh()
  await two.listen({ ...inet(port), to: Math.min(port + 20, 65535) })
  expect(two.address).not.toEqual(bound)
  await one.close()
  await two.close()
  expect(existsSync(address.path)).toBe(true)
})

test('nbd / server / TCP clients work as unix ones do', async () => {
  const { server, disk, ctx } = await start()
  const tcp = new NbdServer({ ctx })
  tcp.addExport({ name: 'a', backend: disk, readOnly: false })
  await tcp.listen({ type: 'inet', host: '127.0.0.1', port: 0 })
  if (tcp.address === undefined) throw new Error('no address')
  const c = await RawClient.enter(tcp.address, 'a')
  expect((await c.command(WRITE, 0, 4, 0, Buffer.from('abcd'))).error).toBe(0)
  expect((await c.command(READ, 0, 4)).data?.toString()).toBe('abcd')
  await tcp.close()
  expect(server.address).toBeDefined()
})
