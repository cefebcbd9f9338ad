/** The bitmap that copiers and checkpoints stand on, against plain arrays and brute force. */
import { expect, test } from 'vitest'
import { DirtyBitmap } from '../../../src/sync/dirty-bitmap.ts'
import { hostSeed, Random } from '../../../src/util/random.ts'

const seed = process.env.SEED === undefined ? hostSeed() : Number(process.env.SEED)
const GRANULARITY = 512
/** Regions round which words, and words of words, begin. */
const BORDERS = [0, 1, 31, 32, 33, 63, 64, 65, 4095, 4096, 4097, 262_143, 262_144, 262_145]
const REGIONS = 262_144 + 100

class Both {
  readonly bitmap: DirtyBitmap
  readonly model: Uint8Array
  readonly regions: number

  constructor(regions: number) {
    this.regions = regions
    this.bitmap = DirtyBitmap.create(regions * GRANULARITY, GRANULARITY)
    this.model = new Uint8Array(regions)
  }

  set(first: number, last: number, dirty: boolean): void {
    const from = Math.max(0, first)
    const to = Math.min(this.regions, last)
    if (to <= from) return
    const [offset, bytes] = [from * GRANULARITY, (to - from) * GRANULARITY]
    if (dirty) this.bitmap.setRange(offset, bytes)
    else this.bitmap.clearRange(offset, bytes)
    this.model.fill(dirty ? 1 : 0, from, to)
  }

  agree(where: string): void {
    expect(this.bitmap.count, where).toBe(this.model.reduce((sum, bit) => sum + bit, 0))
    expect(dirtyRegions(this.bitmap), where).toEqual(indexes(this.model))
  }
}

function indexes(model: Uint8Array): number[] {
  const found: number[] = []
  for (const [region, bit] of model.entries()) if (bit === 1) found.push(region)
  return found
}

function dirtyRegions(bitmap: DirtyBitmap): number[] {
  const found: number[] = []
  for (let at = 0; at < bitmap.size; ) {
    const run = bitmap.nextDirty(at)
    if (run === undefined) break
    at = run.offset + run.bytes
    for (let o = run.offset; o < at; o += GRANULARITY) found.push(o / GRANULARITY)
  }
  return found
}

test(`scenario / qcow2 / Q01 set, reset and get across every border (SEED=${seed})`, () => {
  const both = new Both(REGIONS)
  const random = new Random(seed)
  for (const border of BORDERS) {
    for (const length of [1, 2, 31, 32, 64, 65, 4096]) {
      both.set(border - 1, border - 1 + length, true)
      both.set(border + random.int(length), border + length, false)
      for (const at of [border - 1, border, border + length - 1]) {
        if (at < 0 || at >= REGIONS) continue
        expect(both.bitmap.get(at * GRANULARITY), `region ${at}`).toBe(both.model[at] === 1)
        expect(both.bitmap.get(at * GRANULARITY + GRANULARITY - 1)).toBe(both.model[at] === 1)
      }
    }
    both.agree(`border ${border}, seed ${seed}`)
  }
  both.set(0, REGIONS, true)
  expect(both.bitmap.count).toBe(REGIONS)
  both.set(0, REGIONS, false)
  expect(both.bitmap.nextDirty(0)).toBeUndefined()
})

test(`scenario / qcow2 / Q02 a walk meets each set bit once, also while others go (SEED=${seed})`, () => {
  const random = new Random(seed)
  for (let round = 0; round < 40; round++) {
    const both = new Both(9000)
    for (let i = 0; i < 30; i++) {
      const first = random.int(9000)
      both.set(first, first + 1 + random.int(200), true)
    }
    const start = random.int(9000)
    const met = new Set<number>()
    const gone = new Set<number>()
    for (let at = start * GRANULARITY; ; ) {
      const run = both.bitmap.nextDirty(at, (1 + random.int(70)) * GRANULARITY)
      if (run === undefined) break
      expect(run.offset).toBeGreaterThanOrEqual(at)
      at = run.offset + run.bytes
      expect(at).toBeLessThanOrEqual(both.bitmap.size)
      for (let o = run.offset; o < at; o += GRANULARITY) {
        expect(met.has(o / GRANULARITY), `seed ${seed}: region ${o / GRANULARITY} twice`).toBe(
          false,
        )
        met.add(o / GRANULARITY)
      }
      if (random.int(2) === 0) {
        // Ahead of the walk, or all of it.
        const from = random.int(10) === 0 ? 0 : at / GRANULARITY + random.int(300)
        const to = from + 1 + random.int(500)
        for (let r = Math.max(from, at / GRANULARITY); r < Math.min(to, 9000); r++) gone.add(r)
        both.set(from, to, false)
      }
    }
    for (const region of met) expect(gone.has(region)).toBe(false)
    for (const region of indexes(both.model))
      if (region >= start) expect(met.has(region), `seed ${seed}: ${region} missed`).toBe(true)
  }
})

