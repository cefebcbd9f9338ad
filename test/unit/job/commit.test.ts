import { expect, test } from 'vitest'
import { startCommit } from '../../../src/job/commit.ts'
import { bench, pattern, readAt } from './fixture.ts'

const MIB = 1024 * 1024

test('job / commit / folds two layers into the base and moves the guest there', async () => {
  await using b = bench()
  const base = await b.add({ driver: 'memory', 'node-name': 'base', size: 8 * MIB })
  await (await b.guest(base)).pwrite(0, pattern(0x11, 8 * MIB))
  await b.add({ driver: 'memory', 'node-name': 'mid', size: 8 * MIB, backing: 'base' })
  const mid = b.graph.lookup('mid')
  const midGuest = await b.guest(mid)
  await midGuest.pwrite(MIB, pattern(0x22, MIB))
  await midGuest.close()
  const top = await b.add({ driver: 'memory', 'node-name': 'top', size: 8 * MIB, backing: 'mid' })
  const guest = await b.guest(top)
  await guest.pwrite(2 * MIB + 512, pattern(0x33, 4096))
  const job = await startCommit(b.graph, b.registry, b.pool, {
    jobId: 'c',
    top,
    base,
    autoComplete: true,
  })
  await job.done
  expect(job.error).toBeUndefined()
  expect(guest.node).toBe(base)
  expect((await readAt(guest, 0, 1))[0]).toBe(0x11)
  expect((await readAt(guest, MIB, 1))[0]).toBe(0x22)
  expect(await readAt(guest, 2 * MIB + 511, 3)).toEqual(new Uint8Array([0x11, 0x33, 0x33]))
  expect(b.events.filter((e) => !e.startsWith('X'))).toEqual([
    'created',
    'running',
    'ready',
    'BLOCK_JOB_READY',
    'waiting',
    'pending',
    'BLOCK_JOB_COMPLETED',
    'concluded',
    'null',
  ])
  expect(base.gate.inFlight).toBe(0)
  expect(base.gate.quiesceCount).toBe(0)
})
