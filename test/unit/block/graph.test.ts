import { describe, expect, it } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { isAllocatedAbove } from '../../../src/block/status.ts'
import { fill, guest, HeldDriver, latch, memoryGraph, patternOf } from '../../support/graph.ts'

const MiB = 1024 * 1024
const memory = (name: string, backing?: string | null) => ({
  driver: 'memory',
  'node-name': name,
  size: MiB,
  ...(backing === undefined ? {} : { backing }),
})

describe('block / memory', () => {
  it('block / memory / an overlay shows its backing image where it holds nothing', async () => {
    const graph = memoryGraph()
    const base = await graph.add(memory('base'))
    const user = await guest(graph, base)
    await fill(user, 0x11, 0, MiB)
    const top = await guest(graph, await graph.add(memory('top', 'base')))
    await fill(top, 0x33, 1000, 3000)
    expect(await patternOf(top, 0, 1000)).toBe(0x11)
    expect(await patternOf(top, 1000, 3000)).toBe(0x33)
    expect(await patternOf(top, 4000, 4096)).toBe(0x11)
    expect(await patternOf(user, 1000, 3000)).toBe(0x11)
  })

  it('block / memory / emptying an overlay shows the backing image again', async () => {
    const graph = memoryGraph()
    const base = await guest(graph, await graph.add(memory('base')))
    await fill(base, 0x11, 0, MiB)
    const node = await graph.add(memory('top', 'base'))
    const top = await guest(graph, node)
    await fill(top, 0x33, 0, 65536)
    expect(await isAllocatedAbove(node, graph.find('base'), 0, MiB)).toEqual({
      allocated: true,
      bytes: 65536,
    })
    await graph.withDrained(node, () => node.driver?.makeEmpty?.())
    expect(await patternOf(top, 0, MiB)).toBe(0x11)
  })

  it('block / memory / zero writes read as zeroes over a backing image', async () => {
    const graph = memoryGraph()
    await fill(await guest(graph, await graph.add(memory('base'))), 0x11, 0, MiB)
    const top = await guest(graph, await graph.add(memory('top', 'base')))
    await top.pwriteZeroes(100, 10000)
    expect(await patternOf(top, 0, 100)).toBe(0x11)
    expect(await patternOf(top, 100, 10000)).toBe(0)
    expect(await patternOf(top, 10100, 1000)).toBe(0x11)
  })
})

describe('block / names', () => {
  it('block / names / bad and double names are refused and leave nothing', async () => {
    const graph = memoryGraph()
    await graph.add(memory('a'))
    await expect(graph.add(memory('a'))).rejects.toThrow("Duplicate nodes with node-name='a'")
    await expect(graph.add(memory('5a'))).rejects.toThrow("Invalid node-name: '5a'")
    await expect(graph.add(memory('n'.repeat(32)))).rejects.toThrow('Node name too long')
    await expect(graph.add(memory('b', 'nope'))).rejects.toThrow("Cannot find device='nope'")
    expect(graph.nodes().map((n) => n.name)).toEqual(['a'])
  })

  it('block / names / a used node cannot be removed, and the last user frees it', async () => {
    const graph = memoryGraph()
    const base = await graph.add(memory('base'))
    await graph.add(memory('top', 'base'))
    await expect(graph.remove('base')).rejects.toThrow(
      "Node 'base' is busy: node is used as backing hd of 'top'",
    )
    const user = await guest(graph, base)
    await expect(graph.remove('base')).rejects.toThrow('Node base is in use')
    await user.close()
    await graph.remove('top')
    await graph.remove('base')
    expect(graph.nodes()).toEqual([])
  })
})

describe('block / permissions', () => {
  it('block / permissions / a writer that another user forbids is refused and changes nothing', async () => {
    const graph = memoryGraph()
    const node = await graph.add(memory('a'))
    const reader = await BlockBackend.create(graph, node, {
      name: 'r',
      perm: PERM.CONSISTENT_READ,
      shared: PERM.CONSISTENT_READ | PERM.WRITE_UNCHANGED,
    })
    await expect(guest(graph, node)).rejects.toThrow(
      "Permission conflict on node 'a': permissions 'write' are both required by an unnamed " +
        "block device (uses node 'a' as 'root' child) and unshared by block device 'r' (uses " +
        "node 'a' as 'root' child).",
    )
    expect(node.parents.size).toBe(1)
    await reader.close()
    await guest(graph, node)
  })

  it('block / permissions / a read-only node takes no writer and cannot become so under one', async () => {
    const graph = memoryGraph()
    const node = await graph.add({ ...memory('a'), 'read-only': true })
    await expect(guest(graph, node)).rejects.toThrow('Block node is read-only')
    await graph.setReadOnly(node, false)
    const user = await guest(graph, node)
    await expect(graph.setReadOnly(node, true)).rejects.toThrow('cannot support read-write users')
    await fill(user, 1, 0, 512)
  })
})

describe('block / drain', () => {
  it('block / drain / begin waits for the request in flight and holds new ones back', async () => {
    const held = new HeldDriver()
    const graph = memoryGraph(held.definition)
    await graph.add(memory('base'))
    const node = await graph.add({ driver: 'held', 'node-name': 'h', file: 'base' })
    const user = await guest(graph, node)
    held.hold = latch()
    const first = user.pwrite(0, new Uint8Array(512))
    const order: string[] = []
    const began = graph.drainedBegin(node).then(() => order.push('drained'))
    const second = Promise.resolve(user.pwrite(512, new Uint8Array(512))).then(() =>
      order.push('second'),
    )
    expect(user.queued).toBe(1)
    void first?.then(() => order.push('first'))
    held.hold.open()
    await began
    expect(order).toEqual(['first', 'drained'])
    expect(node.gate.inFlight).toBe(0)
    expect(held.counts).toMatchObject({ begin: 1, end: 0, write: 1 })
    graph.drainedEnd(node)
    await second
    expect(held.counts).toMatchObject({ begin: 1, end: 1, write: 2 })
    expect(node.gate.quiesceCount).toBe(0)
  })

  it('block / drain / a filter inserted under a drain is drained, and removal restores the user', async () => {
    const held = new HeldDriver()
    const graph = memoryGraph(held.definition)
    const base = await graph.add(memory('base'))
    const user = await guest(graph, base)
    await graph.drainedBegin(base)
    const filter = await graph.insertFilter({ driver: 'held', file: 'base' }, base)
    expect(filter.gate.quiesceCount).toBe(1)
    expect(user.node).toBe(filter)
    const write = fill(user, 7, 0, 512)
    graph.drainedEnd(base)
    await write
    expect(held.counts.write).toBe(1)
    await graph.removeFilter(filter)
    expect(user.node).toBe(base)
    expect(graph.nodes().map((n) => n.name)).toEqual(['base'])
    expect(await patternOf(user, 0, 512)).toBe(7)
    expect(base.gate.quiesceCount).toBe(0)
  })

  it('block / drain / a node born inside drain-all is drained until its end', async () => {
    const graph = memoryGraph()
    await graph.add(memory('a'))
    await graph.drainAllBegin()
    const born = await graph.add(memory('b'))
    expect(born.gate.quiesceCount).toBe(1)
    await graph.remove('a')
    graph.drainAllEnd()
    expect(born.gate.quiesceCount).toBe(0)
  })
})
