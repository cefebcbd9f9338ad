import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { NBD_CMD, NBD_ERROR } from '../../../src/nbd/constants.ts'
import type { JsonObject, JsonValue } from '../../../src/qmp/json.ts'
import { RawClient } from '../nbd/raw-client.ts'
import { memory, Rig } from './rig.ts'

let rig: Rig
beforeEach(() => {
  rig = new Rig()
})
afterEach(() => rig.close())

const ZEROES = {
  rd_bytes: 0,
  wr_bytes: 0,
  unmap_bytes: 0,
  rd_operations: 0,
  wr_operations: 0,
  flush_operations: 0,
  unmap_operations: 0,
  rd_total_time_ns: 0,
  wr_total_time_ns: 0,
  flush_total_time_ns: 0,
  unmap_total_time_ns: 0,
  wr_highest_offset: 0,
  rd_merged: 0,
  wr_merged: 0,
  unmap_merged: 0,
  failed_rd_operations: 0,
  failed_wr_operations: 0,
  failed_flush_operations: 0,
  failed_unmap_operations: 0,
  invalid_rd_operations: 0,
  invalid_wr_operations: 0,
  invalid_flush_operations: 0,
  invalid_unmap_operations: 0,
  account_invalid: false,
  account_failed: false,
  timed_stats: [],
}

type Tree = { readonly [name: string]: Tree | string }

/** What stands on what: names only. */
function tree(entry: JsonValue | undefined): Tree {
  const { 'node-name': name, parent, backing } = entry as JsonObject
  return {
    name: String(name),
    ...(parent === undefined ? {} : { parent: tree(parent) }),
    ...(backing === undefined ? {} : { backing: tree(backing) }),
  }
}

const add = (options: JsonObject) => rig.run('blockdev-add', options)
const nodes = () => rig.run('query-blockstats', { 'query-nodes': true }) as Promise<JsonObject[]>
const devices = () => rig.run('query-blockstats') as Promise<JsonObject[]>

async function serve(id: string, nodeName: string): Promise<void> {
  if (rig.exports.server === undefined) {
    await rig.exports.startServer({ type: 'inet', host: '127.0.0.1', port: 0 })
  }
  await rig.exports.add({ id, nodeName, writable: true })
}

const device = (id: string) => {
  const backend = rig.exports.backends().get(id)
  if (backend === undefined) throw new Error(`no export ${id}`)
  return backend
}

describe('qmp / statistics / nodes', () => {
  test('qmp / statistics / nodes / the oldest comes first, each with every counter', async () => {
    await add(memory('a'))
    await add({ driver: 'raw', 'node-name': 'r', file: 'a' })
    expect(await nodes()).toEqual([
      { 'node-name': 'a', stats: ZEROES },
      { 'node-name': 'r', stats: ZEROES, parent: { 'node-name': 'a', stats: ZEROES } },
    ])
    expect(await devices()).toEqual([])
    expect(await rig.run('query-blockstats', { 'query-nodes': false })).toEqual([])
  })

  test('qmp / statistics / nodes / what a node stores in is its parent, a backing image is not shown', async () => {
    await add(memory('base'))
    await add({ ...memory('top'), backing: 'base' })
    await add({ driver: 'copy-on-read', 'node-name': 'cor', file: 'top' })
    await add({ driver: 'blkdebug', 'node-name': 'bd', image: 'top' })
    await add({ driver: 'quorum', 'node-name': 'q', 'vote-threshold': 1, children: ['cor', 'bd'] })
    expect((await nodes()).map(tree)).toEqual([
      { name: 'base' },
      { name: 'top' },
      { name: 'cor', parent: { name: 'top' } },
      { name: 'bd', parent: { name: 'top' } },
      { name: 'q' },
    ])
  })

  test('qmp / statistics / nodes / the furthest write is known of each layer', async () => {
    await add(memory('a'))
    await add({ driver: 'raw', 'node-name': 'r', file: 'a', offset: 4096 })
    await serve('e', 'r')
    await device('e').pwrite(8192, new Uint8Array(512))
    const furthest = (await nodes()).map((node) => (node.stats as JsonObject).wr_highest_offset)
    expect(furthest).toEqual([12800, 8704])
  })
})

