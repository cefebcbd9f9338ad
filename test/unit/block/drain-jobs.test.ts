/** What a drained section promises about jobs, by the number it is known by. */
import { describe, expect, it } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { BlockError } from '../../../src/util/errors.ts'
import { guest, memoryGraph } from '../../support/graph.ts'
import { counts, memory, Probes, probe, settles, stepJob, turns } from './probe.ts'

function world(): { graph: ReturnType<typeof memoryGraph>; probes: Probes } {
  const probes = new Probes()
  return { graph: memoryGraph(probes.definition), probes }
}

describe('block / drain / jobs', () => {
  it.each(['node', 'backing', 'target', 'all'] as const)(
    'block / drain / D8 a job is at rest in a section on its %s and runs after it',
    async (what) => {
      const { graph } = world()
      const backing = await graph.add(memory('backing'))
      const node = await graph.add(memory('node', 'backing'))
      const target = await graph.add(memory('target'))
      const { job, finish } = await stepJob(graph, [node, target])
      const drained = { node, backing, target, all: undefined }[what]
      if (drained === undefined) await graph.drainAllBegin()
      else await graph.drainedBegin(drained)
      expect([job.pauseCount, job.busy]).toEqual([what === 'all' ? 2 : 1, false])
      if (drained === undefined) graph.drainAllEnd()
      else graph.drainedEnd(drained)
      expect(job.pauseCount).toBe(0)
      await turns()
      expect(job.busy).toBe(true)
      finish()
      await job.done
      expect(job.error).toBeUndefined()
      expect(counts(graph)).toEqual({ backing: 0, node: 0, target: 0 })
    },
  )

  it.each(['failRun', 'failPrepare'] as const)(
    'block / drain / D8 a section ends also when the job ends by %s',
    async (how) => {
      const { graph } = world()
      const node = await graph.add(memory('node'))
      const { job, finish } = await stepJob(graph, [node], { [how]: new BlockError('EIO', 'no') })
      await graph.drainedBegin(node)
      finish()
      graph.drainedEnd(node)
      await graph.withDrained(node, () => undefined)
      await job.done
      expect(job.error).toMatchObject({ code: 'EIO' })
      expect(counts(graph)).toEqual({ node: 0 })
    },
  )

  it('block / drain / D8 the I/O of a job is not held back while it comes to rest', async () => {
    const { graph } = world()
    const node = await graph.add(memory('node'))
    const own = await BlockBackend.create(graph, node, {
      perm: PERM.WRITE,
      shared: PERM.ALL,
      disableQueuing: true,
    })
    const step = async (): Promise<void> => {
      await new Promise((resolve) => setImmediate(resolve))
      await own.pwrite(0, new Uint8Array(512))
    }
    const { job, finish } = await stepJob(graph, [node], { step })
    await graph.withDrained(node, () => expect([job.busy, own.inFlight]).toEqual([false, 0]))
    finish()
    await job.done
    await own.close()
  })

  it('block / drain / D13 a job that ends with the section may cut the edges that are being walked', async () => {
    const { graph, probes } = world()
    const child = await graph.add(memory('child'))
    const parents = [
      await graph.add(probe('p0', 'child')),
      await graph.add(probe('p1', 'child')),
      await graph.add(probe('p2', 'child')),
    ]
    const cut = (index: number): void => {
      const edge = parents[index]?.child('child.0')
      if (edge !== undefined) graph.detach(edge)
    }
    const { job, finish } = await stepJob(graph, [parents[2] ?? child], {
      commit: async () => {
        await graph.drainAllBegin()
        cut(2)
        cut(0)
        graph.drainAllEnd()
      },
    })
    await graph.drainedBegin(child)
    finish()
    expect(await settles(job.done)).toBe(false)
    graph.drainedEnd(child)
    await job.done
    expect(counts(graph)).toEqual({ child: 0, p0: 0, p1: 0, p2: 0 })
    for (const name of ['p0', 'p1', 'p2'])
      expect(probes.of(name).begin, name).toBe(probes.of(name).end)
  })

  it('block / drain / D14 no job can end while the users of its node are moved', async () => {
    const { graph } = world()
    const from = await graph.add(memory('from'))
    const to = await graph.add(memory('to'))
    const users = [await guest(graph, from), await guest(graph, from)]
    const { job, finish } = await stepJob(graph, [from])
    finish()
    const replaced = graph.replace(from, to)
    expect(job.pauseCount).toBe(1)
    await replaced
    expect(users.map((user) => user.node.name)).toEqual(['to', 'to'])
    await job.done
    expect(counts(graph)).toEqual({ from: 0, to: 0 })
  })

  it('block / drain / D19 a job at rest holds nothing that a change of the graph needs', async () => {
    const { graph } = world()
    const node = await graph.add(memory('node'))
    const user = await guest(graph, node)
    const { job, finish } = await stepJob(graph, [node])
    job.pause()
    expect(await settles(graph.drainAllBegin())).toBe(true)
    const top = await graph.add(memory('top'))
    await graph.replace(node, top)
    graph.drainAllEnd()
    expect([user.node.name, job.busy]).toEqual(['top', false])
    job.resume()
    finish()
    await job.done
  })
})
