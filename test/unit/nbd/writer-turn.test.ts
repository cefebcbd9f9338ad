/** Exclusive exports: who writes last has the turn, and a ghost of a lost connection lands before it. */
import { afterEach, expect, test } from 'vitest'
import { NBD_CMD, NBD_FLAG } from '../../../src/nbd/constants.ts'
import { latch } from '../../support/graph.ts'
import { RawClient } from './raw-client.ts'
import { type Served, serve, until } from './support.ts'

const { READ, WRITE, FLUSH } = NBD_CMD
const K = 4096
let open: Served[] = []

async function start(exclusive = true): Promise<Served> {
  const served = await serve({ exp: { exclusive } })
  open.push(served)
  return served
}

afterEach(async () => {
  for (const served of open) await served.close()
  open = []
})

const filled = (byte: number): Buffer => Buffer.alloc(K, byte)

test('nbd / exclusive / a write of a lost connection lands before those of the next one', async () => {
  const { disk, address, server } = await start()
  const held = latch()
  disk.hold = held.promise
  const lost = await RawClient.enter(address, 'a')
  lost.send(WRITE, 0, K, 0, filled(1))
  await until(() => disk.log.includes('write'), 'the first write')
  const next = await RawClient.enter(address, 'a')
  disk.hold = undefined
  next.send(WRITE, 0, K, 0, filled(2))
  const { cookie } = next
  // The read has its answer first: the server took the write before it, and holds it.
  expect((await next.command(READ, 0, K)).error).toBe(0)
  expect(disk.log.filter((what) => what === 'write')).toHaveLength(1)
  held.open()
  next.cookie = cookie
  expect((await next.reply(WRITE, 0, K)).error).toBe(0)
  expect(disk.bytes.subarray(0, K).equals(filled(2))).toBe(true)
  await until(() => server.connections === 1, 'the end of the lost client')
  next.close()
})

test('nbd / exclusive / the earlier writer is cut and changes nothing any more', async () => {
  const { disk, address, server } = await start()
  const one = await RawClient.enter(address, 'a')
  expect((await one.command(WRITE, 0, K, 0, filled(1))).error).toBe(0)
  const two = await RawClient.enter(address, 'a')
  expect((await two.command(WRITE, 0, K, 0, filled(2))).error).toBe(0)
  await one.command(WRITE, 0, K, 0, filled(3)).catch(() => undefined)
  await until(() => server.connections === 1, 'the end of the first client')
  expect((await two.command(WRITE, K, K, 0, filled(2))).error).toBe(0)
  expect(disk.bytes.subarray(0, 2 * K).equals(Buffer.alloc(2 * K, 2))).toBe(true)
  two.close()
})

test('nbd / exclusive / readers neither take the turn nor wait for it', async () => {
  const { disk, address, server } = await start()
  const writer = await RawClient.enter(address, 'a')
  expect((await writer.command(WRITE, 0, K, 0, filled(1))).error).toBe(0)
  const reader = await RawClient.enter(address, 'a')
  expect((await reader.command(READ, 0, K)).data?.equals(filled(1))).toBe(true)
  expect((await reader.command(FLUSH)).error).toBe(0)
  expect((await writer.command(WRITE, 0, K, 0, filled(2))).error).toBe(0)
  expect((await reader.command(READ, 0, K)).data?.equals(filled(2))).toBe(true)
  expect([server.connections, disk.log.includes('write')]).toEqual([2, true])
  writer.close()
  reader.close()
})

test('nbd / exclusive / a third writer waits for the first two', async () => {
  const { disk, address } = await start()
  const held = latch()
  disk.hold = held.promise
  const one = await RawClient.enter(address, 'a')
  one.send(WRITE, 0, K, 0, filled(1))
  await until(() => disk.log.includes('write'), 'the first write')
  disk.hold = undefined
  const two = await RawClient.enter(address, 'a')
  two.send(WRITE, 0, K, 0, filled(2))
  await two.command(READ, 0, K)
  const three = await RawClient.enter(address, 'a')
  three.send(WRITE, 0, K, 0, filled(3))
  const { cookie } = three
  await three.command(READ, 0, K)
  held.open()
  three.cookie = cookie
  expect((await three.reply(WRITE, 0, K)).error).toBe(0)
  expect(disk.bytes.subarray(0, K).equals(filled(3))).toBe(true)
  // The second one lost its turn while it waited: its write was refused.
  expect(disk.log.filter((what) => what === 'write')).toHaveLength(2)
  three.close()
})

test('nbd / exclusive / only such an export does not promise several connections', async () => {
  for (const exclusive of [true, false]) {
    const { address } = await start(exclusive)
    const c = await RawClient.enter(address, 'a')
    expect((c.flags & NBD_FLAG.CAN_MULTI_CONN) === 0).toBe(exclusive)
    c.close()
  }
})
