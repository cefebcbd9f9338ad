import { describe, expect, it } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { BlockGraph } from '../../../src/block/graph.ts'
import { nullCoDriver } from '../../../src/drivers/null.ts'
import { makeThrottleDriver, ThrottleGroups } from '../../../src/drivers/throttle.ts'
import { checkLimits, LeakyBucket } from '../../../src/drivers/throttle-limits.ts'
import { VirtualClock } from '../../../src/util/clock.ts'

describe('throttle / limits', () => {
  const bad: [Record<string, number>, RegExp][] = [
    [{ 'bps-total': 1, 'bps-read': 1 }, /cannot be used at the same time/],
    [{ 'iops-total': 1, 'iops-write': 1 }, /cannot be used at the same time/],
    [{ 'bps-total-max': 1 }, /require corresponding bps\/iops values/],
    [{ 'bps-total': 100, 'bps-total-max': 30 }, /cannot be lower/],
    [{ 'iops-total': 10, 'iops-total-max': 20, 'iops-total-max-length': 0 }, /cannot be 0/],
    [{ 'iops-total': 1e15 + 1 }, /within \[0, 1000000000000000\]/],
    [{ 'iops-total': 1, 'iops-total-max': 1e15, 'iops-total-max-length': 2 }, /too high/],
    [{ 'iops-size': 4096 }, /requires an iops value/],
    [{ 'iops-total': -1 }, /within/],
    [{ nonsense: 1 }, /unexpected/],
  ]
  for (const [limits, words] of bad)
    it(`throttle / limits / ${JSON.stringify(limits)} is refused`, () => {
      expect(() => checkLimits(limits)).toThrow(words)
    })

  it('throttle / limits / read with write, or none, is fine', () => {
    expect(checkLimits({ 'iops-read': 1, 'iops-write': 1 })['iops-read']).toBe(1)
    expect(checkLimits({})['bps-total-max-length']).toBe(1)
  })
})

describe('throttle / bucket', () => {
  it('throttle / bucket / leaks at its average', () => {
    const bucket = new LeakyBucket(150, 15, 1)
    bucket.level = 1.5
    bucket.leak(1000 / 150)
    expect(bucket.level).toBeCloseTo(0.5)
    bucket.leak(1000 / 150)
    expect(bucket.level).toBe(0)
  })

  it('throttle / bucket / half an operation too much waits for that half', () => {
    const bucket = new LeakyBucket(150, 15, 1)
    bucket.add(15.5)
    expect(bucket.waitMs()).toBeCloseTo(1000 / 300)
  })
})

async function setup(limits: Record<string, number>) {
  const clock = new VirtualClock()
  const ctx = new AioContext({ clock })
  const groups = new ThrottleGroups(ctx)
  groups.add('g', limits)
  const graph = new BlockGraph({ ctx, drivers: [nullCoDriver, makeThrottleDriver(groups)] })
  const node = await graph.add({
    driver: 'throttle',
    'node-name': 't',
    'throttle-group': 'g',
    file: { driver: 'null-co', size: 1 << 20 },
  })
  const disk = await BlockBackend.create(graph, node, { perm: PERM.WRITE, shared: PERM.ALL })
  return { clock, ctx, groups, graph, node, disk }
}

describe('throttle / node', () => {
  it('throttle / node / passes inline while there is room, then in order', async () => {
    const { clock, groups, disk, graph } = await setup({ 'iops-total': 10, 'iops-total-max': 10 })
    const order: number[] = []
    const all: Promise<void>[] = []
    for (let i = 0; i < 14; i++) {
      const pending = disk.pwrite(0, new Uint8Array(512))
      if (pending === undefined) order.push(i)
      else all.push(pending.then(() => void order.push(i)))
    }
    const inline = order.length
    expect(inline).toBeGreaterThan(8)
    expect(groups.get('g').waiting).toBe(14 - inline)
    for (let turn = 0; turn < 200 && order.length < 14; turn++) {
      await clock.advance(20)
      await new Promise((resolve) => setImmediate(resolve))
    }
    await Promise.all(all)
    expect(order).toEqual([...order].sort((a, b) => a - b))
    await disk.close()
    await graph.close()
  })

  it('throttle / node / a drain lets everything through without time passing', async () => {
    const { groups, graph, node, disk } = await setup({ 'bps-total': 512 })
    const all = [1, 2, 3, 4].map(() => disk.pwrite(0, new Uint8Array(4096)))
    expect(groups.get('g').waiting).toBeGreaterThan(0)
    await graph.withDrained(node, () => undefined)
    await Promise.all(all)
    expect(groups.get('g').waiting).toBe(0)
    await disk.close()
    await graph.close()
  })

  it('throttle / node / the group is in use until the node goes', async () => {
    const { groups, graph, disk } = await setup({})
    expect(() => groups.remove('g')).toThrow(/in use/)
    await disk.close()
    await graph.remove('t')
    groups.remove('g')
    expect(() => groups.get('g')).toThrow("Throttle group 'g' does not exist")
    await graph.close()
  })
})
