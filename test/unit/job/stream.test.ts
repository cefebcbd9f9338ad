import { rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import type { BlockBackend } from '../../../src/block/backend.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { copyOnReadDriver } from '../../../src/drivers/copy-on-read.ts'
import { fileDriver } from '../../../src/drivers/file.ts'
import { createQcow2 } from '../../../src/drivers/qcow2/create.ts'
import { qcow2Driver } from '../../../src/drivers/qcow2/driver.ts'
import type { Job } from '../../../src/job/job.ts'
import { type StreamOptions, startStream } from '../../../src/job/start-stream.ts'
import { ioError } from '../../../src/util/errors.ts'
import { hostSeed, Random } from '../../../src/util/random.ts'
import { type Bench, bench, isAll, pattern, plainDisk, readAt, turn, until } from './fixture.ts'

const MIB = 1024 * 1024

interface Chain {
  readonly base: BlockNode
  readonly mid: BlockNode
  readonly top: BlockNode
  readonly guest: BlockBackend
  start(more?: Partial<StreamOptions>): Promise<Job>
}

/** Three layers: the base is all 0x11, then 0x22 in the first half, then 0x33 in the first MiB. */
async function chain(b: Bench, size: number): Promise<Chain> {
  const base = await b.add({ driver: 'memory', 'node-name': 'base', size })
  await write(b, base, 0, pattern(0x11, size))
  const mid = await b.add({ driver: 'memory', 'node-name': 'mid', size, backing: 'base' })
  await write(b, mid, 0, pattern(0x22, size / 2))
  const top = await b.add({ driver: 'memory', 'node-name': 'top', size, backing: 'mid' })
  await write(b, top, 0, pattern(0x33, MIB))
  const guest = await b.guest(top)
  return { base, mid, top, guest, start: (more = {}) => start(b, top, more) }
}

function start(b: Bench, top: BlockNode, more: Partial<StreamOptions> = {}): Promise<Job> {
  return startStream(b.graph, b.registry, {
    jobId: 's',
    top,
    pool: b.pool,
    nameOf: (node) => node.name,
    ...more,
  })
}

async function write(b: Bench, node: BlockNode, offset: number, data: Uint8Array): Promise<void> {
  const guest = await b.guest(node)
  await guest.pwrite(offset, data)
  await guest.close()
}

function expectAtRest(b: Bench): void {
  for (const node of b.graph.nodes()) {
    expect([node.name, node.gate.inFlight, node.gate.quiesceCount]).toEqual([node.name, 0, 0])
    expect(node.definition.kind).not.toBe('filter')
    for (const edge of node.parents) {
      expect(edge.role).not.toBe('job')
      expect(edge.frozen).toBe(false)
    }
    expect(node.blockers.reason('stream')).toBeUndefined()
  }
  expect(b.registry.all()).toEqual([])
}

test('job / stream / the whole chain is copied and cut off', async () => {
  await using b = bench(copyOnReadDriver)
  const { top, guest, start } = await chain(b, 4 * MIB)
  const job = await start()
  await job.done
  expect(job.error).toBeUndefined()
  expect([job.current, job.total]).toEqual([4 * MIB, 4 * MIB])
  expect(top.chainNext).toBeUndefined()
  expect(isAll(await readAt(guest, 0, MIB), 0x33)).toBe(true)
  expect(isAll(await readAt(guest, MIB, MIB), 0x22)).toBe(true)
  expect(isAll(await readAt(guest, 2 * MIB, 2 * MIB), 0x11)).toBe(true)
  expect(b.events).toEqual([
    'created',
    'running',
    'waiting',
    'pending',
    'BLOCK_JOB_COMPLETED',
    'concluded',
    'null',
  ])
  expectAtRest(b)
})

test('job / stream / bottom / what is below it stays, and nothing of it is copied', async () => {
  await using b = bench(copyOnReadDriver)
  const { base, mid, top, guest, start } = await chain(b, 4 * MIB)
  const job = await start({ bottom: mid })
  await job.done
  expect(job.error).toBeUndefined()
  expect(top.chainNext).toBe(base)
  await write(b, base, 3 * MIB, pattern(0x44, MIB))
  expect(isAll(await readAt(guest, MIB, MIB), 0x22)).toBe(true)
  expect(isAll(await readAt(guest, 3 * MIB, MIB), 0x44)).toBe(true)
  expectAtRest(b)
})

test('job / stream / an image without backing completes at once with length 0', async () => {
  await using b = bench(copyOnReadDriver)
  const only = await b.add({ driver: 'memory', 'node-name': 'only', size: MIB })
  const job = await start(b, only)
  await job.done
  expect([job.error, job.total]).toEqual([undefined, 0])
  expectAtRest(b)
})

test('job / stream / a read-only image in the middle is written and read-only again', async () => {
  await using b = bench(copyOnReadDriver)
  const base = await b.add({ driver: 'memory', 'node-name': 'base', size: MIB })
  await write(b, base, 0, pattern(0x11, MIB))
  const top = await b.add({
    driver: 'memory',
    'node-name': 'top',
    size: MIB,
    backing: { driver: 'memory', 'node-name': 'mid', size: MIB, backing: 'base' },
  })
  const mid = b.graph.lookup('mid')
  const job = await start(b, mid)
  await job.done
  expect(job.error).toBeUndefined()
  expect(mid.readOnly).toBe(true)
  expect(mid.chainNext).toBeUndefined()
  expect(top.chainNext).toBe(mid)
  expect(isAll(await readAt(await b.guest(top), 0, MIB), 0x11)).toBe(true)
  expectAtRest(b)
})

test('job / stream / links / are frozen while it runs, and another stream is refused', async () => {
  await using b = bench(copyOnReadDriver)
  const { start } = await chain(b, 4 * MIB)
  const job = await start({ speed: 1 })
  await expect(start({ jobId: 'other' })).rejects.toThrow(/Cannot (freeze|change)/)
  await job.cancelSync()
  expectAtRest(b)
})

test('job / stream / cancel / the chain stays as it was', async () => {
  await using b = bench(copyOnReadDriver)
  const { mid, top, guest, start } = await chain(b, 4 * MIB)
  const job = await start({ speed: 1 })
  await until(() => job.current > 0)
  const error = await job.cancelSync()
  expect(error?.code).toBe('ECANCELED')
  expect(b.events).toContain('BLOCK_JOB_CANCELLED')
  expect(top.chainNext).toBe(mid)
  expect(isAll(await readAt(guest, 2 * MIB, 2 * MIB), 0x11)).toBe(true)
  expectAtRest(b)
})

test('job / stream / pause / a drained disk is left alone', async () => {
  const plain = plainDisk(4 * MIB)
  await using b = bench(copyOnReadDriver, plain.definition)
  plain.data.fill(0x11)
  await b.add({ driver: 'plain', 'node-name': 'base' })
  const top = await b.add({ driver: 'memory', 'node-name': 'top', size: 4 * MIB, backing: 'base' })
  const job = await start(b, top)
  await b.graph.drainedBegin(top)
  const { current } = job
  for (let i = 0; i < 10; i++) await turn()
  expect([job.current, top.gate.inFlight]).toEqual([current, 0])
  b.graph.drainedEnd(top)
  await job.done
  expect(job.error).toBeUndefined()
  expect(top.chainNext).toBeUndefined()
})

test.each(['report', 'ignore', 'stop'] as const)(
  'job / stream / read error / %s',
  async (policy) => {
    const plain = plainDisk(2 * MIB)
    const failures = [false, true]
    const open = plain.definition.open
    await using b = bench(copyOnReadDriver, {
      ...plain.definition,
      async open(node, options, opener) {
        const driver = await open(node, options, opener)
        return {
          ...driver,
          pread: (offset, buf) => {
            if (failures.shift() === true) throw ioError('EIO', { op: 'read' })
            return driver.pread(offset, buf)
          },
        }
      },
    })
    plain.data.fill(0x11)
    await b.add({ driver: 'plain', 'node-name': 'base' })
    const top = await b.add({
      driver: 'memory',
      'node-name': 'top',
      size: 2 * MIB,
      backing: 'base',
    })
    const job = await start(b, top, { onError: policy })
    if (policy === 'stop') {
      await until(() => job.status === 'paused')
      expect([job.current, job.ioStatus]).toEqual([512 * 1024, 'failed'])
      job.userResume()
    }
    await job.done
    expect(b.events).toContain('BLOCK_JOB_ERROR')
    expect(job.error?.code).toBe(policy === 'stop' ? undefined : 'EIO')
    expect(job.current).toBe(policy === 'report' ? 512 * 1024 : 2 * MIB)
    expect(top.chainNext === undefined).toBe(policy === 'stop')
    expect(isAll(await readAt(await b.guest(top), 0, 2 * MIB), 0x11)).toBe(true)
    expectAtRest(b)
  },
)

test('job / stream / guest / its writes win over copies', async () => {
  const seed = hostSeed()
  const random = new Random(seed)
  const size = 4 * MIB
  const plain = plainDisk(size)
  await using b = bench(copyOnReadDriver, plain.definition)
  plain.data.fill(0x11)
  await b.add({ driver: 'plain', 'node-name': 'base' })
  const top = await b.add({ driver: 'memory', 'node-name': 'top', size, backing: 'base' })
  const guest = await b.guest(top)
  const model = pattern(0x11, size)
  const job = await start(b, top)
  for (let i = 1; !job.completed; i++) {
    const bytes = 512 * (1 + random.int(64))
    const offset = 512 * random.int((size - bytes) / 512)
    const data = pattern(i & 0xff, bytes)
    model.set(data, offset)
    const pending = guest.pwrite(offset, data)
    if (pending !== undefined) await pending
    if (random.int(4) === 0) await turn()
  }
  await job.done
  expect(job.error, `seed ${seed}`).toBeUndefined()
  expect(top.chainNext).toBeUndefined()
  const now = await readAt(guest, 0, size)
  expect(Buffer.compare(now, model), `seed ${seed}`).toBe(0)
  expectAtRest(b)
})

const TOP = { driver: 'qcow2', 'node-name': 'top' }

test('job / stream / bottom / an image in between that is short goes on hiding what is below it', async () => {
  await using b = bench(copyOnReadDriver, qcow2Driver, fileDriver)
  const size = 2 * MIB
  // Ends within a cluster, so that one piece is partly covered.
  const short = MIB + 4096 + 512
  const base = await b.add({ driver: 'memory', 'node-name': 'base', size })
  await write(b, base, 0, pattern(0x11, size))
  const mid = await b.add({ driver: 'memory', 'node-name': 'mid', size: short, backing: 'base' })
  await write(b, mid, 0, pattern(0x22, 65536))
  // A format that need not store zeroes where they show already.
  const filename = join(tmpdir(), `blockstep-short-${process.pid}.qcow2`)
  onTestFinished(() => rmSync(filename, { force: true }))
  await createQcow2(filename, { size })
  const top = await b.add({ ...TOP, file: { driver: 'file', filename }, backing: 'mid' })
  await write(b, top, size - 65536, pattern(0x33, 65536))
  const guest = await b.guest(top)
  const before = await readAt(guest, 0, size)
  const job = await start(b, top, { bottom: mid })
  await job.done
  expect(job.error).toBeUndefined()
  expect([job.current, top.chainNext]).toEqual([size, base])
  const after = await readAt(guest, 0, size)
  expect(Buffer.compare(before, after)).toBe(0)
  expect(isAll(after.subarray(0, 65536), 0x22)).toBe(true)
  expect(isAll(after.subarray(65536, short), 0x11)).toBe(true)
  expect(isAll(after.subarray(short, size - 65536), 0)).toBe(true)
  expect(isAll(after.subarray(size - 65536), 0x33)).toBe(true)
  expectAtRest(b)
})