test('scenario / qcow2 / Q05 bytes: little-endian words, in parts, exact both ways', () => {
  const random = new Random(seed)
  const part = 4096
  for (const regions of [1, 7, 8, 33, part, part + 1, 3 * part - 5]) {
    const both = new Both(regions)
    both.set(0, 1, true)
    for (let i = 0; i < 10; i++) {
      const first = random.int(regions)
      both.set(first, first + 1 + random.int(90), true)
    }
    both.set(regions - 1, regions, true)
    const bytes = both.bitmap.toBytes()
    expect(bytes.length % 8).toBe(0)
    for (const [region, bit] of both.model.entries())
      expect(((bytes[region >> 3] ?? 0) >> (region & 7)) & 1).toBe(bit)
    const whole = new Both(regions)
    whole.bitmap.addBytes(bytes)
    whole.model.set(both.model)
    whole.agree(`${regions} regions, seed ${seed}`)
    const parts = new Both(regions)
    for (let at = 0; at < regions; at += part) {
      // A part of zeroes changes nothing, and what lies beyond the end is ignored.
      parts.bitmap.addBytes(new Uint8Array(part / 8), at * GRANULARITY)
      const piece = new Uint8Array(part / 8)
      piece.set(bytes.subarray(at / 8, (at + part) / 8))
      parts.bitmap.addBytes(piece, at * GRANULARITY)
    }
    parts.model.set(both.model)
    parts.agree(`${regions} regions in parts, seed ${seed}`)
    const beyond = new Both(regions)
    beyond.bitmap.addBytes(new Uint8Array(bytes.length).fill(255))
    expect(beyond.bitmap.count).toBe(regions)
    expect(both.bitmap.toBytes(4096).length % 4096).toBe(0)
  }
})

test('scenario / qcow2 / Q06 a walk ends behind a short last region', () => {
  const bitmap = DirtyBitmap.create(10 * 4096 + 512, 4096)
  bitmap.setRange(bitmap.size - 1, 1)
  const run = bitmap.nextDirty(0)
  expect(run).toEqual({ offset: 10 * 4096, bytes: 512 })
  expect(bitmap.nextDirty(bitmap.size)).toBeUndefined()
  expect(bitmap.nextDirty(bitmap.size - 1)).toEqual(run)
})

test(`scenario / qcow2 / Q06 the next dirty stretch and the next clean region (SEED=${seed})`, () => {
  const random = new Random(seed)
  const regions = 5000
  const both = new Both(regions)
  expect(both.bitmap.nextDirty(0)).toBeUndefined()
  for (let round = 0; round < 200; round++) {
    const first = random.int(regions)
    both.set(first, first + 1 + random.int(100), random.int(3) > 0)
    const starts = [...BORDERS, random.int(regions), regions - 1]
    for (const start of starts.filter((at) => at < regions)) {
      for (const limit of [1, 2, 32, 33, 1000]) {
        const dirty = both.model.indexOf(1, start)
        const got = both.bitmap.nextDirty(start * GRANULARITY, limit * GRANULARITY)
        const where = `seed ${seed} round ${round} start ${start} limit ${limit}`
        if (dirty < 0) expect(got, where).toBeUndefined()
        else {
          const clean = both.model.indexOf(0, dirty)
          const end = Math.min(clean < 0 ? regions : clean, dirty + limit)
          const bytes = (end - dirty) * GRANULARITY
          expect(got, where).toEqual({ offset: dirty * GRANULARITY, bytes })
        }
      }
    }
  }
  expect(both.bitmap.nextDirty(both.bitmap.size)).toBeUndefined()
  expect(both.bitmap.nextDirty(both.bitmap.size + 1)).toBeUndefined()
})
