import { expect, test } from 'vitest'
import { HostClock, VirtualClock } from '../../../src/util/clock.ts'
import { hostSeed, Random } from '../../../src/util/random.ts'

test('util / virtual clock / runs by deadline, then by order of arming', async () => {
  const clock = new VirtualClock()
  const log: string[] = []
  clock.setTimer(5, () => log.push(`b${clock.nowMs()}`))
  clock.setTimer(2, () => {
    log.push(`a${clock.nowMs()}`)
    clock.setTimer(3, () => log.push(`d${clock.nowMs()}`))
  })
  clock.setTimer(5, () => log.push(`c${clock.nowMs()}`))
  clock.setTimer(4, () => log.push('never')).cancel()
  clock.setImmediate(() => log.push('now'))
  await clock.runUntilIdle()
  expect(log).toEqual(['now', 'a2', 'b5', 'c5', 'd5'])
  await clock.advance(10)
  expect(clock.nowMs()).toBe(15)
  expect(clock.nowNs()).toBe(15_000_000n)
})

test('util / virtual clock / runUntilIdle stops at its limit', async () => {
  const clock = new VirtualClock()
  let fired = 0
  const again = (): void => {
    fired += 1
    clock.setTimer(10, again)
  }
  again()
  await clock.runUntilIdle(35)
  expect(fired).toBe(4)
  expect(clock.armed).toBe(1)
})

test('util / host clock / a timer is never early and can be cancelled', async () => {
  const clock = new HostClock()
  const start = clock.nowMs()
  clock.setTimer(1, () => expect.unreachable()).cancel()
  await new Promise<void>((resolve) => clock.setTimer(3, resolve))
  expect(clock.nowMs() - start).toBeGreaterThanOrEqual(3)
  await new Promise<void>((resolve) => clock.setImmediate(resolve))
  expect(typeof clock.nowNs()).toBe('bigint')
})

test('util / random / same seed, same numbers', () => {
  const seed = hostSeed()
  const a = new Random(seed)
  const b = new Random(seed)
  expect([a.next(), a.int(10), a.pick([1, 2, 3])]).toEqual([b.next(), b.int(10), b.pick([1, 2, 3])])
  expect(a.bytes(new Uint8Array(7))).toEqual(b.bytes(new Uint8Array(7)))
  expect(a.shuffle([1, 2, 3, 4])).toEqual(b.shuffle([1, 2, 3, 4]))
  expect(new Random(1).uint32()).toBe(new Random(1).uint32())
  expect(a.fork().seed).toBe(b.fork().seed)
})

test('util / random / numbers are spread evenly', () => {
  const random = new Random(42)
  const counts = [0, 0, 0, 0]
  for (let i = 0; i < 4000; i += 1) {
    const n = random.int(4)
    counts[n] = (counts[n] ?? 0) + 1
  }
  for (const count of counts) expect(Math.abs(count - 1000)).toBeLessThan(120)
})
