import { expect, test } from 'vitest'
import type { BlockBackend } from '../../../src/block/backend.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { type CommitOptions, startCommit } from '../../../src/job/commit.ts'
import type { Job } from '../../../src/job/job.ts'
import { MirrorDriver } from '../../../src/job/mirror.ts'
import { BlockError } from '../../../src/util/errors.ts'
import { hostSeed, Random } from '../../../src/util/random.ts'
import { type Bench, bench, isAll, pattern, plainDisk, readAt, turn, until } from './fixture.ts'

const MIB = 1024 * 1024

interface Pair {
  readonly base: BlockNode
  readonly top: BlockNode
  readonly guest: BlockBackend
  start(more?: Partial<CommitOptions>): Promise<Job>
}

/** An overlay over a base of 0x11; the overlay holds 0x22 in its first half. */
async function pair(b: Bench, size: number, baseDriver = 'memory'): Promise<Pair> {
  const base = await b.add({ driver: baseDriver, 'node-name': 'base', size })
  const below = await b.guest(base)
  await below.pwrite(0, pattern(0x11, size))
  const top = await b.add({ driver: 'memory', 'node-name': 'top', size, backing: 'base' })
  const guest = await b.guest(top)
  await guest.pwrite(0, pattern(0x22, size / 2))
  return {
    base,
    top,
    guest,
    start: (more = {}) =>
      startCommit(b.graph, b.registry, b.pool, {
        jobId: 'c',
        top,
        base,
        autoComplete: true,
        ...more,
      }),
  }
}

/** Everything is as if the job had never been, but for what the base got. */
function expectAtRest(b: Bench): void {
  for (const node of b.graph.nodes()) {
    expect([node.name, node.gate.inFlight, node.gate.quiesceCount]).toEqual([node.name, 0, 0])
    expect(node.writeListeners.size).toBe(0)
    for (const edge of node.parents) expect(edge.role).not.toBe('job')
  }
  expect(b.registry.all()).toEqual([])
}

