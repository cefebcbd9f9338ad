import { expect, test } from 'vitest'
import { BodyControl } from '../../../src/job/body-control.ts'
import { Copier, type CopierParts, PIECE_BYTES } from '../../../src/job/copier.ts'
import type { DiskView } from '../../../src/job/view.ts'
import { DirtyBitmap } from '../../../src/sync/dirty-bitmap.ts'
import { JobWords } from '../../../src/sync/job-words.ts'
import { PieceClaims } from '../../../src/sync/piece-claims.ts'
import { HostClock } from '../../../src/util/clock.ts'
import { ioError } from '../../../src/util/errors.ts'
import { hostSeed, Random } from '../../../src/util/random.ts'
import { isAll, pattern, turn, until } from './fixture.ts'

const MIB = 1024 * 1024
const ALL = { remaining: 0, passes: 0 }

/** A disk in memory that answers later; `before` runs before each write. */
function slowDisk(data: Uint8Array, before: (offset: number) => Promise<void> = turn): DiskView {
  return {
    length: data.length,
    attached: true,
    blind: false,
    status: (_offset, bytes) => ({ kind: 'data', bytes }),
    async pread(offset, buf) {
      await turn()
      buf.set(data.subarray(offset, offset + buf.length))
    },
    async pwrite(offset, buf) {
      const copy = buf.slice()
      await before(offset)
      data.set(copy, offset)
    },
    async pwriteZeroes(offset, bytes) {
      await before(offset)
      data.fill(0, offset, offset + bytes)
    },
    close: () => undefined,
  }
}

function copier(
  dirty: DirtyBitmap,
  source: DiskView,
  target: DiskView,
  more: Partial<CopierParts> = {},
) {
  const words = JobWords.create()
  const clock = new HostClock()
  const control = new BodyControl(words, clock)
  const buffer = new Uint8Array(new SharedArrayBuffer(PIECE_BYTES))
  const flags = { skipUnallocated: false, findZeroes: false }
  const parts = { source, target, dirty, words, control, buffer, clock, ...flags }
  return { copier: new Copier({ ...parts, ...more }), words, control }
}

test('job / copier / a region longer than a piece is copied whole', async () => {
  const from = pattern(0x5a, 8 * MIB)
  const to = pattern(0, 8 * MIB)
  const dirty = DirtyBitmap.create(8 * MIB, 4 * MIB)
  dirty.setAll()
  const { copier: one, words } = copier(dirty, slowDisk(from), slowDisk(to))
  expect(await one.round(ALL)).toEqual({ kind: 'reached', remaining: 0 })
  expect(isAll(to, 0x5a)).toBe(true)
  expect(words.done).toBe(8 * MIB)
})

test('job / copier / a pause within a long region leaves nothing in flight', async () => {
  let writing = 0
  const to = slowDisk(pattern(0, 8 * MIB), async () => {
    writing += 1
    await turn()
    writing -= 1
  })
  const dirty = DirtyBitmap.create(8 * MIB, 8 * MIB)
  dirty.setAll()
  const { copier: one, words, control } = copier(dirty, slowDisk(pattern(1, 8 * MIB)), to)
  const round = control.work(() => one.round(ALL))
  await until(() => words.done >= MIB)
  words.paused = true
  await control.pause()
  expect(writing).toBe(0)
  const before = words.done
  expect(before).toBeLessThan(8 * MIB)
  for (let i = 0; i < 5; i++) await turn()
  expect(words.done).toBe(before)
  words.cancel()
  control.wake()
  expect(await round).toEqual({ kind: 'cancelled' })
  expect(dirty.count).toBe(1)
})

test('job / copier / a recall ends the round after its piece, and the next goes on', async () => {
  const to = pattern(0, 16 * MIB)
  const dirty = DirtyBitmap.create(16 * MIB, 65536)
  dirty.setAll()
  const { copier: one, words } = copier(dirty, slowDisk(pattern(1, 16 * MIB)), slowDisk(to))
  const round = one.round(ALL)
  await until(() => words.done > 0)
  one.recall()
  expect(await round).toMatchObject({ kind: 'reached' })
  expect(dirty.count).toBeGreaterThan(0)
  expect(await one.round(ALL)).toEqual({ kind: 'reached', remaining: 0 })
  expect(isAll(to, 1)).toBe(true)
})

