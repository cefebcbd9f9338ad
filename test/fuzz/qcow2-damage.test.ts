/**
 * Images damaged at random: opened, read, checked and repaired here, checked by qemu-img there.
 * `SEED=n` replays a run, `ROUNDS=n` makes it longer.
 */
import { spawnSync } from 'node:child_process'
import * as fs from 'node:fs'
import { afterEach, describe, expect, test } from 'vitest'
import { FLAG } from '../../src/block/driver.ts'
import { checkQcow2 } from '../../src/drivers/qcow2/check.ts'
import { createQcow2, type Qcow2CreateOptions } from '../../src/drivers/qcow2/create.ts'
import { BlockError } from '../../src/util/errors.ts'
import { Random } from '../../src/util/random.ts'
import { take } from '../unit/drivers/qcow2-snapshots-support.ts'
import { Bench, haveTool, qcow2 } from '../unit/drivers/qcow2-support.ts'

// The other side of the comparison is not ours, so a run that nobody asked for holds no surprise.
const seed = Number(process.env.SEED ?? 7)
const ROUNDS = Number(process.env.ROUNDS ?? 60)
const SIZE = 512 * 1024
/** No image here needs more than this to be looked at, nor anything near it. */
const MOST_MS = 15_000
const MOST_BYTES = 256 * 1024 * 1024

const flavours: Omit<Qcow2CreateOptions, 'size'>[] = [
  { clusterSize: 4096 },
  { clusterSize: 512, refcountBits: 64 },
  { clusterSize: 16_384, extendedL2: true },
  { clusterSize: 4096, version: 2 },
  { clusterSize: 512, refcountBits: 1 },
  { clusterSize: 65_536 },
]

let bench: Bench | undefined
afterEach(async () => {
  await bench?.close()
  bench = undefined
})

/** An image with some of everything. */
async function makeImage(b: Bench, options: Omit<Qcow2CreateOptions, 'size'>, random: Random) {
  const path = b.path('good')
  await createQcow2(path, { size: SIZE, ...options })
  const { node, disk } = await b.open(qcow2(path))
  for (let i = 0; i < 6; i++) {
    const offset = random.int(SIZE / 512) * 512
    const bytes = Math.min(SIZE - offset, (1 + random.int(100)) * 512)
    await disk.pwrite(offset, new Uint8Array(bytes).fill(i + 1))
  }
  await disk.pwriteZeroes(random.int(4) * 65_536, 65_536, FLAG.MAY_UNMAP)
  if (options.refcountBits !== 1) {
    const packed = new Uint8Array(65_536).fill(9)
    await disk.pwrite(256 * 1024, packed, FLAG.WRITE_COMPRESSED)
    if (random.int(2) === 0) await take(b, node, 'first')
    await disk.pwrite(random.int(100) * 512, new Uint8Array(20_000).fill(7))
    if (random.int(2) === 0) await take(b, node, 'second')
  }
  if (options.version !== 2 && random.int(3) === 0) {
    node.bitmaps.add({ name: 'marks', persistent: true })
    await disk.pwrite(random.int(100) * 512, new Uint8Array(2000).fill(8))
  }
  await b.shut(disk)
  return fs.readFileSync(path)
}

/** Where the extension of bitmaps, their directory and their first table lie. */
function bitmapPlaces(image: Buffer): { at: number; bytes: number }[] {
  const found = image.indexOf(Buffer.from([0x23, 0x85, 0x28, 0x75]))
  if (found < 0 || found > 1000) return []
  const directory = Number(image.readBigUInt64BE(found + 24))
  const table = Number(image.readBigUInt64BE(directory))
  return [
    { at: found, bytes: 32 },
    { at: directory, bytes: 32 },
    { at: table, bytes: 8 },
  ]
}

/** Where metadata lie: header, refcount table and blocks, L1 and L2 tables, snapshot table. */
function metadataPlaces(image: Buffer): { at: number; bytes: number }[] {
  const clusterBytes = 2 ** image.readUInt32BE(20)
  const places = [{ at: 0, bytes: 112 }]
  const number = (at: number): number => Number(image.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n)
  const table = number(48)
  places.push({ at: table, bytes: 64 })
  const block = number(table)
  places.push({ at: block, bytes: Math.min(clusterBytes, 256) })
  const l1 = number(40)
  const entries = image.readUInt32BE(36)
  places.push({ at: l1, bytes: entries * 8 })
  for (let i = 0; i < entries; i++) {
    const l2 = number(l1 + i * 8)
    if (l2 !== 0) places.push({ at: l2, bytes: clusterBytes }, { at: l2, bytes: 64 })
  }
  places.push(...bitmapPlaces(image))
  if (image.readUInt32BE(60) > 0) places.push({ at: number(64), bytes: 160 })
  return places
}

function damage(image: Buffer, random: Random): string[] {
  const places = metadataPlaces(image)
  const notes: string[] = []
  for (let i = 1 + random.int(3); i > 0; i--) {
    const { at, bytes } = random.pick(places)
    const where = at + random.int(bytes)
    const old = image[where] ?? 0
    const kind = random.int(4)
    const value = kind === 0 ? 0 : kind === 1 ? random.int(256) : old ^ (1 << random.int(8))
    if (where >= image.length) continue
    image[where] = value
    notes.push(`${where.toString(16)}: ${old.toString(16)} -> ${value.toString(16)}`)
  }
  return notes
}

