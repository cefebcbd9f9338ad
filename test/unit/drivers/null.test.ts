import { afterEach, describe, expect, it } from 'vitest'
import { Bench } from './qcow2-support.ts'

let bench: Bench
afterEach(() => bench.close())

describe('null', () => {
  it('null / size / is 1 GiB by default and fixed at reopen', async () => {
    bench = new Bench()
    const options = { driver: 'null-co', 'node-name': 'n', size: 1024 } as const
    const node = await bench.graph.add(options)
    const other = await bench.graph.add({ driver: 'null-aio', 'node-name': 'm' })
    expect([node.length(), other.length()]).toEqual([1024, 1 << 30])
    const reopen = (size: object) =>
      bench.graph.reopen([{ node, options: { driver: 'null-co', 'node-name': 'n', ...size } }])
    await expect(reopen({ size: 2048 })).rejects.toThrow(/size/)
    await expect(reopen({})).rejects.toThrow(/size/)
    await reopen({ size: 1024 })
  })

  it('null / latency / is checked and taken', async () => {
    bench = new Bench()
    const bad = { driver: 'null-co', 'node-name': 'b', 'latency-ns': -1 }
    await expect(bench.open(bad)).rejects.toThrow('latency-ns is invalid')
    const slow = { driver: 'null-co', 'node-name': 's', 'latency-ns': 1000 }
    const { node } = await bench.open(slow)
    const pending = node.driver?.pread(0, new Uint8Array(512))
    expect(pending).toBeInstanceOf(Promise)
    await pending
  })
})
