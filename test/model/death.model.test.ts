/**
 * Threads that end between any two operations, as `terminate` ends them, and the thread that sees
 * it and gives back what they held.
 */
import { test } from 'vitest'
import { shared } from '../../src/sync/atomics.ts'
import { ContextLock } from '../../src/sync/context-lock.ts'
import { CopyMap } from '../../src/sync/copy-map.ts'
import { Doorbell } from '../../src/sync/doorbell.ts'
import { Gate } from '../../src/sync/gate.ts'
import { RangeLock } from '../../src/sync/range-lock.ts'
import { Ring, type RingDescription } from '../../src/sync/ring.ts'
import type { Model, Program } from './explorer.ts'
import { expectCaught, expectSound, must } from './support.ts'

const VICTIM = 1
const LANE = 3

interface Node {
  readonly words: Int32Array
  inside: number
}

const makeNode = (): Node => ({ words: Gate.create().words, inside: 0 })

function request(m: Node, model: Model, gate: Gate): void {
  gate.enterBlocking()
  model.ghost(() => {
    m.inside += 1
  })
  shared.load(m.words, 0)
  model.ghost(() => {
    m.inside -= 1
  })
  gate.end()
}

function drain(m: Node, model: Model): void {
  const gate = new Gate(m.words)
  gate.quiesce()
  while (gate.whenIdle() !== undefined) model.hostTurn()
  model.ghost(() => must(m.inside === 0, 'drained with a request in flight'))
  gate.unquiesce()
}

test('model / death / gate: a worker ends anywhere, the drain ends all the same', () => {
  const program: Program<Node> = {
    make: makeNode,
    threads: [
      drain,
      (m, model) => {
        const gate = new Gate(m.words, 0, LANE)
        request(m, model, gate)
        request(m, model, gate)
      },
      (m, model) => {
        if (!model.killAnywhere(VICTIM)) return
        model.ghost(() => {
          m.inside = 0
        })
        new Gate(m.words).forgive(LANE)
      },
    ],
    check: ({ words }) =>
      must(
        [...words].every((word) => word === 0),
        `left over: ${words.join()}`,
      ),
  }
  expectSound('gate: a worker in a lane dies', program, { preemptions: 3 })
})

test('model / death / gate: a drain that blocks hears of a death beside a living worker', () => {
  const program: Program<Node> = {
    make: makeNode,
    threads: [
      (m) => {
        const gate = new Gate(m.words)
        gate.quiesce()
        gate.waitIdle()
        gate.unquiesce()
      },
      (m, model) => request(m, model, new Gate(m.words, 0, LANE)),
      (m, model) => {
        if (model.killAnywhere(VICTIM)) new Gate(m.words).forgive(LANE)
      },
      (m, model) => request(m, model, new Gate(m.words, 0, 0)),
    ],
    check: ({ words }) =>
      must(
        [...words].every((word) => word === 0),
        `left over: ${words.join()}`,
      ),
  }
  expectSound('gate: one of two workers dies', program, { preemptions: 2 })
})

test('model / death / gate / broken: requests that are only counted are lost with their worker', () => {
  const program: Program<Node> = {
    make: makeNode,
    threads: [
      drain,
      (m, model) => request(m, model, new Gate(m.words)),
      (m, model) => {
        if (model.killAnywhere(VICTIM)) new Gate(m.words).forgive(LANE)
      },
    ],
  }
  expectCaught('gate broken: no lane', program, /stuck for ever|drained with/)
})

interface Owned {
  readonly words: Int32Array
  owner: number
  readonly log: string[]
}

function useLock(m: Owned, model: Model, me: number, depth = 1): void {
  const lock = new ContextLock(m.words, 0, me)
  try {
    for (let i = 0; i < depth; i += 1) lock.acquireBlocking()
  } catch (error) {
    if (!(error instanceof Error && error.message.includes('died'))) throw error
    model.ghost(() => m.log.push(`refused ${me}`))
    return
  }
  model.ghost(() => {
    must(m.owner === 0, `${me} got the lock of ${m.owner}`)
    m.owner = me
  })
  must(lock.owner === me, 'the owner word names somebody else')
  model.ghost(() => {
    m.owner = 0
    m.log.push(`used ${me}`)
  })
  for (let i = 0; i < depth; i += 1) lock.release()
}

function reapLock(m: Owned, model: Model, thread: number): void {
  model.ghost(() => {
    if (m.owner === thread) m.owner = 0
  })
  new ContextLock(m.words, 0, 3).releaseDead(thread)
}

function lockFree({ words }: Owned): void {
  must(words[0] === words[1], 'a ticket is left over')
  must(words[2] === 0 && words[3] === 0, 'the lock is not free at rest')
  must(
    words.subarray(5).every((slot) => (slot & 0xffff) === 0),
    'a slot is left over',
  )
}

test('model / death / context lock: a thread ends anywhere, the other two get on', () => {
  const program: Program<Owned> = {
    make: () => ({ words: ContextLock.create(1).words, owner: 0, log: [] }),
    threads: [
      (m, model) => useLock(m, model, 1),
      (m, model) => useLock(m, model, 2, 2),
      (m, model) => {
        if (model.killAnywhere(VICTIM)) reapLock(m, model, 2)
        useLock(m, model, 3)
      },
    ],
    check: (m) => {
      lockFree(m)
      must(m.log.length >= 2, `not everybody ended: ${m.log.join()}`)
    },
  }
  expectSound('context lock: a thread dies', program, { preemptions: 2 })
})

