import { test } from 'vitest'
import { shared } from '../../src/sync/atomics.ts'
import { Doorbell } from '../../src/sync/doorbell.ts'
import type { Model, Program } from './explorer.ts'
import { expectCaught, expectSound, must } from './support.ts'

/** [0] the bell, [1] messages posted. */
type Memory = Int32Array

const make = (): Memory => new Int32Array(new SharedArrayBuffer(8))

function post(memory: Memory): void {
  shared.add(memory, 1, 1)
  new Doorbell(memory).ring()
}

function receive(
  memory: Memory,
  count: number,
  wait: (bell: Doorbell, seen: number) => void,
): void {
  const bell = new Doorbell(memory)
  for (let seen = 0; shared.load(memory, 1) < count; ) {
    wait(bell, seen)
    seen = bell.count
  }
}

const onMain = (memory: Memory, model: Model, count: number): void =>
  receive(memory, count, (bell, seen) => {
    while (bell.whenRung(seen) !== undefined) model.hostTurn()
  })

function atRest(memory: Memory): void {
  must(((memory[0] ?? 0) & 0xff) === 0, 'a waiter is left over')
}

test('model / doorbell / no ring is lost, main does not block', () => {
  const program: Program<Memory> = {
    make,
    threads: [(m, model) => onMain(m, model, 2), post, post],
    check: atRest,
  }
  expectSound('doorbell: two ring, main listens', program, { preemptions: 3 })
})

test('model / doorbell / no ring is lost, a worker blocks', () => {
  const program: Program<Memory> = {
    make,
    threads: [(m) => receive(m, 2, (bell, seen) => bell.waitRung(seen)), post, post],
    check: atRest,
  }
  expectSound('doorbell: two ring, a worker listens', program, { preemptions: 3 })
})

test('model / doorbell / broken: ringing before posting is caught', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => onMain(m, model, 1),
      (m) => {
        new Doorbell(m).ring()
        shared.add(m, 1, 1)
      },
    ],
  }
  expectCaught('doorbell broken: ring first', program, /stuck for ever/)
})

test('model / doorbell / broken: a count that is not kept is caught', () => {
  const program: Program<Memory> = {
    make,
    threads: [(m) => receive(m, 1, (bell) => bell.waitRung(bell.count)), (m) => post(m)],
  }
  expectCaught('doorbell broken: forgets what it saw', program, /stuck for ever/)
})
