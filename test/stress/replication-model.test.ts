/** The judge accepts what some history explains and nothing else. */
import { describe, expect, test } from 'vitest'
import { History, ReplicationModel, type Span } from './replication-model.ts'

/** One sector with given writes as [tag, start, end]. */
function history(...writes: readonly (readonly [number, number, number])[]): History {
  const made = new History()
  for (const [tag, start, end] of writes) made.add(0, 1, { tag, start, end })
  return made
}

const AT_50: readonly Span[] = [{ start: 50, end: 60 }]

function allowed(forwarded: History, guest: History, start = 100): number[] {
  const model = new ReplicationModel(forwarded, guest, AT_50)
  return [...model.allowed({ sector: 0, start, end: start + 1 })].sort((a, b) => a - b)
}

describe('replication model', () => {
  test('replication model / forwarded writes show from the checkpoint on', () => {
    const forwarded = history([1, 10, 20], [2, 70, 80])
    expect(allowed(forwarded, history())).toEqual([1])
    expect(allowed(forwarded, history(), 30)).toEqual([0])
  })

  test('replication model / a write across a checkpoint may be in it or not', () => {
    expect(allowed(history([1, 10, 20], [2, 55, 80]), history())).toEqual([1, 2])
  })

  test('replication model / own writes show at once and are dropped by a checkpoint', () => {
    const guest = history([3, 10, 20], [4, 70, 80])
    expect(allowed(history([1, 10, 20]), guest, 30)).toEqual([3])
    expect(allowed(history([1, 10, 20]), guest, 65)).toEqual([1])
    expect(allowed(history([1, 10, 20]), guest)).toEqual([4])
  })

  test('replication model / a read during a checkpoint may see either side of it', () => {
    expect(allowed(history([1, 10, 20]), history([3, 30, 40]), 55)).toEqual([1, 3])
  })

  test('replication model / a content without history is named', () => {
    const model = new ReplicationModel(history([1, 10, 20]), history(), AT_50)
    const lost = model.judge([{ sector: 0, tag: 0, start: 100, end: 101 }])
    expect(lost).toContain('sector 0 held 0')
  })

  test('replication model / one instant must explain all sectors together', () => {
    const forwarded = new History()
    forwarded.add(0, 1, { tag: 1, start: 51, end: 53 })
    forwarded.add(1, 1, { tag: 2, start: 55, end: 57 })
    const model = new ReplicationModel(forwarded, new History(), AT_50)
    expect(model.oneInstant([1, 2])).toBeUndefined()
    expect(model.oneInstant([1, 0])).toBeUndefined()
    expect(model.oneInstant([0, 0])).toBeUndefined()
    expect(model.oneInstant([0, 2])).toContain('no instant')
  })
})
