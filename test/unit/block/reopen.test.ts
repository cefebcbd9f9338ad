import { afterEach, beforeEach, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { BlockBackend } from '../../../src/block/backend.ts'
import { type BlockdevOptions, PERM } from '../../../src/block/driver.ts'
import { BlockGraph } from '../../../src/block/graph.ts'
import { builtinDrivers } from '../../../src/runtime/drivers.ts'

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

const disk = (name: string): BlockdevOptions => ({ driver: 'null-co', 'node-name': name })
const tree: BlockdevOptions = { driver: 'raw', 'node-name': 'top', file: disk('disk') }

async function reopen(options: BlockdevOptions): Promise<void> {
  await graph.reopen([{ node: graph.lookup(undefined, 'top'), options }])
}

const child = () => graph.lookup(undefined, 'disk')

test('block / reopen / cache options go down to a child and go back with it', async () => {
  await graph.add(tree)
  await reopen({ ...tree, cache: { 'no-flush': true } })
  expect(child().noFlush).toBe(true)
  await reopen(tree)
  expect(child().noFlush).toBe(false)
})

test('block / reopen / what an inline child says of itself wins over what it inherits', async () => {
  await graph.add(tree)
  const stubborn = { ...disk('disk'), cache: { 'no-flush': false } }
  await reopen({ ...tree, file: stubborn, cache: { 'no-flush': true } })
  expect(child().noFlush).toBe(false)
})

test('block / reopen / an option that an inline child no longer names gets its default', async () => {
  await graph.add({ ...tree, file: { ...disk('disk'), 'detect-zeroes': 'on' } })
  expect(child().detectZeroes).toBe('on')
  await reopen({ ...tree, file: 'disk' })
  expect(child().detectZeroes).toBe('on')
  await reopen(tree)
  expect(child().detectZeroes).toBe('off')
})

test('block / flush / no-flush holds for the node and its inline children, not for a named one', async () => {
  const events = { event: 'none', iotype: 'flush', errno: 5 }
  const bad = {
    driver: 'blkdebug',
    'node-name': 'bad',
    image: disk('disk'),
    'inject-error': [events],
  }
  await graph.add(bad)
  const over = { driver: 'raw', 'node-name': 'top', file: 'bad', cache: { 'no-flush': true } }
  const top = await graph.add(over)
  const backend = await BlockBackend.create(graph, top, { perm: PERM.WRITE, shared: PERM.ALL })
  await backend.pwrite(0, new Uint8Array(512))
  await expect(async () => backend.flush()).rejects.toMatchObject({ code: 'EIO' })
  await backend.close()
  await graph.remove('top')
  await graph.remove('bad')
  const whole = await graph.add({ ...over, file: bad })
  const other = await BlockBackend.create(graph, whole, { perm: PERM.WRITE, shared: PERM.ALL })
  await other.pwrite(0, new Uint8Array(512))
  await other.flush()
  await other.close()
})