test('job / copier / a failed write says so and leaves its piece dirty', async () => {
  const target = slowDisk(pattern(0, 4 * MIB), async (offset) => {
    if (offset >= 2 * MIB) throw ioError('ENOSPC')
  })
  const dirty = DirtyBitmap.create(4 * MIB, 65536)
  dirty.setAll()
  const { copier: one } = copier(dirty, slowDisk(pattern(1, 4 * MIB)), target)
  const outcome = await one.round(ALL)
  expect(outcome).toMatchObject({ kind: 'error', operation: 'write', error: { code: 'ENOSPC' } })
  expect(dirty.dirtyBytes).toBe(2 * MIB)
})

/** Two copiers and a guest that writes under them; answers how many bytes went wrong. */
async function race(random: Random, claims: PieceClaims | undefined): Promise<number> {
  const size = 2 * MIB
  const from = pattern(0, size)
  const to = pattern(0, size)
  const dirty = DirtyBitmap.create(size, 65536)
  dirty.setAll()
  const slow = async (): Promise<void> => {
    for (let i = random.int(8); i > 0; i--) await turn()
  }
  const make = () => copier(dirty, slowDisk(from), slowDisk(to, slow), { claims }).copier
  const both = [make(), make()]
  let over = false
  const guest = async (): Promise<void> => {
    for (let i = 1; i < 200; i++) {
      const at = random.int(size / 65536) * 65536
      from.fill(i, at, at + 65536)
      dirty.setRange(at, 65536)
      await turn()
    }
    over = true
  }
  const writing = guest()
  while (!over) await Promise.all(both.map((one) => one.round({ remaining: 0, passes: 4 })))
  await writing
  await Promise.all(both.map((one) => one.round(ALL)))
  expect(dirty.count).toBe(0)
  return from.reduce((wrong, byte, at) => (byte === to[at] ? wrong : wrong + 1), 0)
}

test('job / copier / two on one disk: no older copy lands on a newer one', async () => {
  const seed = Number(process.env.SEED ?? hostSeed())
  for (let i = 0; i < 5; i++) {
    expect(await race(new Random(seed + i), PieceClaims.create(2)), `SEED=${seed + i}`).toBe(0)
  }
})

test('job / copier / two on one disk without claims: the check sees what they lose', async () => {
  let wrong = 0
  for (let i = 0; i < 50 && wrong === 0; i++) wrong += await race(new Random(i), undefined)
  expect(wrong).toBeGreaterThan(0)
}, 60_000)

test('job / copier / what is taken and not yet done counts as in flight', async () => {
  const seen: number[] = []
  const dirty = DirtyBitmap.create(4 * MIB, 65536)
  dirty.setRange(MIB, 65536)
  const to = slowDisk(pattern(0, 4 * MIB), async () => {
    seen.push(words.inFlight, dirty.dirtyBytes, words.done)
  })
  const { copier: one, words } = copier(dirty, slowDisk(pattern(1, 4 * MIB)), to)
  await one.round(ALL)
  expect(seen).toEqual([65536, 0, 0])
  expect([words.inFlight, words.done]).toEqual([0, 65536])
})

test('job / copier / a body that was told to rest or to end while it worked does not sleep', async () => {
  const words = JobWords.create()
  const control = new BodyControl(words, new HostClock())
  words.paused = true
  await control.sleep(2 ** 31)
  words.paused = false
  words.cancel()
  await control.sleep(2 ** 31)
})

test('job / copier / a pause that meets a slow piece does not wait for the next one', async () => {
  const dirty = DirtyBitmap.create(4 * MIB, 65536)
  dirty.setAll()
  const to = slowDisk(pattern(0, 4 * MIB), async () => {
    // The message of the pause arrives while the piece is on its way.
    words.paused = true
    control.wake()
  })
  const { copier: one, words, control } = copier(dirty, slowDisk(pattern(1, 4 * MIB)), to)
  words.speed = 1
  const round = control.work(() => one.round(ALL))
  await until(() => words.done > 0)
  await control.pause()
  words.cancel()
  control.wake()
  expect(await round).toEqual({ kind: 'cancelled' })
})
