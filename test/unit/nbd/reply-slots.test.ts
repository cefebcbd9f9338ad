import { expect, test } from 'vitest'
import { ClientRequest } from '../../../src/nbd/client-request.ts'
import { REPLY_SLOTS, ReplySlots } from '../../../src/nbd/reply-slots.ts'

const request = (): ClientRequest => new ClientRequest(0, 0, 0, 512, undefined, Infinity)

test('nbd / reply slots / a cookie names its request until that has ended', () => {
  const slots = new ReplySlots()
  const asked = Array.from({ length: REPLY_SLOTS }, request)
  const cookies = asked.map((one) => slots.take(one))
  expect(new Set(cookies).size).toBe(REPLY_SLOTS)
  expect(cookies.map((cookie) => slots.at(cookie))).toEqual(asked)
  expect(slots.size).toBe(REPLY_SLOTS)
  expect(() => slots.take(request())).toThrow(/assertion failed/)
  for (const cookie of cookies) slots.give(cookie)
  expect(slots.size).toBe(0)
})

test('nbd / reply slots / a second reply, and one of another round, finds nothing', () => {
  const slots = new ReplySlots()
  const first = slots.take(request())
  slots.give(first)
  expect(slots.at(first)).toBeUndefined()
  const again = request()
  const second = slots.take(again)
  expect([slots.at(first), slots.at(second)]).toEqual([undefined, again])
  expect(slots.at(second + REPLY_SLOTS)).toBeUndefined()
  expect(() => slots.give(first)).toThrow(/assertion failed/)
})
