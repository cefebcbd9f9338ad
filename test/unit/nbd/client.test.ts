import { createServer, type Server, type Socket } from 'node:net'
import { join } from 'node:path'
import { afterEach, expect, test } from 'vitest'
import { NbdClient, type NbdClientOptions } from '../../../src/nbd/client.ts'
import { greeting, optionReply } from '../../../src/nbd/codec.ts'
import { NBD_FLAG, NBD_OPT, NBD_REP } from '../../../src/nbd/constants.ts'
import { NbdServer } from '../../../src/nbd/server.ts'
import { BlockError } from '../../../src/util/errors.ts'
import { eio } from './fake-disk.ts'
import { type Served, serve, until } from './support.ts'

let open: { close(): Promise<void> }[] = []

async function start(options: Parameters<typeof serve>[0] = {}): Promise<Served> {
  const served = await serve(options)
  open.push(served)
  return served
}

async function client(served: Served, options: Partial<NbdClientOptions> = {}): Promise<NbdClient> {
  const { ctx, address } = served
  const made = await NbdClient.connect({ ctx, address, exportName: 'a', ...options })
  open.unshift({ close: () => made.disconnect() })
  return made
}

afterEach(async () => {
  for (const one of open) await one.close()
  open = []
})

/** Holds a request until the test is over. */
function untilTheEnd(): Promise<void> {
  return new Promise((resolve) => {
    open.push({ close: async () => resolve() })
  })
}

/** A second server at the address of the first, which was closed. */
async function restart(served: Served, exp: { readOnly?: boolean; size?: number } = {}) {
  const server = new NbdServer({ ctx: served.ctx })
  const backend = exp.size === undefined ? served.disk : (await start({ size: exp.size })).disk
  server.addExport({ name: 'a', backend, readOnly: exp.readOnly ?? false })
  await server.listen(served.address)
  open.unshift(server)
  return server
}

test('nbd / client / reads, writes, zeroes, trims, flushes and asks for status', async () => {
  const served = await start()
  const c = await client(served)
  expect([c.size, c.readOnly, c.can(NBD_FLAG.SEND_FAST_ZERO)]).toEqual([1 << 20, false, true])
  for (const bytes of [1, 4096, 20_000, 300_000]) {
    const data = Buffer.alloc(bytes, bytes & 0xff || 1)
    await c.write(17, data, { fua: bytes === 1 })
    const back = Buffer.alloc(bytes)
    await c.read(17, back)
    expect(back.equals(data)).toBe(true)
  }
  expect(served.disk.log).toContain('fua')
  await c.writeZeroes(0, 8192, { unmap: true, fast: true })
  expect(served.disk.log).toContain(`zeroes ${4 | 256}`)
  await c.trim(8192, 4096)
  await c.flush()
  expect(served.disk.log.at(-1)).toBe('flush')
  expect(await c.blockStatus(0, 1 << 20)).toEqual({ bytes: 12_288, bits: 3 })
  expect(await c.blockStatus(12_288, 4096)).toEqual({ bytes: 4096, bits: 0 })
})

test('nbd / client / errors of the server arrive with their code', async () => {
  const served = await start()
  const c = await client(served)
  served.disk.bytes.fill(1)
  served.disk.fail = { read: eio(), write: new BlockError('ENOSPC', 'full'), status: eio() }
  await expect(c.read(0, Buffer.alloc(512))).rejects.toMatchObject({ code: 'EIO' })
  await expect(c.write(0, Buffer.alloc(512))).rejects.toMatchObject({
    code: 'ENOSPC',
    message: 'No space left on device',
    cause: { message: 'server reported: full' },
  })
  await expect(c.blockStatus(0, 512)).rejects.toMatchObject({ code: 'EIO' })
  served.disk.fail = {}
  await c.read(0, Buffer.alloc(512))
})

