import { test } from 'vitest'
import { CallList } from '../../src/sync/call-list.ts'
import type { Model, Program } from './explorer.ts'
import { expectCaught, expectSound, must } from './support.ts'

interface Memory {
  readonly words: Int32Array
  readonly taken: string[]
  readonly asked: boolean[]
}

const make = (): Memory => ({ words: CallList.create(2).words, taken: [], asked: [] })

/** The home thread: takes calls until it took `last`. */
function home(m: Memory, model: Model, last: number): void {
  const list = new CallList(m.words)
  for (;;) {
    const seen = list.bell.count
    const taken = list.take(2)
    for (const { slot, kind } of taken) model.ghost(() => m.taken.push(`${kind} ${slot}`))
    if (taken.some(({ slot }) => slot === last)) return
    while (list.bell.whenRung(seen) !== undefined) model.hostTurn()
  }
}

test('model / call list / two schedulers, none is lost', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => {
        const list = new CallList(m.words)
        for (let got = 0; got < 2; ) {
          const seen = list.bell.count
          for (const { slot, kind } of list.take(2)) {
            got += 1
            model.ghost(() => m.taken.push(`${kind} ${slot}`))
          }
          if (got < 2) list.bell.waitRung(seen)
        }
      },
      (m) => void new CallList(m.words).schedule(0),
      (m) => void new CallList(m.words).scheduleIdle(1),
    ],
    check: ({ taken }) => must([...taken].sort().join() === 'idle 1,run 0', taken.join()),
  }
  expectSound('call list: two schedulers, a worker takes', program, { preemptions: 3 })
})

test('model / call list / whoever schedules after another is taken after it', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => home(m, model, 0),
      (m) => {
        const list = new CallList(m.words)
        // Against the order in which the slots are looked at.
        list.schedule(1)
        list.schedule(0)
      },
    ],
    check: ({ taken }) => must(taken.join() === 'run 1,run 0', taken.join()),
  }
  expectSound('call list: order of two', program, { preemptions: 4 })
})

test('model / call list / asked for twice: taken after the last, once or twice', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => home(m, model, 1),
      (m, model) => {
        const list = new CallList(m.words)
        const first = list.schedule(0)
        model.ghost(() => m.asked.push(first))
        list.schedule(1)
      },
      (m, model) => {
        const first = new CallList(m.words).schedule(0)
        model.ghost(() => m.asked.push(first))
      },
    ],
    check: (m) => {
      const list = new CallList(m.words)
      for (const { slot, kind } of list.take(2)) m.taken.push(`${kind} ${slot}`)
      const runs = m.taken.filter((each) => each === 'run 0').length
      const firsts = m.asked.filter((first) => first).length
      must(runs === firsts && runs > 0, `${runs} runs for ${firsts} first schedules`)
    },
  }
  expectSound('call list: two schedule one call', program, { preemptions: 2 })
})

test('model / call list / a number that is gone schedules nothing', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m) => {
        const list = new CallList(m.words)
        list.take(1)
        list.retire(0)
      },
      (m) => {
        const list = new CallList(m.words)
        list.schedule(0)
        list.delete(0)
        list.schedule(0)
      },
    ],
    check: (m) => {
      const list = new CallList(m.words)
      must(list.numberOf(0) === 256, 'the slot has another number than the next')
      must(list.take(2).length === 0, 'a call of the past is pending in the slot of another')
    },
  }
  expectSound('call list: schedule versus retire', program, { preemptions: 4 })
})

test('model / call list / a scheduler dies anywhere, later calls come through', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => home(m, model, 1),
      (m) => void new CallList(m.words).schedule(0),
      (m, model) => {
        if (model.killAnywhere(1)) new CallList(m.words).bell.ring()
        new CallList(m.words).schedule(1)
      },
    ],
  }
  expectSound('call list: a scheduler dies', program, { preemptions: 3 })
})

test('model / call list / broken: taking before looking at the bell is caught', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m) => {
        const list = new CallList(m.words)
        while (list.take(2).length === 0) list.bell.waitRung(list.bell.count)
      },
      (m) => void new CallList(m.words).schedule(0),
    ],
  }
  expectCaught('call list broken: bell after take', program, /stuck for ever/)
})

test('model / call list / broken: a take of two steps is caught', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => home(m, model, 1),
      (m) => {
        const list = new CallList(m.words)
        list.schedule(0)
        list.delete(0)
        list.schedule(1)
      },
    ],
    sabotage: (ops) => ({
      and: (words, index, value) => {
        const before = ops.load(words, index)
        ops.store(words, index, before & value)
        return before
      },
    }),
    check: (m) => {
      const list = new CallList(m.words)
      const kinds = [...m.taken, ...list.take(2).map(({ kind, slot }) => `${kind} ${slot}`)]
      must(kinds.includes('delete 0'), `the end of the call was lost: ${kinds.join()}`)
    },
  }
  expectCaught('call list broken: torn take', program, /was lost/, { preemptions: 3 })
})
