import { expect, test } from 'vitest'
import { CopyMap } from '../../../src/sync/copy-map.ts'
import { DirtyBitmap } from '../../../src/sync/dirty-bitmap.ts'
import { pendingWaits } from '../../../src/sync/keep-alive.ts'
import { hostSeed, Random } from '../../../src/util/random.ts'

test('sync / copy map / claim, complete, abandon', () => {
  const map = CopyMap.create(4)
  expect(map.clusters).toBe(4)
  expect(map.claim(2)).toBe('untouched')
  expect(map.claim(2)).toBe('claimed')
  expect(map.claims).toBe(1)
  map.abandon(2)
  expect(map.state(2)).toBe('untouched')
  expect(map.claim(2)).toBe('untouched')
  map.complete(2)
  expect(map.claim(2)).toBe('copied')
  expect(map.state(1)).toBe('untouched')
  expect(map.claims).toBe(0)
  expect(() => map.complete(2)).toThrow('only a claimed cluster')
})

test('sync / copy map / one store makes all clusters untouched', () => {
  const map = CopyMap.create(3)
  for (const cluster of [0, 1, 2]) {
    map.claim(cluster)
    map.complete(cluster)
  }
  expect(map.bumpEpoch()).toBe(2)
  for (const cluster of [0, 1, 2]) expect(map.state(cluster)).toBe('untouched')
  map.claim(0)
  expect(() => map.bumpEpoch()).toThrow('no cluster is claimed')
  expect(map.rearm()).toBe(3)
  expect(map.claims).toBe(0)
  expect(map.state(0)).toBe('untouched')
})

test('sync / copy map / the last epoch clears every word', () => {
  const map = CopyMap.create(2)
  map.words[0] = 0x3fff_ffff
  map.claim(1)
  map.complete(1)
  expect(map.state(1)).toBe('copied')
  expect(map.bumpEpoch()).toBe(1)
  expect(map.state(1)).toBe('untouched')
  expect([...map.words.subarray(3)]).toEqual([0, 0])
})

test('sync / copy map / waiters look again when the claim is settled or void', async () => {
  const map = CopyMap.create(1)
  expect(map.whenSettled(0)).toBeUndefined()
  map.claim(0)
  const first = map.whenSettled(0)
  const second = map.whenSettled(0)
  expect(first).toBeInstanceOf(Promise)
  map.complete(0)
  await Promise.all([first, second])
  map.bumpEpoch()
  map.claim(0)
  const third = map.whenSettled(0)
  map.rearm()
  await third
  expect(pendingWaits()).toBe(0)
  map.dispose()
})

test('sync / dirty bitmap / like a set of regions, whatever is done to it', () => {
  const random = new Random(hostSeed())
  const granularity = 512
  const size = 200 * granularity - 100
  const bitmap = DirtyBitmap.create(size, granularity)
  const other = new DirtyBitmap(bitmap.words, size, granularity)
  const model = new Set<number>()
  for (let step = 0; step < 400; step += 1) {
    const offset = random.int(size)
    const bytes = 1 + random.int(Math.min(size - offset, random.chance(0.3) ? size : 5000))
    const first = Math.floor(offset / granularity)
    const last = Math.floor((offset + bytes - 1) / granularity)
    const dirty = random.chance(0.5)
    if (dirty) bitmap.setRange(offset, bytes)
    else other.clearRange(offset, bytes)
    for (let region = first; region <= last; region += 1) {
      if (dirty) model.add(region)
      else model.delete(region)
    }
    const seed = `seed ${random.seed} step ${step}`
    expect(bitmap.count, seed).toBe(model.size)
    expect(walk(bitmap), seed).toEqual([...model].sort((a, b) => a - b))
  }
})

/** Every dirty region, found run by run. */
function walk(bitmap: DirtyBitmap): number[] {
  const regions: number[] = []
  for (let at = 0; at < bitmap.size; ) {
    const run = bitmap.nextDirty(at, 7 * bitmap.granularity)
    if (run === undefined) break
    at = run.offset + run.bytes
    expect(at).toBeLessThanOrEqual(bitmap.size)
    for (let o = run.offset; o < at; o += bitmap.granularity) regions.push(o / bitmap.granularity)
  }
  return regions
}

test('sync / dirty bitmap / whole disk, last short region, terabytes', () => {
  const bitmap = DirtyBitmap.create(1000, 512)
  bitmap.setAll()
  expect(bitmap.count).toBe(2)
  expect(bitmap.dirtyBytes).toBe(1024)
  expect(bitmap.nextDirty(600)).toEqual({ offset: 512, bytes: 488 })
  bitmap.clearAll()
  expect(bitmap.nextDirty(0)).toBeUndefined()
  const tib = 2 ** 40
  const big = DirtyBitmap.create(8 * tib, 65536)
  big.setRange(8 * tib - 1, 1)
  expect(big.nextDirty(0)).toEqual({ offset: 8 * tib - 65536, bytes: 65536 })
  expect(big.get(8 * tib - 5)).toBe(true)
  expect(big.nextDirty(8 * tib)).toBeUndefined()
})
