import { afterEach, expect, it } from 'vitest'
import { FLAG } from '../../../src/block/driver.ts'
import { checkQcow2, readHeader } from '../../../src/drivers/qcow2/check.ts'
import type { Qcow2CreateOptions } from '../../../src/drivers/qcow2/create.ts'
import { encodeNewImage } from '../../../src/drivers/qcow2/create.ts'
import { readSnapshots } from '../../../src/drivers/qcow2/snapshots.ts'
import { crash, History, IMAGE, Recorder, random, SECTOR, SIZE } from './qcow2-crash-support.ts'
import { asSnapshot, drop, storeOf, take } from './qcow2-snapshots-support.ts'
import { Bench, DRIVERS } from './qcow2-support.ts'

let bench: Bench | undefined
afterEach(async () => {
  await bench?.close()
  bench = undefined
})

const flavours: Record<string, Omit<Qcow2CreateOptions, 'size'>> = {
  'clusters of 4k': { clusterSize: 4096 },
  'clusters of 512, refcounts of 64 bits': { clusterSize: 512, refcountBits: 64 },
  'clusters of 64k, extended L2 entries': { extendedL2: true },
  'version 2': { version: 2, clusterSize: 4096 },
  'lazy refcounts': { clusterSize: 4096, lazyRefcounts: true },
}

// `SEEDS=1,2,3` replays these.
const SEEDS = (process.env.SEEDS ?? '501,502,503').split(',').map(Number)

/** Content of every snapshot that was ever taken, by name. */
type Contents = Map<string, Uint8Array>

async function work(
  b: Bench,
  recorder: Recorder,
  next: (below: number) => number,
): Promise<{ history: History; contents: Contents }> {
  const { node, disk } = await b.open(IMAGE)
  const history = new History()
  const contents: Contents = new Map()
  for (let step = 1; step <= 40; step++) {
    const offset = next(SIZE / SECTOR) * SECTOR
    const bytes = Math.min(SIZE - offset, (next(40) + 1) * SECTOR)
    const kind = next(20)
    const list = storeOf(node).list()
    if (kind < 8) {
      history.wrote(step, offset, bytes, step)
      await disk.pwrite(offset, new Uint8Array(bytes).fill(step))
    } else if (kind < 11) {
      history.wrote(step, offset, bytes, 0)
      await disk.pwriteZeroes(offset, bytes, FLAG.MAY_UNMAP)
    } else if (kind < 13) {
      await disk.flush()
      history.flushed(step, recorder.log.length)
    } else if (kind < 17 && list.length < 3) {
      const now = new Uint8Array(SIZE)
      await disk.pread(0, now)
      contents.set(`s${step}`, now)
      await take(b, node, `s${step}`)
      history.flushed(step, recorder.log.length)
    } else if (kind < 19 && list.length > 0) {
      await drop(b, node, list[next(list.length)]?.id ?? '')
      history.flushed(step, recorder.log.length)
    } else {
      history.wrote(step, 0, SIZE, 0)
      await b.graph.withDrained(node, () => node.driver?.makeEmpty?.())
    }
  }
  await b.shut(disk)
  return { history, contents }
}

/** What is unsound about an image as a power cut left it. */
async function examine(
  b: Bench,
  recorder: Recorder,
  left: { bytes: Uint8Array; end: number },
  made: { history: History; contents: Contents },
  cut: number,
): Promise<string[]> {
  const wrong: string[] = []
  recorder.load(left.bytes, left.end)
  const dirty = left.bytes[7] === 3 && ((left.bytes[79] ?? 0) & 1) !== 0
  const after = await b.open({ ...IMAGE, 'read-only': !dirty })
  const file = after.node.children.get('file')
  if (file === undefined) throw new Error('no file child')
  const found = await checkQcow2(file)
  // Without a dirty mark the format cannot say that counts and their bits are being changed.
  const grave = found.messages.filter(
    (text) => text.startsWith('ERROR') && !(left.bytes[7] === 2 && text.includes('OFLAG')),
  )
  if (grave.length > 0) wrong.push(grave.join('; '))
  const got = new Uint8Array(SIZE)
  await after.disk.pread(0, got)
  wrong.push(...made.history.unexplained(got, cut))
  // What the guest writes next must not show in a snapshot.
  const snapshots = await readSnapshots(file, await readHeader(file))
  await b.shut(after.disk)
  const again = await b.open(IMAGE)
  for (let offset = 0; offset < SIZE; offset += 16 * SECTOR)
    await again.disk.pwrite(offset, new Uint8Array(SECTOR).fill(255))
  await b.shut(again.disk)
  const { bytes, end } = recorder
  const kept = bytes.slice(0, end)
  for (const snapshot of snapshots) {
    recorder.load(asSnapshot(kept, snapshot), end)
    const view = await b.open({ ...IMAGE, 'read-only': true })
    const inside = new Uint8Array(SIZE)
    await view.disk.pread(0, inside)
    const should = made.contents.get(snapshot.name)
    if (should === undefined || Buffer.compare(inside, should) !== 0)
      wrong.push(`snapshot ${snapshot.name} differs`)
    await b.shut(view.disk)
  }
  return wrong
}

async function explore(
  options: Omit<Qcow2CreateOptions, 'size'>,
  seed: number,
  rounds: number,
  lies = false,
): Promise<string[]> {
  const next = random(seed)
  const recorder = new Recorder()
  recorder.lies = lies
  bench = new Bench([...DRIVERS, recorder.definition])
  const first = encodeNewImage({ size: SIZE, ...options })
  recorder.load(first, first.length)
  const made = await work(bench, recorder, next)
  const log = [...recorder.log]
  const unsound: string[] = []
  for (let round = 0; round < rounds; round++) {
    const cut = next(log.length + 1)
    const left = crash(first, log, cut, next)
    // On a disk that lies the image may not even open.
    const wrong = await examine(bench, recorder, left, made, cut).catch((error) => [String(error)])
    unsound.push(...wrong.map((text) => `seed ${seed}, cut ${cut} of ${log.length}: ${text}`))
  }
  await bench.close()
  return unsound
}

for (const [name, options] of Object.entries(flavours))
  it(`qcow2 / snapshots / crash / ${name} / every power cut leaves sound snapshots or none`, async () => {
    for (const seed of SEEDS) expect(await explore(options, seed, 12)).toEqual([])
  })

it('qcow2 / snapshots / crash / a disk that lies about flushes is caught', async () => {
  const lied = await explore({ clusterSize: 4096 }, 501, 15, true)
  expect(lied).not.toEqual([])
})