test('nbd / client / connection failures are told in words', async () => {
  const served = await start()
  const { ctx, address } = served
  const to = (where: NbdClientOptions['address'], exportName = 'a') =>
    NbdClient.connect({ ctx, address: where, exportName })
  await expect(to({ type: 'unix', path: '/nonexistent' })).rejects.toThrow(
    "Failed to connect to '/nonexistent': No such file or directory",
  )
  await expect(to({ type: 'inet', host: '127.0.0.1', port: 1 })).rejects.toThrow(
    "Failed to connect to '127.0.0.1:1': Connection refused",
  )
  await expect(to(address, 'nope')).rejects.toMatchObject({
    message: 'Requested export not available',
    cause: { message: "server reported: export 'nope' not present" },
  })
  await expect(to(address, 'x'.repeat(4097))).rejects.toThrow(
    'export name too long to send to server',
  )
})

test('nbd / client / lists exports', async () => {
  const { ctx, address, server, disk } = await start()
  server.addExport({ name: 'b', description: 'second', backend: disk, readOnly: true })
  expect(await NbdClient.list({ ctx, address })).toEqual([
    { name: 'a', description: '' },
    { name: 'b', description: 'second' },
  ])
})

test('nbd / client / without a delay requests fail while the server is away, and work again later', async () => {
  const served = await start()
  const c = await client(served)
  await served.server.close()
  await until(() => !c.connected, 'the loss')
  expect(() => c.read(0, Buffer.alloc(512))).toThrow(BlockError)
  await restart(served)
  const again = async (): Promise<boolean> => {
    try {
      await c.read(0, Buffer.alloc(512))
      return true
    } catch {
      return false
    }
  }
  while (!(await again())) await new Promise((resolve) => setImmediate(resolve))
})

test('nbd / client / with a delay requests wait, are sent again and succeed', async () => {
  const served = await start()
  served.disk.hold = untilTheEnd()
  const c = await client(served, { reconnectDelayMs: 10_000 })
  const written = c.write(4096, Buffer.alloc(512, 9))
  await until(() => served.disk.log.includes('write'), 'the write on its way')
  await served.server.close()
  served.disk.hold = undefined
  const read = Buffer.alloc(512)
  await until(() => !c.connected, 'the loss')
  const later = c.read(4096, read)
  await restart(served)
  await written
  await later
  expect(served.disk.bytes[4096]).toBe(9)
})

test('nbd / client / a delay that runs out fails what waits', async () => {
  const served = await start()
  const c = await client(served, { reconnectDelayMs: 50 })
  await served.server.close()
  await until(() => !c.connected, 'the loss')
  await expect(c.read(0, Buffer.alloc(512))).rejects.toMatchObject({ code: 'EIO' })
  expect(() => c.read(0, Buffer.alloc(512))).toThrow('Input/output error')
})

for (const [what, exp, words] of [
  ['another size', { size: 2 << 20 }, /its size was 1048576 and is 2097152/],
  ['read-only', { readOnly: true }, /it is read-only now/],
] as const) {
  test(`nbd / client / an export that comes back ${what} is not used`, async () => {
    const served = await start()
    const c = await client(served, { reconnectDelayMs: 10_000 })
    await served.server.close()
    await until(() => !c.connected, 'the loss')
    const write = c.write(0, Buffer.alloc(512))
    await restart(served, exp)
    await expect(write).rejects.toMatchObject({ code: 'EIO', cause: { message: words } })
    expect(() => c.read(0, Buffer.alloc(512))).toThrow('Input/output error')
  })
}

test('nbd / client / a server that does not answer is given up after the request timeout', async () => {
  const served = await start()
  const c = await client(served, { requestTimeoutMs: 50 })
  served.disk.hold = untilTheEnd()
  const all = Array.from({ length: 20 }, () => c.write(0, Buffer.alloc(512)))
  for (const one of await Promise.allSettled(all)) {
    expect(one).toMatchObject({ status: 'rejected', reason: { code: 'ETIMEDOUT' } })
  }
})

