import { test } from 'vitest'
import { shared } from '../../src/sync/atomics.ts'
import { RangeLock } from '../../src/sync/range-lock.ts'
import { Ring, type RingDescription } from '../../src/sync/ring.ts'
import type { Model, Program } from './explorer.ts'
import { expectCaught, expectSound, must } from './support.ts'

interface Memory {
  readonly ring: RingDescription
  readonly got: number[]
}

const make = (capacity: number) => (): Memory => ({
  ring: Ring.create(capacity, 1).description,
  got: [],
})

/** Blocking calls sleep at once: spinning only adds equal steps. */
const end = (m: Memory): Ring => new Ring(m.ring, 0)

function produce(m: Memory, count: number): void {
  const ring = end(m)
  for (let i = 1; i <= count; i += 1) ring.pushBlocking([i])
}

function consume(m: Memory, model: Model, count: number): void {
  const ring = end(m)
  const record = new Float64Array(1)
  for (let i = 0; i < count; i += 1) {
    if (!ring.popBlocking(record)) return
    const value = record[0] ?? 0
    model.ghost(() => m.got.push(value))
  }
}

/** The consumer on the main thread, which does not block. */
function consumeAsync(m: Memory, model: Model, count: number): void {
  const ring = end(m)
  const record = new Float64Array(1)
  for (let i = 0; i < count; ) {
    if (ring.pop(record)) {
      i += 1
      const value = record[0] ?? 0
      model.ghost(() => m.got.push(value))
    } else if (ring.closed) return
    else while (ring.whenReadable() !== undefined) model.hostTurn()
  }
}

const inOrder =
  (count: number) =>
  (m: Memory): void => {
    must(m.got.length === count, `${m.got.length} records arrived`)
    for (const [i, value] of m.got.entries()) must(value === i + 1, `out of order: ${m.got.join()}`)
    must(end(m).length === 0, 'a record is left over')
  }

test('model / ring / full, empty and wrap, both sides block', () => {
  const program: Program<Memory> = {
    make: make(1),
    threads: [(m) => produce(m, 3), (m, model) => consume(m, model, 3)],
    check: inOrder(3),
  }
  expectSound('ring: capacity 1, three records', program, { preemptions: 2 })
})

test('model / ring / capacity two', () => {
  const program: Program<Memory> = {
    make: make(2),
    threads: [(m) => produce(m, 3), (m, model) => consume(m, model, 3)],
    check: inOrder(3),
  }
  expectSound('ring: capacity 2, three records', program, { preemptions: 2 })
})

test('model / ring / the consumer does not block', () => {
  const program: Program<Memory> = {
    make: make(1),
    threads: [(m) => produce(m, 2), (m, model) => consumeAsync(m, model, 2)],
    check: inOrder(2),
  }
  expectSound('ring: consumer on main', program, { preemptions: 3 })
})

test('model / ring / closing wakes the consumer, and it still gets what is there', () => {
  const program: Program<Memory> = {
    make: make(2),
    threads: [
      (m) => {
        produce(m, 1)
        end(m).close()
      },
      (m, model) => consume(m, model, 2),
    ],
    check: inOrder(1),
  }
  expectSound('ring: close', program, { preemptions: 4 })
})

test('model / ring / closing wakes a producer that waits for room', () => {
  const program: Program<Memory> = {
    make: make(1),
    threads: [(m) => produce(m, 2), (m) => end(m).close()],
  }
  expectSound('ring: close while full', program, { preemptions: 4 })
})

test('model / ring / broken: a tail that moves before the record is caught', () => {
  const program: Program<Memory> = {
    make: make(2),
    threads: [
      (m) => {
        const words = new Int32Array(m.ring.sab, 0, 4)
        const data = new Float64Array(m.ring.sab, 16)
        shared.add(words, 1, 2)
        shared.set(data, 0, 1)
        shared.notify(words, 1)
      },
      (m, model) => consume(m, model, 1),
    ],
    check: inOrder(1),
  }
  expectCaught('ring broken: tail first', program, /out of order/)
})

test('model / ring / broken: a sleeper that says so too late is caught', () => {
  const program: Program<Memory> = {
    make: make(2),
    threads: [
      (m) => produce(m, 1),
      (m, model) => {
        const words = new Int32Array(m.ring.sab, 0, 4)
        if (end(m).length === 0) {
          const tail = shared.load(words, 1)
          shared.or(words, 2, 1)
          // Sleeps without looking again after saying so.
          if (tail === 0) shared.wait(words, 1, shared.load(words, 1))
        }
        consume(m, model, 1)
      },
    ],
    check: inOrder(1),
  }
  expectCaught('ring broken: late sleeper', program, /stuck for ever/)
})

interface Ranges {
  readonly words: Int32Array
  readonly inside: { start: number; end: number; serialising: boolean }[]
}

