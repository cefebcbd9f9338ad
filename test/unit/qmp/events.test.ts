import { describe, expect, test } from 'vitest'
import { EventHub } from '../../../src/qmp/events.ts'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { VirtualClock } from '../../../src/util/clock.ts'

function hub(): { clock: VirtualClock; hub: EventHub; seen: JsonObject[] } {
  const clock = new VirtualClock(5_000)
  const made = new EventHub({
    nowMicros: () => clock.nowMs() * 1000,
    later: (ms, fn) => {
      const timer = clock.setTimer(ms, fn)
      return () => timer.cancel()
    },
  })
  const seen: JsonObject[] = []
  made.subscribe((message) => seen.push(message))
  return { clock, hub: made, seen }
}

const bad = (node: string, n: number): JsonObject => ({ 'node-name': node, 'sector-num': n })

describe('qmp / events', () => {
  test('an event without data has no data member', () => {
    const { hub: events, seen } = hub()
    events.publish('STOP')
    expect(seen).toEqual([{ timestamp: { seconds: 5, microseconds: 0 }, event: 'STOP' }])
  })

  test('of a flood the first goes out at once, the last a second later with its own time', async () => {
    const { clock, hub: events, seen } = hub()
    events.publish('QUORUM_REPORT_BAD', bad('a', 1))
    await clock.advance(300)
    events.publish('QUORUM_REPORT_BAD', bad('a', 2))
    events.publish('QUORUM_REPORT_BAD', bad('a', 3))
    expect(seen).toHaveLength(1)
    await clock.advance(700)
    expect(seen).toHaveLength(2)
    expect(seen[1]).toMatchObject({
      timestamp: { seconds: 5, microseconds: 300_000 },
      data: bad('a', 3),
    })
    await clock.advance(5000)
    expect(seen).toHaveLength(2)
    expect(clock.armed).toBe(0)
  })

  test('nodes are limited apart and job events are not limited', () => {
    const { hub: events, seen } = hub()
    events.publish('QUORUM_REPORT_BAD', bad('a', 1))
    events.publish('QUORUM_REPORT_BAD', bad('b', 1))
    for (let i = 0; i < 10; i++) events.publish('JOB_STATUS_CHANGE', { id: 'j', status: 'running' })
    expect(seen).toHaveLength(12)
  })

  test('a job that ignores its errors is limited, one that reports is not', () => {
    const { hub: events, seen } = hub()
    const error = (action: string): JsonObject => ({ device: 'j', operation: 'read', action })
    for (let i = 0; i < 10; i++) events.publish('BLOCK_JOB_ERROR', error('ignore'))
    for (let i = 0; i < 10; i++) events.publish('BLOCK_JOB_ERROR', error('report'))
    expect(seen).toHaveLength(11)
  })

  test('closing sends what was held back', () => {
    const { hub: events, seen, clock } = hub()
    for (let i = 0; i < 3; i++)
      events.publish('QUORUM_FAILURE', { reference: 'q', 'sector-num': i })
    events.close()
    expect(seen.map((message) => message.data)).toEqual([
      { reference: 'q', 'sector-num': 0 },
      { reference: 'q', 'sector-num': 2 },
    ])
    expect(clock.armed).toBe(0)
  })
})