test('nbd / client / yank ends everything at once', async () => {
  const served = await start()
  const c = await client(served, { reconnectDelayMs: 10_000 })
  served.disk.hold = untilTheEnd()
  const write = c.write(0, Buffer.alloc(512))
  const failed = expect(write).rejects.toMatchObject({ code: 'EIO' })
  await until(() => served.disk.log.includes('write'), 'the write on its way')
  c.yank()
  await failed
  expect(() => c.read(0, Buffer.alloc(512))).toThrow('Input/output error')
  await c.disconnect()
})

test('nbd / client / the first connection is retried while the open timeout lasts', async () => {
  const served = await start()
  await served.server.close()
  const options = { ctx: served.ctx, address: served.address, exportName: 'a' }
  const begin = performance.now()
  await expect(NbdClient.connect({ ...options, openTimeoutMs: 100 })).rejects.toThrow(
    /^Failed to connect to/,
  )
  expect(performance.now() - begin).toBeGreaterThan(99)
  const pending = NbdClient.connect({ ...options, openTimeoutMs: 5000 })
  await restart(served)
  const c = await pending
  expect(c.size).toBe(1 << 20)
  await c.disconnect()
})

/** A server that runs a script against each connection. */
async function scripted(served: Served, script: (socket: Socket, data: Buffer) => void) {
  const path = join(served.dir, 'fake')
  const server: Server = createServer((socket) => {
    socket.on('error', () => undefined)
    socket.write(greeting(3))
    socket.on('data', (data) => script(socket, data))
  })
  await new Promise<void>((done) => server.listen(path, () => done()))
  open.unshift({ close: () => new Promise((done) => server.close(() => done())) })
  return { ctx: served.ctx, address: { type: 'unix' as const, path }, exportName: 'a' }
}

test('nbd / client / a server with neither structured replies nor GO is used the old way', async () => {
  const served = await start()
  const options = await scripted(served, (socket, bytes) => {
    // The client's flags may arrive together with its first option.
    const data = bytes.subarray(Math.max(bytes.indexOf('IHAVEOPT'), 0))
    if (data.length === 4) return
    const magic = data.toString('latin1', 0, 8)
    if (magic === 'IHAVEOPT' && data.readUInt32BE(8) !== NBD_OPT.EXPORT_NAME) {
      socket.write(optionReply(data.readUInt32BE(8), NBD_REP.ERR_UNSUP))
    } else if (magic === 'IHAVEOPT') socket.write(Buffer.from('00000000001000000001', 'hex'))
    else if (data.readUInt16BE(6) === 0) {
      const reply = Buffer.alloc(16 + data.readUInt32BE(24), 7)
      reply.writeUInt32BE(0x67446698, 0)
      reply.writeUInt32BE(0, 4)
      data.copy(reply, 8, 8, 16)
      socket.write(reply)
    }
  })
  const c = await NbdClient.connect(options)
  const buf = Buffer.alloc(100)
  await c.read(0, buf)
  expect([c.size, buf.every((byte) => byte === 7)]).toEqual([1 << 20, true])
  expect(await c.blockStatus(0, 512)).toEqual({ bytes: 512, bits: 0 })
  await c.disconnect()
})

test('nbd / client / nonsense instead of a greeting is a protocol error', async () => {
  const served = await start()
  const path = join(served.dir, 'junk')
  const server = createServer((socket) => {
    socket.on('error', () => undefined)
    socket.end(Buffer.alloc(200, 'x'))
  })
  await new Promise<void>((done) => server.listen(path, () => done()))
  open.unshift({ close: () => new Promise((done) => server.close(() => done())) })
  const address = { type: 'unix' as const, path }
  await expect(NbdClient.connect({ ctx: served.ctx, address })).rejects.toMatchObject({
    code: 'EPROTO',
  })
})