const makeRanges = (): Ranges => ({ words: RangeLock.create(1).words, inside: [] })

function useRange(m: Ranges, model: Model, me: number, start: number, serialising: boolean): void {
  const lock = new RangeLock(m.words, 0, me)
  const slot = lock.lockBlocking(start, 2, serialising)
  const mine = { start, end: start + 2, serialising }
  model.ghost(() => {
    for (const other of m.inside) {
      const overlaps = other.start < mine.end && mine.start < other.end
      must(!overlaps || !(other.serialising || serialising), 'two conflicting requests are inside')
    }
    m.inside.push(mine)
  })
  shared.load(m.words, 0)
  model.ghost(() => m.inside.splice(m.inside.indexOf(mine), 1))
  lock.unlock(slot)
}

const nothingHeld = (m: Ranges): void =>
  must(new RangeLock(m.words, 0, 1).held === 0, 'a range is left over')

test('model / range lock / serialising versus plain, then again', () => {
  const program: Program<Ranges> = {
    make: makeRanges,
    threads: [
      (m, model) => useRange(m, model, 1, 0, true),
      (m, model) => {
        useRange(m, model, 2, 1, false)
        useRange(m, model, 2, 0, false)
      },
    ],
    check: nothingHeld,
  }
  expectSound('range lock: two threads', program, { preemptions: 2 })
})

test('model / range lock / three overlapping requests wait in no circle', () => {
  const program: Program<Ranges> = {
    make: makeRanges,
    threads: [
      (m, model) => useRange(m, model, 1, 0, true),
      (m, model) => useRange(m, model, 2, 1, true),
      (m, model) => useRange(m, model, 3, 2, true),
    ],
    check: nothingHeld,
  }
  expectSound('range lock: a chain of three', program, { preemptions: 1 })
})

test('model / range lock / main waits without blocking', () => {
  const program: Program<Ranges> = {
    make: makeRanges,
    threads: [
      (m, model) => {
        const lock = new RangeLock(m.words, 0, 1)
        const slot = model.settle(lock.lock(0, 2, true)) ?? -1
        model.ghost(() => must(m.inside.length === 0, 'somebody is in the range'))
        lock.unlock(slot)
      },
      (m, model) => useRange(m, model, 2, 1, true),
    ],
    check: nothingHeld,
  }
  expectSound('range lock: main does not block', program, { preemptions: 3 })
})

test('model / range lock / with every slot taken, who waits for one gets it', () => {
  const program: Program<Ranges> = {
    make: () => {
      const memory = makeRanges()
      const lock = new RangeLock(memory.words, 0, 9)
      for (let i = 0; i < 64; i += 1) lock.lockBlocking(1000 + i, 1, false)
      return memory
    },
    threads: [
      (m, model) => {
        const lock = new RangeLock(m.words, 0, 1)
        lock.unlock(model.settle(lock.lock(0, 1, false)) ?? -1)
      },
      (m) => new RangeLock(m.words, 0, 9).unlock(63),
    ],
    check: (m) => must(new RangeLock(m.words, 0, 1).held === 63, 'a slot is lost or left over'),
  }
  expectSound('range lock: no slot is free', program, { preemptions: 1 })
})

test('model / range lock / what a dead thread held is given up', () => {
  const program: Program<Ranges> = {
    make: () => {
      const memory = makeRanges()
      new RangeLock(memory.words, 0, 9).lockBlocking(0, 8, true)
      return memory
    },
    threads: [
      (m, model) => useRange(m, model, 1, 0, false),
      (m) => void new RangeLock(m.words, 0, 2).releaseDead(9),
    ],
    check: nothingHeld,
  }
  expectSound('range lock: owner death', program, { preemptions: 3 })
})

test('model / range lock / broken: an unannounced ticket is caught', () => {
  const program: Program<Ranges> = {
    make: makeRanges,
    threads: [
      (m, model) => useRange(m, model, 1, 0, true),
      (m, model) => useRange(m, model, 2, 1, true),
    ],
    // A slot that is being chosen looks empty to everyone who scans.
    sabotage: (ops) => ({
      load: (words, index) => {
        const value = ops.load(words, index)
        return (value & 1) !== 0 && (index - 4) % 6 === 0 && index >= 4 ? 0 : value
      },
    }),
  }
  expectCaught('range lock broken: no announcement', program, /conflicting/)
})

test('model / range lock / broken: an unlock that wakes nobody is caught', () => {
  const program: Program<Ranges> = {
    make: makeRanges,
    threads: [
      (m, model) => useRange(m, model, 1, 0, true),
      (m, model) => useRange(m, model, 2, 1, true),
    ],
    sabotage: () => ({ notify: () => 0 }),
  }
  expectCaught('range lock broken: lost wake-up', program, /stuck for ever/)
})
