import { afterEach, beforeEach, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { BlockGraph } from '../../../src/block/graph.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { builtinDrivers } from '../../../src/runtime/drivers.ts'

const K = 1024
let ctx: AioContext
let graph: BlockGraph

beforeEach(() => {
  ctx = new AioContext()
  graph = new BlockGraph({ ctx, drivers: builtinDrivers() })
})

afterEach(async () => {
  await graph.close()
  await ctx.close()
})

const memory = (name: string, more: object = {}): Promise<BlockNode> =>
  graph.add({ driver: 'memory', 'node-name': name, size: 64 * K, ...more })

const open = (node: BlockNode, perm: number = PERM.CONSISTENT_READ | PERM.WRITE) =>
  BlockBackend.create(graph, node, { perm, shared: PERM.ALL })

async function overlay(more: object = {}): Promise<{ base: BlockNode; top: BlockNode }> {
  const base = await memory('base')
  const b = await open(base)
  await b.pwrite(0, new Uint8Array(32 * K).fill(0xa5))
  await b.close()
  return { base, top: await memory('top', { backing: 'base', ...more }) }
}

test('block / prefetch / a range of the backing image becomes the own of the overlay', async () => {
  const { top } = await overlay()
  const backend = await open(top)
  await backend.pwrite(8 * K, new Uint8Array(4 * K).fill(1))
  await backend.prefetch(5 * K, 20 * K)
  // Whole clusters of 4 KiB are copied, what the overlay had stays.
  const depths: [number, number][] = []
  for (let at = 0; at < 64 * K; ) {
    const { depth, bytes } = await backend.blockStatus(at, 64 * K - at)
    depths.push([depth, bytes / K])
    at += bytes
  }
  expect(depths[0]).toEqual([1, 4])
  expect(depths.filter(([depth]) => depth === 0).reduce((sum, [, kib]) => sum + kib, 0)).toBe(24)
  const data = new Uint8Array(32 * K)
  await backend.pread(0, data)
  expect(data.subarray(8 * K, 12 * K).every((byte) => byte === 1)).toBe(true)
  expect(data.subarray(12 * K).every((byte) => byte === 0xa5)).toBe(true)
  await backend.close()
})

test('block / prefetch / a read-only overlay stays as it is', async () => {
  const { top } = await overlay({ 'read-only': true })
  const backend = await open(top, PERM.CONSISTENT_READ)
  await backend.prefetch(0, 64 * K)
  expect(await backend.blockStatus(0, 64 * K)).toMatchObject({ depth: 1 })
  await backend.close()
})

test('block / prefetch / writes beside it are not lost', async () => {
  const { top } = await overlay()
  const backend = await open(top)
  const copying = backend.prefetch(0, 64 * K)
  const writing = backend.pwrite(K, new Uint8Array(2 * K).fill(7))
  await Promise.all([copying, writing])
  const data = new Uint8Array(4 * K)
  await backend.pread(0, data)
  expect([data[0], data[K], data[3 * K - 1], data[3 * K]]).toEqual([0xa5, 7, 7, 0xa5])
  await backend.close()
})

test('block / prefetch / a range beyond the end is refused', async () => {
  const backend = await open(await memory('one'))
  await expect(async () => backend.prefetch(60 * K, 8 * K)).rejects.toMatchObject({ code: 'EIO' })
  await backend.close()
})