test('model / death / context lock: who passes over a dead thread ends in the middle of it', () => {
  const program: Program<Owned> = {
    make: () => {
      const { words } = ContextLock.create(1)
      new ContextLock(words, 0, 9).acquireBlocking()
      return { words, owner: 0, log: [] }
    },
    threads: [
      (m, model) => useLock(m, model, 1),
      (m) => new ContextLock(m.words, 0, 2).releaseDead(9),
      (m, model) => {
        if (!model.killAnywhere(VICTIM)) return
        reapLock(m, model, 2)
        reapLock(m, model, 9)
      },
    ],
    check: lockFree,
  }
  expectSound('context lock: the reaper dies', program, { preemptions: 2 })
})

class NamesItselfLate extends ContextLock {
  override acquireBlocking(): void {
    // The ticket is taken before the slot says whose it is.
    const ticket = shared.add(this.words, 0, 1)
    shared.store(this.words, 5 + (ticket & 63), 2)
    while (shared.load(this.words, 1) !== ticket) shared.wait(this.words, 1, ticket - 1)
    shared.store(this.words, 3, 1)
    shared.store(this.words, 2, 2)
  }
}

test('model / death / context lock / broken: a ticket that names nobody is caught', () => {
  const program: Program<Owned> = {
    make: () => ({ words: ContextLock.create(1).words, owner: 0, log: [] }),
    threads: [
      (m, model) => useLock(m, model, 1),
      (m) => {
        const lock = new NamesItselfLate(m.words, 0, 2)
        lock.acquireBlocking()
        lock.release()
      },
      (m, model) => {
        if (model.killAnywhere(VICTIM)) reapLock(m, model, 2)
      },
    ],
    check: lockFree,
  }
  expectCaught('context lock broken: late name', program, /stuck|left over|no more threads/)
})

test('model / death / range lock: a thread ends anywhere, who waits behind it gets on', () => {
  const program: Program<Int32Array> = {
    make: () => RangeLock.create(1).words,
    threads: [
      (words) => {
        const lock = new RangeLock(words, 0, 1)
        lock.unlock(lock.lockBlocking(0, 10, false))
      },
      (words) => {
        const lock = new RangeLock(words, 0, 2)
        lock.unlock(lock.lockBlocking(5, 10, true))
      },
      (words, model) => {
        if (model.killAnywhere(VICTIM)) new RangeLock(words, 0, 3).releaseDead(2)
      },
    ],
    check: (words) => must(new RangeLock(words, 0, 1).held === 0, 'a range is left over'),
  }
  expectSound('range lock: a thread dies', program, { preemptions: 2 })
})

test('model / death / copy map: a claim whose copier died is void, who waits looks again', () => {
  const program: Program<Int32Array> = {
    make: () => CopyMap.create(1).words,
    threads: [
      (words, model) => {
        const map = new CopyMap(words)
        while (map.whenSettled(0) !== undefined) model.hostTurn()
      },
      (words) => {
        const map = new CopyMap(words)
        if (map.claim(0) === 'untouched') map.complete(0)
      },
      (words, model) => {
        if (model.killAnywhere(VICTIM)) new CopyMap(words).rearm()
      },
    ],
    check: (words) => must(words[1] === 0, 'a claim is left over'),
  }
  expectSound('copy map: the copier dies', program, { preemptions: 3 })
})

interface Line {
  readonly ring: RingDescription
  readonly got: number[]
}

const makeLine = (): Line => ({ ring: Ring.create(1, 1).description, got: [] })

function produce(m: Line): void {
  const ring = new Ring(m.ring, 0)
  for (const value of [1, 2, 3]) ring.pushBlocking([value])
}

function consume(m: Line, model: Model): void {
  const ring = new Ring(m.ring, 0)
  const record = new Float64Array(1)
  while (model.ghost(() => m.got.length) < 3 && ring.popBlocking(record)) {
    const value = record[0] ?? 0
    model.ghost(() => m.got.push(value))
  }
}

test('model / death / ring: its producer ends anywhere; closed, the consumer gets what was added', () => {
  const program: Program<Line> = {
    make: makeLine,
    threads: [
      consume,
      produce,
      (m, model) => {
        if (model.killAnywhere(VICTIM)) new Ring(m.ring, 0).close()
      },
    ],
    check: ({ got }) =>
      must(got.join() === [1, 2, 3].slice(0, got.length).join(), `got ${got.join()}`),
  }
  expectSound('ring: the producer dies', program, { preemptions: 2 })
})

test('model / death / ring / broken: nobody closes the ring of a dead producer', () => {
  const program: Program<Line> = {
    make: makeLine,
    threads: [consume, produce, (_, model) => void model.killAnywhere(VICTIM)],
  }
  expectCaught('ring broken: left open', program, /stuck for ever/)
})

test('model / death / doorbell: who rings ends anywhere; rung once more, nothing is lost', () => {
  const program: Program<Int32Array> = {
    make: () => new Int32Array(new SharedArrayBuffer(8)),
    threads: [
      (words, model) => {
        const bell = new Doorbell(words)
        for (let seen = 0; shared.load(words, 1) === 0; seen = bell.count)
          while (bell.whenRung(seen) !== undefined) model.hostTurn()
      },
      (words) => {
        shared.store(words, 1, 1)
        new Doorbell(words).ring()
      },
      (words, model) => {
        if (!model.killAnywhere(VICTIM)) return
        shared.store(words, 1, 1)
        new Doorbell(words).ring()
      },
    ],
  }
  expectSound('doorbell: who rings dies', program, { preemptions: 3 })
})
