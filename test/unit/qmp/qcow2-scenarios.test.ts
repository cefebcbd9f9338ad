import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { createQcow2, type Qcow2CreateOptions } from '../../../src/drivers/qcow2/create.ts'
import { hostSeed, Random } from '../../../src/util/random.ts'
import { Rig } from './rig.ts'

const MiB = 1024 * 1024
const seed = process.env.SEED === undefined ? hostSeed() : Number(process.env.SEED)

let rig: Rig
let dir: string
beforeEach(() => {
  rig = new Rig()
  dir = fs.mkdtempSync(join(tmpdir(), 'blockstep-'))
})
afterEach(async () => {
  await rig.close()
  fs.rmSync(dir, { recursive: true, force: true })
})

const path = (name: string): string => join(dir, name)

async function opened(name: string, size: number, more: Partial<Qcow2CreateOptions> = {}) {
  await createQcow2(path(name), { size, ...more })
  const file = { driver: 'file', filename: path(name) }
  await rig.run('blockdev-add', { driver: 'qcow2', 'node-name': name, file })
  return rig.graph.lookup(name)
}

async function user(name: string): Promise<BlockBackend> {
  const perm = PERM.CONSISTENT_READ | PERM.WRITE
  return BlockBackend.create(rig.graph, rig.graph.lookup(name), { perm, shared: PERM.ALL })
}

const mark = (name: string): number => (fs.readFileSync(path(name))[79] ?? 0) & 1

// Lengths round a region, a word of 32 and a row of them, up and down.
const STEPS = [0, 1, -1, 31, -31, 32, 33, -33, 64, 1000, -1000, 4096, -4095, 7, -64]

test(`scenario / qcow2 / Q04 a bitmap follows the length of its disk (SEED=${seed})`, async () => {
  const random = new Random(seed)
  for (const granularity of [512, 4096]) {
    const name = `g${granularity}`
    const node = await opened(name, MiB)
    await rig.run('block-dirty-bitmap-add', { node: name, name: 'b', granularity })
    const disk = await user(name)
    let size = MiB
    let model = new Uint8Array(size / 512)
    for (const step of [...STEPS, ...STEPS.map((by) => by * (granularity / 512))]) {
      const offset = random.int(size / 512) * 512
      const bytes = Math.min(size - offset, (1 + random.int(2000)) * 512)
      await disk.pwrite(offset, new Uint8Array(bytes).fill(1))
      // The border itself is dirty, so that a bit too many or too few shows.
      await disk.pwrite(size - 512, new Uint8Array(512).fill(1))
      model.fill(1, offset / 512, (offset + bytes) / 512)
      model[size / 512 - 1] = 1
      const next = Math.max(512, size + step * 512)
      await rig.run('block_resize', { 'node-name': name, size: next })
      const grown = new Uint8Array(next / 512)
      grown.set(model.subarray(0, next / 512))
      model = grown
      size = next
      const bits = node.bitmaps.need('b').bits
      const per = granularity / 512
      const should = Array.from({ length: Math.ceil(size / granularity) }, (_, region) =>
        model.subarray(region * per, (region + 1) * per).includes(1),
      )
      const got = should.map((_, region) => bits.get(region * granularity))
      const where = `seed ${seed} granularity ${granularity} step ${step} size ${size}`
      expect(got, where).toEqual(should)
      expect(bits.count, where).toBe(should.filter(Boolean).length)
      expect(bits.size, where).toBe(size)
      // From here on the model knows no more than the bitmap does.
      for (const [region, dirty] of should.entries())
        if (dirty) model.fill(1, region * per, (region + 1) * per)
    }
    await disk.close()
  }
})

const flavours: Record<string, Partial<Qcow2CreateOptions>> = {
  plain: {},
  'clusters of 512': { clusterSize: 512 },
  'clusters of 2M': { clusterSize: 2 * MiB },
  'extended L2': { extendedL2: true },
  'refcounts of 1 bit': { refcountBits: 1 },
  'refcounts of 64 bits': { refcountBits: 64 },
}

for (const [flavour, options] of Object.entries(flavours))
  test(`scenario / qcow2 / Q15 lazy refcounts, ${flavour}: an orderly end leaves no mark`, async () => {
    await opened('a', 4 * MiB, { ...options, lazyRefcounts: true })
    const disk = await user('a')
    expect(mark('a')).toBe(0)
    await disk.pwrite(0, new Uint8Array(512).fill(1))
    expect(mark('a')).toBe(1)
    await disk.flush()
    expect(mark('a')).toBe(1)
    await disk.close()
    await rig.run('blockdev-del', { 'node-name': 'a' })
    expect(mark('a')).toBe(0)
    await opened('b', 4 * MiB, options)
    const other = await user('b')
    await other.pwrite(0, new Uint8Array(512).fill(1))
    await other.flush()
    // What a kill would leave behind here.
    expect(mark('b')).toBe(0)
    await other.close()
  })

test('scenario / qcow2 / Q15 lazy refcounts, switched off by a reopen: the mark goes', async () => {
  await opened('a', 4 * MiB, { lazyRefcounts: true })
  const disk = await user('a')
  await disk.pwrite(0, new Uint8Array(512).fill(1))
  expect(mark('a')).toBe(1)
  const file = { driver: 'file', filename: path('a') }
  const options = { driver: 'qcow2', 'node-name': 'a', file, 'lazy-refcounts': false }
  await rig.run('blockdev-reopen', { options: [options] })
  expect(mark('a')).toBe(0)
  await disk.pwrite(MiB, new Uint8Array(512).fill(1))
  expect(mark('a')).toBe(0)
  await disk.close()
})
