/** Words that nobody waits for: job control, allocation, piece claims. And the wait itself. */
import { test } from 'vitest'
import { AllocationMap, CLUSTER } from '../../src/sync/allocation-map.ts'
import { shared } from '../../src/sync/atomics.ts'
import { Gate } from '../../src/sync/gate.ts'
import { JobWords } from '../../src/sync/job-words.ts'
import { PieceClaims } from '../../src/sync/piece-claims.ts'
import { ChangeWait, WordWait } from '../../src/sync/word-wait.ts'
import type { Model, Program } from './explorer.ts'
import { expectCaught, expectSound, must } from './support.ts'

const words = (count: number): Int32Array => new Int32Array(new SharedArrayBuffer(count * 4))

interface Job {
  readonly words: Int32Array
  /** [0] a message that tells of the cancel. */
  readonly mail: Int32Array
}

const makeJob = (): Job => ({ words: JobWords.create().words, mail: words(1) })
const FAST = 5 * 2 ** 32 + 7

/** A body: works piece by piece and looks at its words before each. */
function body(m: Job): void {
  const job = new JobWords(m.words)
  for (let piece = 0; piece < 2; piece += 1) {
    const told = shared.load(m.mail, 0) !== 0
    const { cancelled } = job
    must(cancelled || !told, 'the message came before the word it tells of')
    if (cancelled) return
    job.addDone(4096)
  }
}

test('model / job words / a message never overtakes its word; progress of two bodies adds up', () => {
  const program: Program<Job> = {
    make: makeJob,
    threads: [
      (m) => {
        new JobWords(m.words).cancel()
        shared.store(m.mail, 0, 1)
      },
      body,
      (m) => new JobWords(m.words).addDone(8192),
    ],
    check: (m) => {
      const { done } = new JobWords(m.words)
      must(done >= 8192 && done <= 16384 && done % 4096 === 0, `done ${done}`)
    },
  }
  expectSound('job words: cancel and progress', program, { preemptions: 4 })
})

test('model / job words / a speed that is read is old, new, or halves of both', () => {
  const seen = [0, 7, 5 * 2 ** 32, FAST]
  const program: Program<Job> = {
    make: makeJob,
    threads: [
      (m) => {
        const job = new JobWords(m.words)
        job.paused = true
        job.speed = FAST
        job.paused = false
      },
      (m) => {
        const job = new JobWords(m.words)
        const resumed = !job.paused
        const { speed } = job
        must(seen.includes(speed), `speed ${speed}`)
        must(!(resumed && speed === 7), 'the low half was written first')
      },
    ],
    check: (m) => must(new JobWords(m.words).speed === FAST, 'the speed did not stay'),
  }
  expectSound('job words: speed', program, { preemptions: 4 })
})

test('model / job words / broken: a message before the word is caught', () => {
  const program: Program<Job> = {
    make: makeJob,
    threads: [
      (m) => {
        shared.store(m.mail, 0, 1)
        new JobWords(m.words).cancel()
      },
      body,
    ],
  }
  expectCaught('job words broken: message first', program, /before the word/)
})

test('model / job words / broken: progress in two steps is caught', () => {
  const program: Program<Job> = {
    make: makeJob,
    threads: [body, (m) => new JobWords(m.words).addDone(8192)],
    sabotage: (ops) => ({
      add: (w, i, v) => {
        const before = ops.load(w, i)
        ops.store(w, i, before + v)
        return before
      },
    }),
    check: (m) => must(new JobWords(m.words).done === 16384, 'progress was lost'),
  }
  expectCaught('job words broken: torn progress', program, /was lost/)
})

interface Overlay {
  readonly map: Int32Array
  readonly gate: Int32Array
  readonly data: Int32Array
  /** The last write that ended, 0 after an emptying. */
  last: number
}

const makeOverlay = (): Overlay => ({
  map: AllocationMap.create(1).words,
  gate: Gate.create().words,
  data: words(1),
  last: 0,
})

function writeOverlay(m: Overlay, model: Model, value: number): void {
  const gate = new Gate(m.gate, 0, 0)
  gate.enterBlocking()
  shared.store(m.data, 0, value)
  new AllocationMap(m.map).set(0, CLUSTER.DATA)
  model.ghost(() => {
    m.last = value
  })
  gate.end()
}

function readOverlay(m: Overlay, model: Model): void {
  const map = new AllocationMap(m.map)
  const before = model.ghost(() => m.last)
  if (map.state(0) !== CLUSTER.DATA) return
  const value = shared.load(m.data, 0)
  must(value !== 0, `says data where no byte was written (after ${before})`)
}

function empty(m: Overlay, model: Model): void {
  new AllocationMap(m.map).emptyAll()
  model.ghost(() => {
    m.last = 0
  })
}

function emptyDrained(m: Overlay, model: Model): void {
  const gate = new Gate(m.gate)
  gate.quiesce()
  while (gate.whenIdle() !== undefined) model.hostTurn()
  empty(m, model)
  gate.unquiesce()
}

/** What was written last is there; what was emptied is not. */
function shown(m: Overlay): void {
  const held = new AllocationMap(m.map).state(0) === CLUSTER.DATA
  must(held === (m.last !== 0), `last write ${m.last}, the map says ${held ? 'data' : 'empty'}`)
}

test('model / allocation map / bytes before the word, emptied by one store in a drained section', () => {
  const program: Program<Overlay> = {
    make: makeOverlay,
    threads: [
      emptyDrained,
      (m, model) => {
        writeOverlay(m, model, 1)
        writeOverlay(m, model, 2)
      },
      readOverlay,
    ],
    check: shown,
  }
  expectSound('allocation map: write, read, empty', program, { preemptions: 2 })
})

