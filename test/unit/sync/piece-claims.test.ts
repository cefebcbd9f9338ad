import { expect, test } from 'vitest'
import { PieceClaims } from '../../../src/sync/piece-claims.ts'

test('sync / piece claims / a piece has one holder until it gives it back', () => {
  const mine = PieceClaims.create(40)
  const theirs = new PieceClaims(mine.words)
  for (const piece of [0, 31, 32, 39]) {
    expect(mine.take(piece)).toBe(true)
    expect(theirs.take(piece)).toBe(false)
  }
  expect(theirs.take(1)).toBe(true)
  mine.give(31)
  expect(theirs.take(31)).toBe(true)
  for (const piece of [0, 32, 39]) mine.give(piece)
  for (const piece of [1, 31]) theirs.give(piece)
  expect(mine.idle).toBe(true)
})

test('sync / piece claims / giving back what nobody holds is a mistake', () => {
  const claims = PieceClaims.create(1)
  expect(() => claims.give(0)).toThrow('given back by its holder')
  expect(() => claims.take(32)).toThrow('the claims cover the piece')
})
