import { expect, test } from 'vitest'
import { RateLimit } from '../../../src/job/rate-limit.ts'

test('job / rate limit / a speed of 0 never delays', () => {
  const limit = new RateLimit()
  expect(limit.delay(1 << 30, 0)).toBe(0)
})

test('job / rate limit / what exceeds the quota is paid for afterwards', () => {
  const limit = new RateLimit()
  limit.setSpeed(1000)
  expect(limit.delay(50, 0)).toBe(0)
  expect(limit.delay(150, 10)).toBe(190)
  expect(limit.delay(100, 50)).toBe(250)
  expect(limit.delay(10, 300)).toBe(0)
})
