import { describe, expect, it } from 'vitest'
import { SECTOR, SectorHistory, tagged } from './sector-history.ts'

const history = (): SectorHistory => new SectorHistory(4)

describe('stress / history', () => {
  it('stress / history / before a write ended both may show, after it only the new one', () => {
    const h = history()
    const tag = h.beginWrite(1)
    h.endRead(h.beginRead(1), tagged(0))
    h.endRead(h.beginRead(1), tagged(tag))
    h.acknowledge(1, tag)
    h.endRead(h.beginRead(1), tagged(tag))
    expect(h.complaints).toEqual([])
    h.endRead(h.beginRead(1), tagged(0))
    expect(h.complaints).toEqual([`sector 1 shows 0, may show ${tag}`])
  })

  it('stress / history / a long read may find what was written meanwhile', () => {
    const h = history()
    const reading = h.beginRead(0)
    const first = h.beginWrite(0)
    h.acknowledge(0, first)
    const second = h.beginWrite(0)
    h.acknowledge(0, second)
    for (const tag of [0, first, second]) h.endRead({ ...reading }, tagged(tag))
    expect(h.complaints).toEqual([])
  })

  it('stress / history / a discard leaves the old data or zeroes, the next write ends that', () => {
    const h = history()
    const tag = h.beginWrite(2)
    h.acknowledge(2, tag)
    h.beginDiscard(2)
    for (const seen of [tag, 0]) h.endRead(h.beginRead(2), tagged(seen))
    const next = h.beginWrite(2)
    h.acknowledge(2, next)
    expect(h.complaints).toEqual([])
    h.endRead(h.beginRead(2), tagged(tag))
    expect(h.complaints).toHaveLength(1)
  })

  it('stress / history / a lost write is caught', () => {
    const h = history()
    h.acknowledge(0, h.beginWrite(0))
    h.judgeAll(new Uint8Array(4 * SECTOR))
    expect(h.complaints).toEqual(['sector 0 shows 0, may show 1'])
  })

  it('stress / history / a write that comes back from the dead is caught', () => {
    const h = history()
    const old = h.beginWrite(0)
    h.acknowledge(0, old)
    const tag = h.beginWrite(0)
    h.acknowledge(0, tag)
    h.endRead(h.beginRead(0), tagged(old))
    expect(h.complaints).toEqual([`sector 0 shows ${old}, may show ${tag}`])
  })

  it('stress / history / a torn sector and one of another are caught', () => {
    const h = history()
    const tag = h.beginWrite(0)
    const torn = tagged(tag)
    torn[SECTOR - 1] = 1
    h.endRead(h.beginRead(0), torn)
    h.endRead(h.beginRead(1), tagged(tag))
    expect(h.complaints).toHaveLength(2)
  })
})
