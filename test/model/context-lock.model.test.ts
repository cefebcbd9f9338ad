import { test } from 'vitest'
import { type SharedOps, shared } from '../../src/sync/atomics.ts'
import { ContextLock } from '../../src/sync/context-lock.ts'
import type { Model, Program } from './explorer.ts'
import { expectCaught, expectSound, must } from './support.ts'

interface Memory {
  readonly words: Int32Array
  owner: number
  readonly log: string[]
}

const make = (): Memory => ({ words: ContextLock.create(1).words, owner: 0, log: [] })

/** Takes the lock, looks around inside, gives it back. */
function use(memory: Memory, model: Model, me: number, depth = 1): void {
  const lock = new ContextLock(memory.words, 0, me)
  for (let i = 0; i < depth; i += 1) lock.acquireBlocking()
  inside(memory, model, lock, me)
  for (let i = 0; i < depth; i += 1) lock.release()
}

function inside(memory: Memory, model: Model, lock: ContextLock, me: number): void {
  model.ghost(() => {
    must(memory.owner === 0, `${me} got the lock of ${memory.owner}`)
    memory.owner = me
    // First come, first served: whoever is inside has the ticket at the head.
    const head = memory.words[1] ?? 0
    must(((memory.words[5 + (head & 63)] ?? 0) & 0xffff) === me, `${me} is inside out of turn`)
  })
  must(lock.owner === me, 'the owner word names somebody else')
  model.ghost(() => {
    memory.owner = 0
    memory.log.push(`used ${me}`)
  })
}

function free({ words }: Memory): void {
  const lock = new ContextLock(words, 0, 1)
  must(lock.owner === 0 && lock.depth === 0, 'the lock is not free at rest')
  must(words[0] === words[1], 'a ticket is left over')
  must(
    words.subarray(5).every((slot) => (slot & 0xffff) === 0),
    'a slot is left over',
  )
}

test('model / context lock / two threads, recursion, hand-off', () => {
  const program: Program<Memory> = {
    make,
    threads: [(m, model) => use(m, model, 1, 2), (m, model) => use(m, model, 2)],
    check: free,
  }
  expectSound('context lock: two threads, one recursive', program, { preemptions: 3 })
})

test('model / context lock / three threads', () => {
  const program: Program<Memory> = {
    make,
    threads: [1, 2, 3].map((me) => (m: Memory, model: Model) => use(m, model, me)),
    check: free,
  }
  expectSound('context lock: three threads', program, { preemptions: 2 })
})

test('model / context lock / main waits without blocking, twice, beside two workers', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => {
        const lock = new ContextLock(m.words, 0, 1)
        // The second joins the wait of the first: one ticket a thread.
        const first = lock.acquire()
        const second = lock.acquire()
        model.settle(first)
        model.settle(second)
        inside(m, model, lock, 1)
        lock.release()
        lock.release()
      },
      (m, model) => use(m, model, 2),
      (m, model) => use(m, model, 3),
    ],
    check: free,
  }
  expectSound('context lock: main does not block', program, { preemptions: 2 })
})

test('model / context lock / main waits for an owner that dies, and hears of it', () => {
  const program: Program<Memory> = {
    make: () => {
      const memory = make()
      new ContextLock(memory.words, 0, 9).acquireBlocking()
      return memory
    },
    threads: [
      (m, model) => {
        const lock = new ContextLock(m.words, 0, 1)
        try {
          model.settle(lock.acquire())
        } catch (error) {
          if (!(error instanceof Error && error.message.includes('died'))) throw error
          return
        }
        lock.release()
      },
      (m, model) => tryUse(m, model, 2),
      (m) => new ContextLock(m.words, 0, 3).releaseDead(9),
    ],
    check: free,
  }
  expectSound('context lock: owner death, main waits', program, { preemptions: 2 })
})

test('model / context lock / tryAcquire never waits and never breaks in', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => use(m, model, 1),
      (m, model) => use(m, model, 3),
      (m, model) => {
        const lock = new ContextLock(m.words, 0, 2)
        if (!lock.tryAcquire()) return
        inside(m, model, lock, 2)
        lock.release()
      },
    ],
    check: free,
  }
  expectSound('context lock: try', program, { preemptions: 2 })
})

test('model / context lock / the owner dies: waiters hear of it, later users get in', () => {
  const reaper = (m: Memory): void => new ContextLock(m.words, 0, 3).releaseDead(9)
  const program = (users: readonly number[]): Program<Memory> => ({
    make: () => {
      const memory = make()
      new ContextLock(memory.words, 0, 9).acquireBlocking()
      return memory
    },
    threads: [...users.map((me) => (m: Memory, model: Model) => tryUse(m, model, me)), reaper],
    check: (m) => {
      free(m)
      must(m.log.length === users.length, `not everybody ended: ${m.log.join()}`)
    },
  })
  expectSound('context lock: owner death, one waiter', program([1]), { preemptions: 2 })
  expectSound('context lock: owner death, two waiters', program([1, 2]), { preemptions: 1 })
})

test('model / context lock / a waiter dies: the lock passes over it', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => use(m, model, 1),
      (m, model) => use(m, model, 2),
      (m, model) => {
        if (model.kill(1)) new ContextLock(m.words, 0, 3).releaseDead(2)
        use(m, model, 3)
      },
    ],
    check: free,
  }
  expectSound('context lock: waiter death', program, { preemptions: 2 })
})

function tryUse(memory: Memory, model: Model, me: number): void {
  try {
    use(memory, model, me)
  } catch (error) {
    if (!(error instanceof Error && error.message.includes('died'))) throw error
    model.ghost(() => memory.log.push(`refused ${me}`))
  }
}

test('model / context lock / broken: a notify that is lost is caught', () => {
  const program: Program<Memory> = {
    make,
    threads: [(m, model) => use(m, model, 1), (m, model) => use(m, model, 2)],
    sabotage: () => ({ notify: () => 0 }),
  }
  expectCaught('context lock broken: lost wake-up', program, /stuck for ever/)
})

/** Makes a compound step two steps. */
function torn(ops: SharedOps): Partial<SharedOps> {
  return {
    compareExchange: (words, index, expected, replacement) => {
      const before = ops.load(words, index)
      if (before === expected) ops.store(words, index, replacement)
      return before
    },
  }
}

test('model / context lock / broken: tickets that are not unique are caught', () => {
  const program: Program<Memory> = {
    make,
    threads: [(m, model) => use(m, model, 1), (m, model) => use(m, model, 2)],
    sabotage: torn,
  }
  expectCaught('context lock broken: torn ticket', program, /no more threads|stuck|got the lock/)
})

class LooksTooEarly extends ContextLock {
  override release(): void {
    // Decides whether somebody waits before the head moves.
    const head = shared.load(this.words, 1)
    const alone = shared.load(this.words, 0) === ((head + 1) | 0)
    shared.store(this.words, 3, 0)
    shared.store(this.words, 2, 0)
    shared.store(this.words, 5 + (head & 63), 0x1_0000)
    shared.store(this.words, 1, (head + 1) | 0)
    if (!alone) shared.notify(this.words, 1)
  }
}

test('model / context lock / broken: looking for waiters before moving on is caught', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m) => {
        const lock = new LooksTooEarly(m.words, 0, 1)
        lock.acquireBlocking()
        lock.release()
      },
      (m, model) => use(m, model, 2),
    ],
  }
  expectCaught('context lock broken: early look', program, /stuck for ever/)
})