describe('qmp / statistics / devices', () => {
  test('qmp / statistics / devices / an export is listed by its id with what its clients did', async () => {
    await add(memory('a'))
    await add(memory('b'))
    await serve('one', 'a')
    await serve('two', 'b')
    const one = device('one')
    await one.pwrite(0, new Uint8Array(1024))
    await one.pwriteZeroes(4096, 4096)
    await one.pread(0, new Uint8Array(512))
    await one.flush()
    expect(() => one.pread(65536, new Uint8Array(512))).toThrow()
    const [first, second] = await devices()
    const stats = first?.stats as JsonObject
    expect(first).toEqual({
      device: 'one',
      'node-name': 'a',
      stats: {
        ...ZEROES,
        account_invalid: true,
        account_failed: true,
        rd_operations: 1,
        rd_bytes: 512,
        wr_operations: 2,
        wr_bytes: 5120,
        flush_operations: 1,
        invalid_rd_operations: 1,
        wr_highest_offset: 8192,
        rd_total_time_ns: stats.rd_total_time_ns,
        wr_total_time_ns: stats.wr_total_time_ns,
        flush_total_time_ns: stats.flush_total_time_ns,
        idle_time_ns: stats.idle_time_ns,
      },
    })
    const times = ['rd_total_time_ns', 'wr_total_time_ns', 'flush_total_time_ns', 'idle_time_ns']
    for (const time of times) expect(stats[time]).toBeGreaterThan(0)
    const idle = { ...ZEROES, account_invalid: true, account_failed: true }
    expect(second).toEqual({ device: 'two', 'node-name': 'b', stats: idle })
    await rig.exports.remove('one', 'hard')
    expect((await devices()).map((entry) => entry.device)).toEqual(['two'])
  })

  test('qmp / statistics / devices / the chain below is shown with its backing images, filters both ways', async () => {
    await add(memory('base'))
    await add({ ...memory('top'), backing: 'base' })
    await add({ driver: 'copy-on-read', 'node-name': 'cor', file: 'top' })
    await serve('e', 'cor')
    const top = { name: 'top', backing: { name: 'base' } }
    expect((await devices()).map(tree)).toEqual([{ name: 'cor', parent: top, backing: top }])
  })

  test('qmp / statistics / devices / a filter that a job put in silently is not shown', async () => {
    await add(memory('a'))
    await add(memory('copy'))
    await serve('e', 'a')
    const mirror = { 'job-id': 'j', device: 'a', target: 'copy', sync: 'none', speed: 1 }
    await rig.run('blockdev-mirror', mirror)
    expect(device('e').node.name).not.toBe('a')
    expect((await devices()).map(tree)).toEqual([{ name: 'a' }])
    await rig.run('block-job-cancel', { device: 'j', force: true })
  })
})

describe('qmp / statistics / latency histogram', () => {
  const set = (args: JsonObject) => rig.run('block-latency-histogram-set', { id: 'e', ...args })
  const refused = (args: JsonObject) => rig.refused('block-latency-histogram-set', args)
  const boundaries = async () => {
    const stats = (await devices())[0]?.stats as JsonObject
    const shown = ['rd', 'wr', 'flush'].map((kind) => stats[`${kind}_latency_histogram`])
    return shown.map((one) => (one as JsonObject | undefined)?.boundaries)
  }

  beforeEach(async () => {
    await add(memory('a'))
    await serve('e', 'a')
  })

  test('qmp / statistics / latency histogram / general boundaries stand for those not given', async () => {
    expect(await boundaries()).toEqual([undefined, undefined, undefined])
    await set({ boundaries: [1, 2] })
    expect(await boundaries()).toEqual([
      [1, 2],
      [1, 2],
      [1, 2],
    ])
    await set({ boundaries: [3], 'boundaries-write': [7, 9] })
    expect(await boundaries()).toEqual([[3], [7, 9], [3]])
    await set({ 'boundaries-flush': [] })
    expect(await boundaries()).toEqual([[3], [7, 9], []])
    await set({})
    expect(await boundaries()).toEqual([undefined, undefined, undefined])
  })

  test('qmp / statistics / latency histogram / requests are binned', async () => {
    await set({ boundaries: [1, 1_000_000_000_000] })
    await device('e').pwrite(0, new Uint8Array(512))
    await device('e').flush()
    const stats = (await devices())[0]?.stats
    const bins = { wr_latency_histogram: { bins: [0, 1, 0] }, rd_latency_histogram: {} }
    expect(stats).toMatchObject({ ...bins, flush_latency_histogram: { bins: [0, 1, 0] } })
  })

  test('qmp / statistics / latency histogram / the first bad kind is named, those before it stay', async () => {
    const bad = { id: 'e', boundaries: [5], 'boundaries-write': [9, 7] }
    expect(await refused(bad)).toBe("Device 'e' set write boundaries fail")
    expect(await boundaries()).toEqual([[5], undefined, undefined])
    expect(await refused({ id: 'e', boundaries: [0] })).toBe("Device 'e' set read boundaries fail")
    expect(await refused({ id: 'e', 'boundaries-flush': [2, 2] })).toBe(
      "Device 'e' set flush boundaries fail",
    )
  })

  test('qmp / statistics / latency histogram / what is no device is told apart from nothing', async () => {
    await rig.run('object-add', { 'qom-type': 'iothread', id: 't' })
    for (const id of ['', '/', '/objects', '/objects/t']) {
      expect(await refused({ id })).toBe(`${id} is not a hotpluggable device`)
    }
    for (const id of ['a', 't', 'objects', '/objects/no', '/no']) {
      expect(await refused({ id })).toBe(`Device '${id}' not found`)
    }
    expect(await refused({})).toBe("Parameter 'id' is missing")
  })
})