test('job / commit / folds two layers into the base and moves the guest there', async () => {
  await using b = bench()
  const base = await b.add({ driver: 'memory', 'node-name': 'base', size: 8 * MIB })
  await (await b.guest(base)).pwrite(0, pattern(0x11, 8 * MIB))
  const mid = await b.add({
    driver: 'memory',
    'node-name': 'mid',
    size: 8 * MIB,
    backing: 'base',
  })
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
  expect(isAll(await readAt(guest, 0, MIB), 0x11)).toBe(true)
  expect(isAll(await readAt(guest, MIB, MIB), 0x22)).toBe(true)
  expect(await readAt(guest, 2 * MIB + 511, 3)).toEqual(new Uint8Array([0x11, 0x33, 0x33]))
  expect(b.events).toEqual([
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
  expectAtRest(b)
})

test('job / commit / a guest that writes all the time is followed and moved', async () => {
  const seed = hostSeed()
  const random = new Random(seed)
  await using b = bench()
  const p = await pair(b, 16 * MIB)
  const model = new Uint8Array(16 * MIB).fill(0x11)
  model.fill(0x22, 0, 8 * MIB)
  const job = await p.start()
  let over = false
  void job.done.then(() => {
    over = true
  })
  let writes = 0
  while (!over || writes < 200) {
    const bytes = 512 * (1 + random.int(64))
    const offset = 512 * random.int((16 * MIB - bytes) / 512)
    const value = random.int(256)
    await p.guest.pwrite(offset, pattern(value, bytes))
    model.fill(value, offset, offset + bytes)
    writes += 1
    if (writes % 8 === 0) await turn()
  }
  expect(job.error).toBeUndefined()
  const same = Buffer.compare(await readAt(p.guest, 0, 16 * MIB), model) === 0
  expect(same, `seed ${seed}`).toBe(true)
  expect(p.guest.node).toBe(p.base)
  expectAtRest(b)
})

test('job / commit / disks that a worker cannot attach go by proxy', async () => {
  const disk = plainDisk(4 * MIB)
  await using b = bench(disk.definition)
  const p = await pair(b, 4 * MIB, 'plain')
  const job = await p.start()
  await job.done
  expect(job.error).toBeUndefined()
  expect(isAll(disk.data.subarray(0, 2 * MIB), 0x22)).toBe(true)
  expect(isAll(disk.data.subarray(2 * MIB), 0x11)).toBe(true)
  expectAtRest(b)
})

test('job / commit / an error ends it, the view stays, and it can be tried again', async () => {
  const disk = plainDisk(4 * MIB)
  await using b = bench(disk.definition)
  const p = await pair(b, 4 * MIB, 'plain')
  disk.fail.push(new BlockError('ENOSPC', 'full'))
  const failures: (string | undefined)[] = []
  const job = await p.start({ onDone: (error) => void failures.push(error?.code) })
  await job.done
  expect(failures).toEqual(['ENOSPC'])
  expect(p.guest.node).toBe(p.top)
  expect(isAll(await readAt(p.guest, 0, 2 * MIB), 0x22)).toBe(true)
  expectAtRest(b)
  const again = await p.start()
  await again.done
  expect(again.error).toBeUndefined()
  expect(p.guest.node).toBe(p.base)
  expect(isAll(await readAt(p.guest, 0, 2 * MIB), 0x22)).toBe(true)
})

test('job / commit / the death of its worker ends it with a cause', async () => {
  await using b = bench()
  const p = await pair(b, 32 * MIB)
  const job = await p.start({ speed: MIB })
  const { driver } = job
  if (!(driver instanceof MirrorDriver)) throw new Error('a commit is a mirror')
  await until(() => (driver.bodies[0]?.done ?? 0) > 0)
  driver.bodies[0]?.terminate()
  await job.done
  expect(job.error?.message).toMatch(/^The worker thread of the job ended/)
  expect(p.guest.node).toBe(p.top)
  expect(isAll(await readAt(p.guest, 0, 16 * MIB), 0x22)).toBe(true)
  expectAtRest(b)
  const again = await p.start()
  await again.done
  expect(p.guest.node).toBe(p.base)
})

test('job / commit / a drain stops the worker, the end of the drain lets it go on', async () => {
  await using b = bench()
  const p = await pair(b, 32 * MIB)
  const job = await p.start({ speed: 4 * MIB })
  const { driver } = job
  if (!(driver instanceof MirrorDriver)) throw new Error('a commit is a mirror')
  await until(() => (driver.bodies[0]?.done ?? 0) > 0)
  for (const node of [p.base, p.top]) {
    await b.graph.withDrained(node, async () => {
      expect(job.busy).toBe(false)
      const before = driver.bodies[0]?.done
      for (let i = 0; i < 20; i++) await turn()
      expect(driver.bodies[0]?.done).toBe(before)
    })
  }
  await b.graph.drainAllBegin()
  expect(job.busy).toBe(false)
  b.graph.drainAllEnd()
  job.userSetSpeed(0)
  await job.done
  expect(job.error).toBeUndefined()
  expect(isAll(await readAt(p.guest, 0, 16 * MIB), 0x22)).toBe(true)
  expectAtRest(b)
})

test('job / commit / paused by the user it shows so and rests', async () => {
  await using b = bench()
  const p = await pair(b, 16 * MIB)
  const job = await p.start({ speed: MIB })
  job.userPause()
  await until(() => job.status === 'paused')
  expect(job.busy).toBe(false)
  job.userSetSpeed(0)
  job.userResume()
  await job.done
  expect(job.error).toBeUndefined()
  expectAtRest(b)
})

test('job / commit / cancelled before it is ready it leaves the guest where it was', async () => {
  await using b = bench()
  const p = await pair(b, 16 * MIB)
  const job = await p.start({ speed: 65536 })
  await until(() => job.status === 'running' && job.busy)
  expect((await job.cancelSync(false))?.code).toBe('ECANCELED')
  expect(p.guest.node).toBe(p.top)
  expect(isAll(await readAt(p.guest, 0, 8 * MIB), 0x22)).toBe(true)
  expectAtRest(b)
})

test('job / commit / without auto-complete it waits, ready, and keeps up', async () => {
  await using b = bench()
  const p = await pair(b, 4 * MIB)
  const job = await p.start({ autoComplete: false })
  await until(() => job.ready)
  await p.guest.pwrite(3 * MIB, pattern(0x33, 4096))
  job.userComplete()
  await job.done
  expect(p.guest.node).toBe(p.base)
  expect(isAll(await readAt(p.guest, 3 * MIB, 4096), 0x33)).toBe(true)
  expectAtRest(b)
})

test('job / commit / a soft cancel when ready ends in order without moving', async () => {
  await using b = bench()
  const p = await pair(b, 4 * MIB)
  const job = await p.start({ autoComplete: false })
  await until(() => job.ready)
  job.userCancel(false)
  await job.done
  expect(job.error).toBeUndefined()
  expect(b.events).toContain('BLOCK_JOB_COMPLETED')
  expect(p.guest.node).toBe(p.top)
  expectAtRest(b)
})

test('job / commit / bad requests change nothing', async () => {
  await using b = bench()
  const p = await pair(b, 4 * MIB)
  await expect(p.start({ base: p.top })).rejects.toThrow("Can't mirror node into itself")
  const other = await b.add({ driver: 'memory', 'node-name': 'other', size: 4 * MIB })
  await expect(p.start({ base: other })).rejects.toMatchObject({ code: 'EINVAL' })
  await expect(p.start({ jobId: '?' })).rejects.toThrow("Invalid job ID '?'")
  await expect(p.start({ filterNodeName: 'other' })).rejects.toMatchObject({ code: 'EINVAL' })
  expectAtRest(b)
})

test('job / commit / of a layer in between moves the overlay onto the base', async () => {
  await using b = bench()
  const p = await pair(b, 4 * MIB)
  await p.guest.close()
  await b.add({ driver: 'memory', 'node-name': 'over', size: 4 * MIB, backing: 'top' })
  const guest = await b.guest(b.graph.lookup('over'))
  await guest.pwrite(0, pattern(0x33, 65536))
  // Only the overlay holds it now, so it closes when the overlay moves.
  p.top.monitorOwned = false
  b.graph.unref(p.top)
  const job = await p.start({ showReady: false })
  await job.done
  expect(job.error).toBeUndefined()
  expect(b.events).not.toContain('ready')
  // What needed no copy counts as done, also though nobody asked before the source was closed.
  expect([job.total, job.current]).toEqual([4 * MIB, 4 * MIB])
  expect(b.graph.lookup('over').chainNext).toBe(p.base)
  expect(isAll(await readAt(guest, 0, 65536), 0x33)).toBe(true)
  expect(isAll(await readAt(guest, 65536, 2 * MIB - 65536), 0x22)).toBe(true)
  expect(isAll(await readAt(p.base.driver!, 0, 2 * MIB), 0x22)).toBe(true)
  expectAtRest(b)
})

test('job / commit / keeps commands and other jobs off its nodes', async () => {
  await using b = bench()
  const p = await pair(b, 4 * MIB)
  const job = await p.start({ autoComplete: false })
  await until(() => job.ready)
  expect(() => p.top.blockers.check('resize', 'top')).toThrow(
    "Node 'top' is busy: block device is in use by block job: commit",
  )
  await expect(p.start({ jobId: 'd' })).rejects.toMatchObject({ code: 'EPERM' })
  expect(p.top.children.get('backing')?.frozen).toBe(true)
  job.userComplete()
  await job.done
  expect(job.error).toBeUndefined()
  expect(p.top.children.get('backing')?.frozen).toBe(false)
  expect(p.guest.node).toBe(p.base)
  expect(p.base.blockers.reason('resize')?.message).toMatch(/used as backing hd/)
})

test('job / commit / inactive / the overlay moves to the base, which grows', async () => {
  const plain = plainDisk(2 * MIB)
  const { open } = plain.definition
  let length = MIB
  await using b = bench({
    ...plain.definition,
    open: async (node, options, opener) => ({
      ...(await open(node, options, opener)),
      length: () => length,
      truncate: (size) => {
        length = size
      },
    }),
  })
  const base = await b.add({ driver: 'plain', 'node-name': 'base' })
  const mid = await b.add({
    driver: 'memory',
    'node-name': 'mid',
    size: 2 * MIB,
    backing: 'base',
  })
  const writer = await b.guest(mid)
  await writer.pwrite(0, pattern(0x22, 2 * MIB))
  await writer.close()
  const top = await b.add({
    driver: 'memory',
    'node-name': 'top',
    size: 2 * MIB,
    backing: 'mid',
  })
  const guest = await b.guest(top)
  const job = await startCommit(b.graph, b.registry, b.pool, {
    jobId: 'c',
    device: top,
    top: mid,
    base,
    autoComplete: true,
    showReady: false,
  })
  await guest.pwrite(MIB, pattern(0x33, 4096))
  await job.done
  expect(job.error?.message).toBe(undefined)
  expect(b.events).not.toContain('BLOCK_JOB_READY')
  expect(top.chainNext).toBe(base)
  expect(base.length()).toBe(2 * MIB)
  expect(isAll(await readAt(await b.guest(base), 0, 2 * MIB), 0x22)).toBe(true)
  expect(isAll(await readAt(guest, MIB, 4096), 0x33)).toBe(true)
  expectAtRest(b)
})