test('model / allocation map / a run of equal clusters is never longer than the truth', () => {
  const program: Program<Int32Array> = {
    make: () => AllocationMap.create(3).words,
    threads: [
      (map) => new AllocationMap(map).setRun(0, 3, CLUSTER.ZERO),
      (map) => {
        const view = new AllocationMap(map)
        if (view.state(0) !== CLUSTER.ZERO) return
        const run = view.run(0, 3)
        for (let i = 0; i < run; i += 1) must(view.state(i) === CLUSTER.ZERO, 'a run that is not')
      },
    ],
  }
  expectSound('allocation map: run', program, { preemptions: 4 })
})

test('model / allocation map / broken: the word before the bytes is caught', () => {
  const program: Program<Overlay> = {
    make: makeOverlay,
    threads: [
      (m) => {
        new AllocationMap(m.map).set(0, CLUSTER.DATA)
        shared.store(m.data, 0, 1)
      },
      readOverlay,
    ],
  }
  expectCaught('allocation map broken: word first', program, /no byte was written/)
})

test('model / allocation map / broken: emptying undrained is caught', () => {
  const program: Program<Overlay> = {
    make: makeOverlay,
    threads: [empty, (m, model) => writeOverlay(m, model, 1)],
    check: shown,
  }
  expectCaught('allocation map broken: no drain', program, /last write/)
})

interface Pieces {
  readonly words: Int32Array
  holder: number
}

function workOn(m: Pieces, model: Model, me: number): void {
  const claims = new PieceClaims(m.words)
  if (!claims.take(0)) return
  model.ghost(() => {
    must(m.holder === 0, `${me} works on the piece of ${m.holder}`)
    m.holder = me
  })
  shared.load(m.words, 0)
  model.ghost(() => {
    m.holder = 0
  })
  claims.give(0)
}

test('model / piece claims / one holder, and its neighbours in the word are left alone', () => {
  const program: Program<Pieces> = {
    make: () => ({ words: PieceClaims.create(2).words, holder: 0 }),
    threads: [
      (m, model) => workOn(m, model, 1),
      (m, model) => workOn(m, model, 2),
      (m) => {
        const claims = new PieceClaims(m.words)
        must(claims.take(1), 'nobody else takes that piece')
        claims.give(1)
      },
    ],
    check: (m) => must(new PieceClaims(m.words).idle, 'a piece is held at rest'),
  }
  expectSound('piece claims: three threads', program, { preemptions: 3 })
})

test('model / piece claims / broken: a claim of two steps is caught', () => {
  const program: Program<Pieces> = {
    make: () => ({ words: PieceClaims.create(2).words, holder: 0 }),
    threads: [(m, model) => workOn(m, model, 1), (m, model) => workOn(m, model, 2)],
    sabotage: (ops) => ({
      or: (w, i, v) => {
        const before = ops.load(w, i)
        ops.store(w, i, before | v)
        return before
      },
    }),
  }
  expectCaught('piece claims broken: torn claim', program, /works on the piece|given back/)
})

/** [0] the word, [1] whether somebody waits for it. */
function waitFor(memory: Int32Array, model: Model, wait: WordWait, what: string): void {
  while (wait.wait() !== undefined) model.hostTurn()
  must(shared.load(memory, 0) > 0, what)
}

const wordWait = (memory: Int32Array): WordWait =>
  new WordWait(memory, 0, {
    ready: (value) => value > 0,
    register: () => shared.store(memory, 1, 1),
    unregister: () => shared.store(memory, 1, 0),
  })

/** Changes the word, then looks whether somebody must be told. */
function change(memory: Int32Array): void {
  shared.add(memory, 0, 1)
  if (shared.load(memory, 1) !== 0) shared.notify(memory, 0)
}

test('model / word wait / who registers before looking again misses no change', () => {
  const program: Program<Int32Array> = {
    make: () => words(2),
    threads: [
      (m, model) => waitFor(m, model, wordWait(m), 'over without the change'),
      change,
      change,
    ],
    check: (m) => must(m[1] === 0, 'a waiter is left over'),
  }
  expectSound('word wait: one waits, two change', program, { preemptions: 5 })
})

test('model / word wait / a change wait seen twice, over one host wait', () => {
  const program: Program<Int32Array> = {
    make: () => words(1),
    threads: [
      (m, model) => {
        const wait = new ChangeWait(m, 0)
        for (let seen = 0; seen < 2; seen = shared.load(m, 0)) {
          while (wait.wait(seen) !== undefined) model.hostTurn()
        }
      },
      (m) => {
        for (let i = 0; i < 2; i += 1) {
          shared.add(m, 0, 1)
          shared.notify(m, 0)
        }
      },
    ],
  }
  expectSound('change wait: two changes', program, { preemptions: 5 })
})

test('model / word wait / broken: looking for waiters before the change is caught', () => {
  const program: Program<Int32Array> = {
    make: () => words(2),
    threads: [
      (m, model) => waitFor(m, model, wordWait(m), 'over without the change'),
      (m) => {
        const waiting = shared.load(m, 1) !== 0
        shared.add(m, 0, 1)
        if (waiting) shared.notify(m, 0)
      },
    ],
  }
  expectCaught('word wait broken: early look', program, /stuck for ever/)
})

test('model / word wait / broken: registering after the last look is caught', () => {
  const program: Program<Int32Array> = {
    make: () => words(2),
    threads: [
      (m, model) => {
        const wait = shared.waitAsync(m, 0, 0)
        // The change that came meanwhile saw nobody to tell.
        shared.store(m, 1, 1)
        if (wait.async) model.settle(wait.value)
      },
      change,
    ],
  }
  expectCaught('word wait broken: late register', program, /stuck for ever/)
})
