/** The explorer itself: it walks every order within its bound, and what it finds it finds again. */
import { expect, test } from 'vitest'
import { shared } from '../../src/sync/atomics.ts'
import { explore, type Program, replay } from './explorer.ts'

interface Memory {
  readonly words: Int32Array
  readonly log: number[]
}

const make = (): Memory => ({ words: new Int32Array(new SharedArrayBuffer(8)), log: [] })

/** Threads of so many steps each; every order that was run is added to `orders`. */
function stepping(steps: readonly number[], orders: string[]): Program<Memory> {
  return {
    make,
    threads: steps.map((count, me) => (m, model) => {
      for (let i = 0; i < count; i += 1) {
        shared.load(m.words, 0)
        model.ghost(() => m.log.push(me))
      }
    }),
    check: ({ log }) => void orders.push(log.join('')),
  }
}

for (const [steps, expected] of [
  [[1, 1], 2],
  [[2, 2], 6],
  [[3, 3], 20],
  [[1, 1, 1], 6],
  [[2, 2, 2], 90],
] as const) {
  test(`model / explorer / threads of ${steps.join(' and ')} steps have ${expected} orders, each run once`, () => {
    const orders: string[] = []
    const { executions, failure } = explore(stepping(steps, orders), { preemptions: 9 })
    expect(failure).toBeUndefined()
    expect([executions, new Set(orders).size]).toEqual([expected, expected])
  })
}

test('model / explorer / without a preemption only whole threads follow each other', () => {
  const orders: string[] = []
  explore(stepping([2, 2, 2], orders), { preemptions: 0 })
  expect(orders.sort()).toEqual(['001122', '002211', '110022', '112200', '220011', '221100'])
})

test('model / explorer / a bound that is too low is an error, not silence', () => {
  expect(() => explore(stepping([3, 3], []), { preemptions: 9, executions: 10 })).toThrow(
    'more than 10 interleavings',
  )
})

test('model / explorer / a lost update is found, and its choices find it again', () => {
  const increment = (m: Memory): void => {
    shared.store(m.words, 0, shared.load(m.words, 0) + 1)
  }
  const program: Program<Memory> = {
    make,
    threads: [increment, increment],
    check: ({ words }) => {
      if (words[0] !== 2) throw new Error(`an update was lost: ${words[0]}`)
    },
  }
  const { failure } = explore(program)
  expect(String(failure?.error)).toContain('an update was lost: 1')
  for (let i = 0; i < 3; i += 1)
    expect(() => replay(program, failure?.choices ?? [])).toThrow('an update was lost: 1')
})

test('model / explorer / who waits for ever is named; a notify wakes, a promise settles in its step', () => {
  const wait = (m: Memory): void => void shared.wait(m.words, 0, 0)
  expect(String(explore({ make, threads: [wait] }).failure?.error)).toContain('threads 0')
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => {
        const host = shared.waitAsync(m.words, 0, 0)
        if (!host.async) return
        const after = new Promise<number>((resolve) => void host.value.then(() => resolve(1)))
        const value = model.settle(after.then((n) => n + 1))
        model.ghost(() => m.log.push(value ?? 0))
      },
      (m) => {
        shared.store(m.words, 0, 1)
        shared.notify(m.words, 0)
      },
    ],
    check: ({ log }) => {
      if (log.length > 0 && log[0] !== 2) throw new Error('settled with another value')
    },
  }
  expect(explore(program, { preemptions: 9 }).failure).toBeUndefined()
})

test('model / explorer / a thread is ended between any two of its steps', () => {
  const lengths = new Set<number>()
  const program: Program<Memory> = {
    make,
    threads: [
      (m) => {
        for (let i = 0; i < 4; i += 1) shared.add(m.words, 0, 1)
      },
      (_, model) => void model.killAnywhere(0),
    ],
    check: ({ words }) => void lengths.add(words[0] ?? 0),
  }
  explore(program, { preemptions: 2 })
  expect([...lengths].sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4])
})