type Verdict = 'clean' | 'leaks' | 'corrupt' | 'refused'

async function ours(b: Bench, path: string): Promise<{ verdict: Verdict; words: string }> {
  let disk: Awaited<ReturnType<Bench['open']>>['disk'] | undefined
  try {
    const opened = await b.open(qcow2(path, { 'read-only': true, backing: null }))
    disk = opened.disk
    const file = opened.node.child('file')
    if (file === undefined) throw new Error('no file')
    const result = await checkQcow2(file)
    const words = result.messages.join('; ')
    const verdict = result.corruptions > 0 ? 'corrupt' : result.leaks > 0 ? 'leaks' : 'clean'
    return { verdict, words }
  } catch (error) {
    if (!(error instanceof BlockError)) throw error
    return { verdict: 'refused', words: error.message }
  } finally {
    if (disk !== undefined) await b.shut(disk)
  }
}

/** Reads all of it; errors are answers, anything else is not. */
async function readAll(b: Bench, path: string): Promise<void> {
  await tolerate(async () => {
    const { disk } = await b.open(qcow2(path, { 'read-only': true, backing: null }))
    try {
      const step = 65_536
      for (let at = 0; at < Math.min(disk.length(), 4 * SIZE); at += step) {
        const bytes = Math.min(step, disk.length() - at)
        await tolerate(() => Promise.resolve(disk.pread(at, new Uint8Array(bytes))))
      }
    } finally {
      await b.shut(disk)
    }
  })
}

/** Opens for writing, which repairs what says that it needs it, and changes a little. */
async function change(b: Bench, path: string): Promise<void> {
  await tolerate(async () => {
    const { node, disk } = await b.open(qcow2(path, { backing: null }))
    try {
      for (let at = 0; at + 3000 <= Math.min(disk.length(), SIZE); at += 100_000)
        await tolerate(() => Promise.resolve(disk.pwrite(at, new Uint8Array(3000).fill(1))))
      await tolerate(() => Promise.resolve(disk.pwriteZeroes(0, 65_536, FLAG.MAY_UNMAP)))
      await tolerate(() => take(b, node, 'after').then(() => undefined))
      await tolerate(() => Promise.resolve(disk.flush()))
    } finally {
      await b.shut(disk)
    }
  })
}

async function tolerate(body: () => Promise<void>): Promise<void> {
  try {
    await body()
  } catch (error) {
    if (!(error instanceof BlockError)) throw error
  }
}

function theirs(path: string): { verdict: Verdict; words: string } {
  const done = spawnSync('qemu-img', ['check', '-U', '-f', 'qcow2', path], {
    encoding: 'utf8',
    timeout: 20_000,
  })
  const verdicts: Record<number, Verdict> = { 0: 'clean', 2: 'corrupt', 3: 'leaks' }
  const words = `${done.stdout}${done.stderr}`.slice(0, 600)
  return { verdict: verdicts[done.status ?? 1] ?? 'refused', words }
}

/** What is wrong here may not pass for right, nor the other way round. */
function agree(mine: Verdict, other: Verdict): boolean {
  if (mine === other) return true
  // An image that one refuses as a whole the other may open and call corrupt.
  const bad = (verdict: Verdict): boolean => verdict === 'corrupt' || verdict === 'refused'
  return bad(mine) && bad(other)
}

describe.skipIf(!haveTool('qemu-img'))(`fuzz / qcow2 (needs qemu-img; SEED=${seed})`, () => {
  test('fuzz / qcow2 / a damaged image is refused, or its damage is seen', async () => {
    const random = new Random(seed)
    const wrong: string[] = []
    for (let round = 0; round < ROUNDS; round++) {
      bench = new Bench()
      const good = await makeImage(bench, random.pick(flavours), random)
      const image = Buffer.from(good)
      const notes = damage(image, random)
      const path = bench.path('bad')
      fs.writeFileSync(path, image)
      const where = `seed ${seed} round ${round}: ${notes.join(', ')}`
      const before = process.memoryUsage().rss
      const started = performance.now()
      const mine = await ours(bench, path)
      await readAll(bench, path)
      expect(Buffer.compare(fs.readFileSync(path), image), `${where}: changed`).toBe(0)
      const other = theirs(path)
      if (!agree(mine.verdict, other.verdict)) {
        wrong.push(
          `${where}\n  here ${mine.verdict}: ${mine.words}\n  there ${other.verdict}: ${other.words}`,
        )
        if (process.env.KEEP) fs.writeFileSync(`${process.env.KEEP}/${round}.qcow2`, image)
      }
      await change(bench, path)
      expect(performance.now() - started, `${where}: took long`).toBeLessThan(MOST_MS)
      const grown = process.memoryUsage().rss - before
      expect(grown, `${where}: took memory`).toBeLessThan(MOST_BYTES)
      await bench.close()
    }
    expect(wrong).toEqual([])
  }, 120_000)
})
