import { describe, expect, it } from 'vitest'
import { FLAG } from '../../../src/block/driver.ts'
import { guest, HeldDriver, latch, memoryGraph } from '../../support/graph.ts'

describe('block / request / report', () => {
  it('block / request / report / a drain that waits is explained by coroutine, range and kind', async () => {
    const held = new HeldDriver()
    const graph = memoryGraph(held.definition)
    await graph.add({ driver: 'memory', 'node-name': 'disk', size: 65536 })
    const top = await graph.add({ driver: 'held', 'node-name': 'top', file: 'disk' })
    const user = await guest(graph, top)
    const hold = latch()
    held.hold = hold
    const first = graph.ctx.spawn(() => user.coPwrite(0, new Uint8Array(4096), FLAG.SERIALISING), {
      name: 'guest 1',
    })
    const second = graph.ctx.spawn(() => user.coPwrite(512, new Uint8Array(512)), {
      name: 'guest 2',
    })
    const stranger = user.pread(8192, new Uint8Array(512))
    const drained = graph.drainedBegin(top)
    expect(graph.report()).toEqual([
      "node 'top': 0+4096, serialising, by guest 1",
      "node 'top': 512+512, waiting for another, by guest 2",
      "node 'top': 8192+512",
    ])
    hold.open()
    await Promise.all([drained, first.join(), second.join(), stranger])
    expect(graph.report()).toEqual([])
    graph.drainedEnd(top)
    await user.close()
    await graph.close()
    await graph.ctx.close()
  })
})