describe('qmp / statistics / over NBD', () => {
  const { READ, WRITE, WRITE_ZEROES, TRIM, FLUSH, CACHE, BLOCK_STATUS } = NBD_CMD
  const EIGHT = 8192

  async function enter(options: JsonObject, structured: boolean): Promise<RawClient> {
    await add(options)
    await serve('e', 'd')
    const address = rig.exports.server?.address
    if (address === undefined) throw new Error('no server')
    const contexts = structured ? ['base:allocation'] : []
    return RawClient.enter(address, 'd', { structured, contexts })
  }

  for (const structured of [false, true]) {
    const how = structured ? 'structured' : 'simple'
    test(`qmp / statistics / over NBD / every command of a client is counted (${how})`, async () => {
      const client = await enter({ ...memory('d'), discard: 'unmap' }, structured)
      await client.command(WRITE, 0, EIGHT, 0, Buffer.alloc(EIGHT, 1))
      await client.command(WRITE, 512, 512, 0, Buffer.alloc(512, 2))
      await client.command(READ, 0, 4096)
      await client.command(READ, 32_768, 4096)
      await client.command(WRITE_ZEROES, 16_384, EIGHT)
      await client.command(TRIM, 4096, 4096)
      await client.command(FLUSH, 0, 0)
      if (structured) await client.command(BLOCK_STATUS, 0, 4096)
      const past = await client.command(READ, 65_536, 512)
      expect(past.error).toBe(NBD_ERROR.EINVAL)
      await client.command(WRITE, 65_536, 512, 0, Buffer.alloc(512))
      await client.command(WRITE_ZEROES, 65_536, 512)
      await client.command(TRIM, 65_536, 512)
      await client.command(CACHE, 65_536, 512)
      expect((await devices())[0]?.stats).toMatchObject({
        rd_operations: 2,
        rd_bytes: EIGHT,
        wr_operations: 3,
        wr_bytes: 2 * EIGHT + 512,
        unmap_operations: 1,
        unmap_bytes: 4096,
        flush_operations: 1,
        invalid_rd_operations: 1,
        invalid_wr_operations: 2,
        invalid_unmap_operations: 1,
        failed_rd_operations: 0,
        failed_wr_operations: 0,
        wr_highest_offset: 24_576,
      })
      client.close()
    })
  }

  test('qmp / statistics / over NBD / a read over holes counts all of its bytes', async () => {
    const client = await enter(memory('d'), true)
    await client.command(WRITE, 0, EIGHT, 0, Buffer.alloc(EIGHT, 1))
    await client.command(READ, 0, 65_536)
    const stats = (await devices())[0]?.stats as JsonObject
    expect(stats.rd_bytes).toBe(65_536)
    client.close()
  })

  test('qmp / statistics / over NBD / what the disk fails is failed', async () => {
    await add(memory('below'))
    const inject = [{ event: 'none', iotype: 'write', once: true }]
    const client = await enter(
      { driver: 'blkdebug', 'node-name': 'd', image: 'below', 'inject-error': inject },
      true,
    )
    const refused = await client.command(WRITE, 0, 512, 0, Buffer.alloc(512, 1))
    expect(refused.error).toBe(NBD_ERROR.EIO)
    expect((await devices())[0]?.stats).toMatchObject({
      failed_wr_operations: 1,
      wr_operations: 0,
      wr_bytes: 0,
    })
    client.close()
  })
})
