import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { memory, Rig } from './rig.ts'

let rig: Rig
beforeEach(async () => {
  rig = new Rig()
  await rig.run('blockdev-add', memory('a'))
})
afterEach(() => rig.close())

const noLimits = { bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 }

describe('qmp / machine', () => {
  test('orders to devices find none', async () => {
    const missing = "Device 'a' not found"
    expect(await rig.refused('block_set_io_throttle', { id: 'a', ...noLimits })).toBe(missing)
    expect(await rig.refused('eject', { device: 'a' })).toBe(missing)
    expect(await rig.refused('block_set_io_throttle', noLimits)).toBe(
      "Need exactly one of 'device' and 'id'",
    )
  })

  test('iothreads are listed newest first with their numbers', async () => {
    expect(await rig.run('query-iothreads')).toEqual([])
    await rig.run('object-add', { 'qom-type': 'iothread', id: 'one' })
    await rig.run('object-add', { 'qom-type': 'iothread', id: 'two', 'poll-max-ns': 5 })
    expect(await rig.run('query-iothreads')).toMatchObject([
      { id: 'two', 'poll-max-ns': 5, 'aio-max-batch': 0 },
      { id: 'one', 'poll-max-ns': 32768 },
    ])
  })

  test('internal snapshots are refused by the name of the format', async () => {
    const take = { device: 'a', name: 's' }
    const text = "Block format 'memory' used by device 'a' does not support internal snapshots"
    expect(await rig.refused('blockdev-snapshot-internal-sync', take)).toBe(text)
    const actions = [{ type: 'blockdev-snapshot-internal-sync', data: take }]
    expect(await rig.refused('transaction', { actions })).toBe(text)
    const drop = (more: JsonObject) =>
      rig.refused('blockdev-snapshot-delete-internal-sync', { device: 'a', ...more })
    expect(await drop({})).toBe('Name or id must be provided')
    expect(await drop({ id: '1' })).toBe('Failed to get a snapshot list: Operation not supported')
  })

  test('statistics have nodes only when they are asked for', async () => {
    await rig.run('blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'a' })
    expect(await rig.run('query-blockstats')).toEqual([])
    expect(await rig.run('query-blockstats', { 'query-nodes': true })).toMatchObject([
      { 'node-name': 'a', stats: { wr_operations: 0, timed_stats: [] } },
      { 'node-name': 'r', stats: { rd_bytes: 0 }, parent: { 'node-name': 'a' } },
    ])
  })

  test('character devices are remembered and removed', async () => {
    const addr = { type: 'unix', data: { path: '/p' } }
    const backend = { type: 'socket', data: { addr, server: true, wait: false } }
    await rig.run('chardev-add', { id: 'c', backend })
    expect(await rig.refused('chardev-add', { id: 'c', backend })).toBe(
      "Chardev with id 'c' already exists",
    )
    expect(await rig.run('query-chardev')).toEqual([
      { label: 'c', filename: 'disconnected:unix:/p,server=on', 'frontend-open': false },
    ])
    await rig.run('chardev-remove', { id: 'c' })
    expect(await rig.refused('chardev-remove', { id: 'c' })).toBe("Chardev 'c' not found")
    expect(await rig.refused('chardev-add', { id: 'c', backend: { type: 'zz' } })).toBe(
      "Parameter 'type' does not accept value 'zz'",
    )
  })
})

describe('qmp / write threshold', () => {
  const set = (bytes: number) =>
    rig.run('block-set-write-threshold', { 'node-name': 'a', 'write-threshold': bytes })
  const shown = async (): Promise<unknown> =>
    ((await rig.run('query-named-block-nodes')) as JsonObject[])[0]?.write_threshold

  test('the first write beyond it is told once', async () => {
    const { graph } = rig
    const backend = await BlockBackend.create(graph, graph.lookup(undefined, 'a'), {
      perm: PERM.WRITE,
      shared: PERM.ALL,
    })
    await set(4096)
    await backend.pwrite(0, new Uint8Array(4096))
    expect(rig.calls).toEqual([])
    expect(await shown()).toBe(4096)
    await backend.pwrite(4096, new Uint8Array(512))
    await backend.pwrite(8192, new Uint8Array(512))
    const told = { 'node-name': 'a', 'amount-exceeded': 512, 'write-threshold': 4096 }
    expect(rig.calls).toEqual([`BLOCK_WRITE_THRESHOLD ${JSON.stringify(told)}`])
    expect(await shown()).toBe(0)
    await backend.close()
  })

  test('0 takes it away, and an unknown node is refused', async () => {
    await set(4096)
    await set(0)
    expect(await shown()).toBe(0)
    expect(rig.graph.lookup(undefined, 'a').writeListeners.size).toBe(0)
    const other = { 'node-name': 'no', 'write-threshold': 1 }
    expect(await rig.refused('block-set-write-threshold', other)).toBe("Device 'no' not found")
  })
})
