import { test } from 'vitest'
import { shared } from '../../src/sync/atomics.ts'
import { Gate } from '../../src/sync/gate.ts'
import type { Model, Program } from './explorer.ts'
import { expectCaught, expectSound, must } from './support.ts'

interface Memory {
  readonly words: Int32Array
  inside: number
  drained: number
}

const make = (): Memory => ({ words: Gate.create().words, inside: 0, drained: 0 })

/** A worker's requests; between two ghosts it is inside. */
function work(gate: Gate, memory: Memory, model: Model, rounds: number): void {
  for (let i = 0; i < rounds; i += 1) {
    gate.enterBlocking()
    model.ghost(() => {
      must(memory.drained === 0, 'a request began in a drained section')
      memory.inside += 1
    })
    shared.load(memory.words, 0)
    model.ghost(() => {
      memory.inside -= 1
    })
    gate.end()
  }
}

/** A drain as the main thread does it, without blocking. */
function drain(gate: Gate, memory: Memory, model: Model): void {
  gate.quiesce()
  while (gate.whenIdle() !== undefined) model.hostTurn()
  section(gate, memory, model)
}

/** The same by a thread that may block. */
function drainBlocking(gate: Gate, memory: Memory, model: Model): void {
  gate.quiesce()
  gate.waitIdle()
  section(gate, memory, model)
}

function section(gate: Gate, memory: Memory, model: Model): void {
  model.ghost(() => {
    must(memory.inside === 0, 'drained with a request in flight')
    memory.drained += 1
  })
  shared.load(memory.words, 0)
  model.ghost(() => {
    memory.drained -= 1
  })
  gate.unquiesce()
}

function atRest({ words }: Memory): void {
  must(
    [...words].every((word) => word === 0),
    `counts are not zero at rest: ${[...words].join(' ')}`,
  )
}

const workers =
  (rounds: number) =>
  (memory: Memory, model: Model): void =>
    work(new Gate(memory.words), memory, model, rounds)

test('model / gate / enter versus drain, main does not block', () => {
  const program: Program<Memory> = {
    make,
    threads: [(m, model) => drain(new Gate(m.words), m, model), workers(2)],
    check: atRest,
  }
  expectSound('gate: one drain, one worker, two requests', program, { preemptions: 4 })
})

test('model / gate / enter versus drain, two workers', () => {
  const program: Program<Memory> = {
    make,
    threads: [(m, model) => drain(new Gate(m.words), m, model), workers(1), workers(1)],
    check: atRest,
  }
  expectSound('gate: one drain, two workers', program, { preemptions: 3 })
})

test('model / gate / nested drains and repeated drains', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => {
        const gate = new Gate(m.words)
        gate.quiesce()
        drain(gate, m, model)
        gate.unquiesce()
        drain(gate, m, model)
      },
      workers(2),
    ],
    check: atRest,
  }
  expectSound('gate: nested, then again', program, { preemptions: 3 })
})

test('model / gate / two drain owners', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => drain(new Gate(m.words), m, model),
      (m, model) => drainBlocking(new Gate(m.words), m, model),
      workers(1),
    ],
    check: atRest,
  }
  expectSound('gate: two owners, one worker', program, { preemptions: 3 })
})

test('model / gate / main waits for the gate to open, and nobody is in whom it keeps out', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => drainBlocking(new Gate(m.words), m, model),
      (m, model) => {
        const gate = new Gate(m.words, 0, 0)
        while (!gate.tryEnter()) while (gate.whenOpen() !== undefined) model.hostTurn()
        model.ghost(() => must(m.drained === 0, 'a request began in a drained section'))
        gate.end()
      },
      workers(1),
    ],
    check: atRest,
  }
  expectSound('gate: a loop waits outside', program, { preemptions: 3 })
})

test('model / gate / counted requests and lanes in one drain', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => drain(new Gate(m.words), m, model),
      workers(1),
      (m, model) => {
        const gate = new Gate(m.words, 0, 4)
        // Two requests in one lane: the lane is left with the last.
        gate.enterBlocking()
        const second = gate.tryEnter()
        gate.end()
        if (second) gate.end()
        work(gate, m, model, 1)
      },
    ],
    check: atRest,
  }
  expectSound('gate: counted and in lanes', program, { preemptions: 2 })
})

test('model / gate / a dead worker is forgiven what it held', () => {
  // A worker ended inside; two threads hear of its end at once.
  const program: Program<Memory> = {
    make: () => {
      const memory = make()
      new Gate(memory.words, 0, 2).enterBlocking()
      return memory
    },
    threads: [
      (m, model) => drain(new Gate(m.words), m, model),
      (m) => void new Gate(m.words).forgive(2),
      (m) => void new Gate(m.words).forgive(2),
    ],
    check: atRest,
  }
  expectSound('gate: worker dies inside', program, { preemptions: 3 })
})

class LookBeforeEntering extends Gate {
  override tryEnter(): boolean {
    if (this.quiesceCount !== 0) return false
    this.begin()
    return true
  }
}

test('model / gate / broken: looking before announcing is caught', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => drain(new Gate(m.words), m, model),
      (m, model) => work(new LookBeforeEntering(m.words), m, model, 1),
    ],
  }
  expectCaught('gate broken: look, then enter', program, /drained/)
})

test('model / gate / broken: an end that wakes nobody is caught', () => {
  const program: Program<Memory> = {
    make,
    threads: [(m, model) => drain(new Gate(m.words), m, model), workers(1)],
    sabotage: () => ({ notify: () => 0 }),
  }
  expectCaught('gate broken: lost wake-up', program, /stuck for ever/)
})

test('model / gate / broken: a waiter that registers after it looked is caught', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m) => {
        const value = shared.load(m.words, 1)
        if (value >>> 8 === 0) return
        shared.add(m.words, 1, 1)
        // Waits on what it saw before it registered, as if the add were no change.
        if (shared.load(m.words, 1) !== 0) shared.wait(m.words, 1, shared.load(m.words, 1))
        shared.sub(m.words, 1, 1)
      },
      workers(1),
    ],
  }
  expectCaught('gate broken: register late', program, /stuck for ever/)
})
