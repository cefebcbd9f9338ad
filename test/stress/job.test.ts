import { expect, test } from 'vitest'
import { BlockBackend } from '../../src/block/backend.ts'
import { PERM } from '../../src/block/driver.ts'
import { copyBeforeWriteDriver } from '../../src/drivers/copy-before-write.ts'
import { type RunningBackup, startBackup } from '../../src/job/backup.ts'
import { copyBeforeWriteOf, insertCopyBeforeWrite } from '../../src/job/cbw.ts'
import { startCommit } from '../../src/job/commit.ts'
import { MirrorDriver } from '../../src/job/mirror.ts'
import { BlockError } from '../../src/util/errors.ts'
import { hostSeed, Random } from '../../src/util/random.ts'
import { bench, readAt, turn } from '../unit/job/fixture.ts'

const SECTOR = 512
const SIZE = 4 * 1024 * 1024
const WRITERS = 4
const SECONDS = 4

const seed = Number(process.env.SEED ?? hostSeed())

function equal(a: Uint8Array, b: Uint8Array, what: string): void {
  if (Buffer.compare(a, b) === 0) return
  const at = a.findIndex((byte, i) => byte !== b[i])
  throw new Error(`${what}: byte ${at} is ${a[at]}, not ${b[at]} (SEED=${seed})`)
}

/** Writers own interleaved sectors, so that they meet in every cluster yet never in a sector. */
function writeOne(
  random: Random,
  guest: BlockBackend,
  model: Uint8Array,
  writer: number,
): Promise<boolean> {
  const sector = random.int(SIZE / SECTOR / WRITERS) * WRITERS + writer
  const value = random.int(256)
  const buf = new Uint8Array(SECTOR).fill(value)
  return (async () => {
    try {
      await guest.pwrite(sector * SECTOR, buf)
    } catch (thrown) {
      // A refused write must not have reached the disk.
      if (thrown instanceof BlockError && thrown.message.includes('is lost')) return false
      if (thrown instanceof BlockError && thrown.message.includes('worker thread')) return false
      throw thrown
    }
    model.fill(value, sector * SECTOR, (sector + 1) * SECTOR)
    return true
  })()
}

test('stress / job / the view of the last checkpoint holds through dying workers', async () => {
  const random = new Random(seed)
  await using b = bench(copyBeforeWriteDriver)
  const source = await b.add({ driver: 'memory', 'node-name': 'source', size: SIZE })
  const hidden = await b.add({
    driver: 'memory',
    'node-name': 'hidden',
    size: SIZE,
    backing: 'source',
  })
  const guest = await b.guest(source)
  const node = await insertCopyBeforeWrite(b.graph, source, hidden)
  const filter = copyBeforeWriteOf(node)
  const view = await BlockBackend.create(b.graph, hidden, {
    perm: PERM.CONSISTENT_READ,
    shared: PERM.ALL,
  })
  const arm = (): Promise<RunningBackup> =>
    startBackup(b.graph, b.registry, b.pool, {
      internal: true,
      source,
      target: hidden,
      sync: 'none',
      filter: node,
    })
  let backup = await arm()
  const model = new Uint8Array(SIZE)
  let frozen = model.slice()
  const end = performance.now() + SECONDS * 1000
  let over = false
  let writes = 0
  const writer = async (index: number): Promise<void> => {
    while (!over) {
      const size = 1 + random.int(6)
      const batch: Promise<boolean>[] = []
      if (await writeOne(random, guest, model, index)) writes += 1
      for (let i = 0; i < size; i++) {
        await turn()
        batch.push(writeOne(random, guest, model, index))
        await Promise.all(batch.splice(0))
      }
    }
  }
  const writers = Array.from({ length: WRITERS }, (_, index) => writer(index))
  let epochs = 0
  let deaths = 0
  while (performance.now() < end) {
    for (let i = random.int(20); i > 0; i--) await turn()
    const offset = random.int(SIZE - 65536)
    equal(await readAt(view, offset, 65536), frozen.subarray(offset, offset + 65536), 'view')
    if (random.int(40) === 0) {
      deaths += 1
      backup.bodies[0]?.terminate()
      await backup.job.done
      equal(await readAt(view, 0, SIZE), frozen, 'view after a death')
      backup = await arm()
    }
    await b.graph.drainedBegin(node)
    await b.graph.drainedBegin(hidden)
    await filter.whenIdle()
    equal(await readAt(hidden.driver!, 0, SIZE), frozen, 'view at a checkpoint')
    await hidden.driver?.makeEmpty?.()
    filter.resetAll()
    frozen = model.slice()
    epochs += 1
    b.graph.drainedEnd(hidden)
    b.graph.drainedEnd(node)
  }
  over = true
  await Promise.all(writers)
  equal(await readAt(guest, 0, SIZE), model, 'disk')
  expect(writes, `SEED=${seed}`).toBeGreaterThan(0)
  expect(epochs).toBeGreaterThan(1)
  expect(filter.counters.inFlight).toBe(0)
  await backup.job.cancelSync()
  await view.close()
  await b.graph.removeFilter(node)
  expect(deaths).toBeGreaterThanOrEqual(0)
}, 60_000)

test('stress / job / commits that are paused, cancelled and killed lose no write', async () => {
  const random = new Random(seed + 1)
  await using b = bench()
  let bottom = await b.add({ driver: 'memory', 'node-name': 'd0', size: SIZE })
  const model = new Uint8Array(SIZE)
  const end = performance.now() + SECONDS * 1000
  let round = 0
  while (performance.now() < end) {
    round += 1
    const top = await b.add({
      driver: 'memory',
      'node-name': `d${round}`,
      size: SIZE,
      backing: bottom.name,
    })
    const guest = await b.guest(top)
    let over = false
    const writers = Array.from({ length: WRITERS }, async (_, index) => {
      while (!over) {
        await writeOne(random, guest, model, index)
        if (random.int(4) === 0) await turn()
      }
    })
    for (let attempt = 0; ; attempt++) {
      for (let i = 0; i < 5; i++) await turn()
      const job = await startCommit(b.graph, b.registry, b.pool, {
        jobId: `c${attempt}`,
        top,
        base: bottom,
        autoComplete: true,
        speed: attempt < 3 ? 64 * 1024 * 1024 : 0,
      })
      const { driver } = job
      for (let i = random.int(50); i > 0 && !job.completed; i--) {
        await turn()
        const what = attempt < 3 ? random.int(30) : -1
        if (what === 0 && driver instanceof MirrorDriver) driver.bodies[0]?.terminate()
        else if (what === 1) job.cancel(true)
        else if (what < 5 && what >= 0)
          await b.graph.withDrained(random.int(2) ? top : bottom, turn)
      }
      await job.done
      if (job.error === undefined) break
      expect(['ECANCELED', 'EIO']).toContain(job.error.code)
      expect(guest.node).toBe(top)
    }
    over = true
    await Promise.all(writers)
    expect(guest.node).toBe(bottom)
    equal(await readAt(guest, 0, SIZE), model, `round ${round}`)
    await guest.close()
    await b.graph.remove(top.name)
    // The next round's base is this one's; a fresh name for a fresh overlay each time.
    bottom = b.graph.lookup(bottom.name)
  }
  expect(round, `SEED=${seed}`).toBeGreaterThan(0)
}, 60_000)
