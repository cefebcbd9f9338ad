import { afterEach, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { BlockGraph } from '../../../src/block/graph.ts'
import type { Pending } from '../../../src/coroutine/coroutine.ts'
import { NbdDisk, nbdDriver } from '../../../src/drivers/nbd.ts'
import { type Served, serve } from './support.ts'

let closing: (() => Promise<void>)[] = []

afterEach(async () => {
  for (const close of closing) await close()
  closing = []
})

async function start(exp: { readOnly?: boolean } = {}): Promise<Served & { graph: BlockGraph }> {
  const served = await serve({ exp })
  const graph = new BlockGraph({ ctx: new AioContext(), drivers: [nbdDriver] })
  closing.push(() => graph.close(), served.close)
  return { ...served, graph }
}

async function finish(pending: Pending): Promise<void> {
  if (pending !== undefined) await pending
}

const all = { perm: PERM.CONSISTENT_READ | PERM.WRITE, shared: PERM.ALL }

test('nbd / driver / a node over an export reads, writes, zeroes, flushes and says goodbye', async () => {
  const { graph, address, disk, server } = await start()
  const node = await graph.add({
    driver: 'nbd',
    'node-name': 'n',
    discard: 'unmap',
    server: address,
    export: 'a',
  })
  expect(node.driver?.filename?.()).toMatch(/^nbd\+unix:\/\/\/a\?socket=/)
  const backend = await BlockBackend.create(graph, node, all)
  expect(backend.length()).toBe(1 << 20)
  await finish(backend.pwrite(513, Buffer.from('hello')))
  const buf = Buffer.alloc(5)
  await finish(backend.pread(513, buf))
  expect(buf.toString()).toBe('hello')
  await finish(backend.pwriteZeroes(0, 8192))
  await finish(backend.pdiscard(8192, 4096))
  await finish(backend.flush())
  expect(disk.log).toContain('flush')
  expect(disk.bytes.every((byte) => byte === 0)).toBe(true)
  await backend.close()
  await graph.remove('n')
  while (server.connections > 0) await new Promise((resolve) => setImmediate(resolve))
})

test('nbd / driver / a read-only export needs a read-only node', async () => {
  const { graph, address } = await start({ readOnly: true })
  const options = { driver: 'nbd', server: address, export: 'a' }
  await expect(graph.add({ ...options, 'node-name': 'w' })).rejects.toMatchObject({
    code: 'EACCES',
  })
  await graph.add({ ...options, 'node-name': 'r', 'read-only': true })
  const auto = await graph.add({ ...options, 'node-name': 'x', 'auto-read-only': true })
  expect(auto.readOnly).toBe(true)
  const again = { ...options, 'node-name': 'r' }
  const node = graph.lookup('r')
  await expect(
    graph.reopen([{ node, options: { ...again, 'read-only': false } }]),
  ).rejects.toMatchObject({ code: 'EACCES' })
  await graph.reopen([{ node, options: { ...again, 'read-only': true } }])
})

test('nbd / driver / flat options work, wrong ones are refused', async () => {
  const { graph, address } = await start()
  const node = await graph.add({ driver: 'nbd', 'node-name': 'n', path: address.path, export: 'a' })
  expect(node.driver instanceof NbdDisk && node.driver.client.size).toBe(1 << 20)
  const add = (options: Record<string, unknown>) =>
    graph.add({ driver: 'nbd', 'node-name': 'y', ...options })
  await expect(add({})).rejects.toMatchObject({ code: 'EINVAL' })
  await expect(add({ path: '/x', host: 'y' })).rejects.toMatchObject({ code: 'EINVAL' })
  await expect(add({ server: { type: 'vsock', cid: '1' } })).rejects.toMatchObject({
    code: 'EINVAL',
  })
  await expect(add({ path: address.path, export: 'nope' })).rejects.toThrow(
    'Requested export not available',
  )
})

test('nbd / driver / a backend over a node is what an export needs', async () => {
  const { graph, address, server, disk } = await start()
  const node = await graph.add({ driver: 'nbd', 'node-name': 'n', server: address, export: 'a' })
  const backend = await BlockBackend.create(graph, node, all)
  server.addExport({ name: 'again', backend, readOnly: false })
  const through = await graph.add({
    driver: 'nbd',
    'node-name': 'm',
    server: address,
    export: 'again',
  })
  const top = await BlockBackend.create(graph, through, all)
  await finish(top.pwrite(4096, Buffer.alloc(4096, 5)))
  expect(disk.bytes[4096]).toBe(5)
  const buf = Buffer.alloc(8192)
  await finish(top.pread(2048, buf))
  expect(buf.indexOf(5)).toBe(2048)
  await top.close()
  server.removeExport('again', 'hard')
  await backend.close()
})
