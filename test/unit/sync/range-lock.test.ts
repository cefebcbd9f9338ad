import { expect, test } from 'vitest'
import { pendingWaits } from '../../../src/sync/keep-alive.ts'
import { RangeLock } from '../../../src/sync/range-lock.ts'

async function settle(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve))
}

test('sync / range lock / plain requests overlap, serialising ones exclude', async () => {
  const lock = RangeLock.create(1)
  const a = lock.lock(0, 4096, false)
  const b = lock.lock(0, 4096, false)
  const apart = lock.lock(4096, 10, true)
  for (const slot of [a, b, apart]) expect(typeof slot).toBe('number')
  const log: string[] = []
  const c = lock.lock(100, 1, true)
  expect(c).toBeInstanceOf(Promise)
  void Promise.resolve(c).then(() => log.push('serialising'))
  // Later and in conflict with the waiting serialising one: stands behind it.
  const d = Promise.resolve(lock.lock(0, 200, false))
  void d.then(() => log.push('behind'))
  lock.unlock(await a)
  await settle()
  expect(log).toEqual([])
  lock.unlock(await b)
  lock.unlock(await c)
  lock.unlock(await d)
  lock.unlock(await apart)
  expect(log).toEqual(['serialising', 'behind'])
  expect(lock.held).toBe(0)
  expect(pendingWaits()).toBe(0)
  lock.dispose()
})

test('sync / range lock / tryLock takes nothing when something is in the way', () => {
  const lock = RangeLock.create(1)
  const slot = lock.tryLock(0, 10, true)
  expect(slot).toBeGreaterThanOrEqual(0)
  expect(lock.tryLock(5, 10, false)).toBe(-1)
  expect(lock.held).toBe(1)
  lock.unlock(slot)
  expect(() => lock.unlock(slot)).toThrow('unlock follows lock')
})

test('sync / range lock / offsets beyond 2^32 are told apart', () => {
  const lock = RangeLock.create(1)
  const far = 3 * 2 ** 40 + 512
  const slot = lock.tryLock(far, 512, true)
  expect(lock.tryLock(far - 2 ** 40, 512, true)).toBeGreaterThanOrEqual(0)
  expect(lock.tryLock(far - 512, 512, true)).toBeGreaterThanOrEqual(0)
  expect(lock.tryLock(far + 511, 1, false)).toBe(-1)
  lock.unlock(slot)
})

test('sync / range lock / more requests than slots wait for one', async () => {
  const lock = RangeLock.create(1)
  const slots: (number | Promise<number>)[] = []
  for (let i = 0; i < 66; i += 1) slots.push(lock.lock(i * 10, 10, true))
  expect(slots.slice(0, 64).every((slot) => typeof slot === 'number')).toBe(true)
  expect(slots[64]).toBeInstanceOf(Promise)
  lock.unlock(await (slots[3] as number))
  lock.unlock(await (slots[4] as number))
  for (const [i, slot] of slots.entries()) if (i !== 3 && i !== 4) lock.unlock(await slot)
  expect(lock.held).toBe(0)
  expect(pendingWaits()).toBe(0)
})

test('sync / range lock / what a dead thread held is given up', async () => {
  const lock = RangeLock.create(1)
  const worker = new RangeLock(lock.words, 0, 7)
  worker.lockBlocking(0, 100, true)
  worker.lockBlocking(200, 100, false)
  const mine = lock.lock(50, 10, false)
  expect(mine).toBeInstanceOf(Promise)
  expect(lock.releaseDead(7)).toBe(2)
  lock.unlock(await mine)
  expect(lock.held).toBe(0)
})
