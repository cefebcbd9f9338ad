import { describe, expect, it } from 'vitest'
import type { BlockBackend } from '../../../src/block/backend.ts'
import type { BlockGraph } from '../../../src/block/graph.ts'
import { blkdebugDriver, debugPointsOf } from '../../../src/drivers/blkdebug.ts'
import { rawDriver } from '../../../src/drivers/raw.ts'
import { fill, guest, memoryGraph, patternOf } from '../../support/graph.ts'
import { memory, settles } from './probe.ts'

/** raw over blkdebug over a memory disk: raw tells what it is about to do. */
async function open(more = {}): Promise<{ graph: BlockGraph; user: BlockBackend }> {
  const graph = memoryGraph(blkdebugDriver, rawDriver)
  await graph.add(memory('disk'))
  await graph.add({ driver: 'blkdebug', 'node-name': 'debug', image: 'disk', ...more })
  const top = await graph.add({ driver: 'raw', 'node-name': 'top', file: 'debug' })
  return { graph, user: await guest(graph, top) }
}

describe('block / debug points', () => {
  it('block / debug points / the request after an event stops until it is let go, others pass', async () => {
    const { graph, user } = await open()
    const points = debugPointsOf(graph.lookup('debug'))
    points?.suspendAt('write_aio', 'a')
    const write = fill(user, 7, 0, 512)
    await points?.stopped('a')
    expect(await patternOf(user, 0, 512)).toBe(0)
    await fill(user, 8, 512, 512)
    points?.resume('a')
    await write
    expect([await patternOf(user, 0, 512), await patternOf(user, 512, 512)]).toEqual([7, 8])
    expect(() => points?.resume('a')).toThrow("No request stops under 'a'")
  })

  it('block / debug points / a drain waits for a request that stopped', async () => {
    const { graph, user } = await open()
    const points = debugPointsOf(graph.lookup('debug'))
    points?.suspendAt('write_aio', 'a')
    const write = fill(user, 7, 0, 512)
    await points?.stopped('a')
    const section = graph.drainedBegin(graph.lookup('disk'))
    expect(await settles(section)).toBe(false)
    points?.resume('a')
    await Promise.all([section, write])
    graph.drainedEnd(graph.lookup('disk'))
  })

  it('block / debug points / the head of a misaligned write is an event of its own', async () => {
    const rule = { event: 'pwritev_rmw_head', iotype: 'read', errno: 5, once: true }
    const graph = memoryGraph(blkdebugDriver)
    await graph.add(memory('disk'))
    const debug = { driver: 'blkdebug', image: 'disk', align: 4096, 'inject-error': [rule] }
    const user = await guest(graph, await graph.add({ ...debug, 'node-name': 'debug' }))
    await fill(user, 1, 0, 4096)
    await expect(fill(user, 2, 512, 512)).rejects.toMatchObject({ code: 'EIO' })
    expect(await patternOf(user, 0, 4096)).toBe(1)
    await fill(user, 2, 512, 512)
    expect(await patternOf(user, 512, 512)).toBe(2)
  })

  it('block / debug points / only blkdebug nodes have them', async () => {
    const { graph } = await open()
    expect(debugPointsOf(graph.lookup('disk'))).toBeUndefined()
  })
})
