import { test } from 'vitest'
import { shared } from '../../src/sync/atomics.ts'
import { CopyMap } from '../../src/sync/copy-map.ts'
import { DirtyBitmap } from '../../src/sync/dirty-bitmap.ts'
import { Gate } from '../../src/sync/gate.ts'
import type { Model, Program } from './explorer.ts'
import { expectCaught, expectSound, must } from './support.ts'

/** One cluster of a disk and of the copy that keeps its content of the last checkpoint. */
interface Memory {
  readonly gate: Int32Array
  readonly map: Int32Array
  /** [0] the disk's cluster, [1] the hidden copy: 0 = none, else content. */
  readonly data: Int32Array
  /** What the disk held at the last checkpoint. */
  frozen: number
}

const NO_COPY = -1

function make(): Memory {
  const data = new Int32Array(new SharedArrayBuffer(8))
  data[1] = NO_COPY
  return { gate: Gate.create().words, map: CopyMap.create(1).words, data, frozen: 0 }
}

/** A replicated write with copy-before-write, inside the gate. */
function write(m: Memory, model: Model, value: number, fail = false): void {
  const gate = new Gate(m.gate)
  const map = new CopyMap(m.map)
  gate.enterBlocking()
  for (;;) {
    const state = map.claim(0)
    if (state === 'copied') break
    if (state === 'claimed') {
      map.waitSettled(0)
      continue
    }
    if (fail) {
      map.abandon(0)
      gate.end()
      return
    }
    shared.store(m.data, 1, shared.load(m.data, 0))
    map.complete(0)
    break
  }
  shared.store(m.data, 0, value)
  view(m, model)
  gate.end()
}

/** The frozen view is the copy where there is one, else the disk. */
function view(m: Memory, model: Model): void {
  model.ghost(() => {
    const copied = new CopyMap(m.map.slice())
    const shown = copied.state(0) === 'copied' ? m.data[1] : m.data[0]
    must(shown === m.frozen, `the frozen view shows ${shown}, not ${m.frozen}`)
  })
}

function checkpoint(m: Memory, model: Model): void {
  const gate = new Gate(m.gate)
  gate.quiesce()
  while (gate.whenIdle() !== undefined) model.hostTurn()
  bump(m, model)
  gate.unquiesce()
}

function bump(m: Memory, model: Model): void {
  new CopyMap(m.map).bumpEpoch()
  model.ghost(() => {
    m.frozen = m.data[0] ?? 0
  })
}

function atRest(m: Memory): void {
  must(m.map[1] === 0, 'a claim is left over')
}

test('model / copy map / claim versus checkpoint epoch', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      checkpoint,
      (m, model) => {
        write(m, model, 11)
        write(m, model, 12)
      },
    ],
    check: atRest,
  }
  expectSound('copy map: checkpoint versus two writes', program, { preemptions: 3 })
})

test('model / copy map / two writers of one cluster and a checkpoint', () => {
  const program: Program<Memory> = {
    make,
    threads: [checkpoint, (m, model) => write(m, model, 11), (m, model) => write(m, model, 22)],
    check: atRest,
  }
  expectSound('copy map: checkpoint versus two writers', program, { preemptions: 2 })
})

test('model / copy map / a failed copy leaves the cluster to the next writer', () => {
  const program: Program<Memory> = {
    make,
    threads: [
      (m, model) => write(m, model, 11, true),
      (m, model) => write(m, model, 22),
      (m, model) => write(m, model, 33),
    ],
    check: (m) => {
      atRest(m)
      must(new CopyMap(m.map).state(0) === 'copied' && m.data[1] === 0, 'the copy is missing')
    },
  }
  expectSound('copy map: abandon', program, { preemptions: 2 })
})

test('model / copy map / main waits for a claim without blocking', () => {
  const program: Program<Memory> = {
    make: () => {
      const memory = make()
      new CopyMap(memory.map).claim(0)
      return memory
    },
    threads: [
      (m, model) => {
        const map = new CopyMap(m.map)
        while (map.whenSettled(0) !== undefined) model.hostTurn()
        must(map.state(0) === 'copied', 'over with the claim unsettled')
      },
      (m) => new CopyMap(m.map).complete(0),
    ],
    check: atRest,
  }
  expectSound('copy map: wait on main', program, { preemptions: 4 })
})

test('model / copy map / broken: an epoch that moves undrained is caught', () => {
  const program: Program<Memory> = {
    make,
    threads: [bump, (m, model) => write(m, model, 11)],
  }
  expectCaught('copy map broken: no drain', program, /is claimed|frozen view|only a claimed/)
})

test('model / copy map / broken: a claim of two steps is caught', () => {
  const program: Program<Memory> = {
    make,
    threads: [(m, model) => write(m, model, 11), (m, model) => write(m, model, 22)],
    sabotage: (ops) => ({
      compareExchange: (words, index, expected, replacement) => {
        const before = ops.load(words, index)
        if (before === expected) ops.store(words, index, replacement)
        return before
      },
    }),
  }
  expectCaught('copy map broken: torn claim', program, /frozen view|only a claimed|stuck/)
})

test('model / copy map / broken: a settled claim that wakes nobody is caught', () => {
  const program: Program<Memory> = {
    make,
    threads: [(m, model) => write(m, model, 11), (m, model) => write(m, model, 22)],
    sabotage: () => ({ notify: () => 0 }),
  }
  expectCaught('copy map broken: lost wake-up', program, /stuck for ever/)
})

/** Two regions, a source and a target. */
interface Mirror {
  readonly bits: Int32Array
  readonly source: Int32Array
  readonly target: Int32Array
}

const SIZE = 8
const REGION = 4

function makeMirror(): Mirror {
  const words = (): Int32Array => new Int32Array(new SharedArrayBuffer(SIZE))
  return { bits: DirtyBitmap.create(SIZE, REGION).words, source: words(), target: words() }
}

const bitmap = (m: Mirror): DirtyBitmap => new DirtyBitmap(m.bits, SIZE, REGION)

function guestWrite(m: Mirror, region: number, value: number): void {
  shared.store(m.source, region, value)
  bitmap(m).setRange(region * REGION, REGION)
}

function copyRound(m: Mirror): void {
  const dirty = bitmap(m)
  for (let at = 0; ; ) {
    const run = dirty.nextDirty(at, REGION)
    if (run === undefined) return
    dirty.clearRange(run.offset, run.bytes)
    shared.store(m.target, run.offset / REGION, shared.load(m.source, run.offset / REGION))
    at = run.offset + run.bytes
  }
}

/** What is not dirty is equal on both sides. */
function mirrored(m: Mirror): void {
  const dirty = bitmap(m)
  let count = 0
  for (let region = 0; region < 2; region += 1) {
    if (dirty.get(region * REGION)) count += 1
    else must(m.source[region] === m.target[region], `region ${region} is clean and differs`)
  }
  must(dirty.count === count, `the count says ${dirty.count}, the bits say ${count}`)
}

test('model / dirty bitmap / set after write versus clear before read', () => {
  const program: Program<Mirror> = {
    make: makeMirror,
    threads: [
      copyRound,
      (m) => {
        guestWrite(m, 0, 1)
        guestWrite(m, 0, 2)
        guestWrite(m, 1, 3)
      },
    ],
    check: mirrored,
  }
  expectSound('dirty bitmap: one writer', program, { preemptions: 4 })
})

test('model / dirty bitmap / two writers in one word, two rounds', () => {
  const program: Program<Mirror> = {
    make: makeMirror,
    threads: [
      (m) => {
        copyRound(m)
        copyRound(m)
      },
      (m) => guestWrite(m, 0, 1),
      (m) => guestWrite(m, 1, 2),
    ],
    check: mirrored,
  }
  expectSound('dirty bitmap: two writers', program, { preemptions: 3 })
})

test('model / dirty bitmap / broken: clearing after the read is caught', () => {
  const program: Program<Mirror> = {
    make: makeMirror,
    threads: [
      (m) => {
        const dirty = bitmap(m)
        const run = dirty.nextDirty(0, REGION)
        if (run === undefined) return
        shared.store(m.target, 0, shared.load(m.source, 0))
        dirty.clearRange(run.offset, run.bytes)
      },
      (m) => {
        guestWrite(m, 0, 1)
        guestWrite(m, 0, 2)
      },
    ],
    check: mirrored,
  }
  expectCaught('dirty bitmap broken: clear after read', program, /is clean and differs/)
})

test('model / dirty bitmap / broken: setting before the write is caught', () => {
  const program: Program<Mirror> = {
    make: makeMirror,
    threads: [
      copyRound,
      (m) => {
        bitmap(m).setRange(0, REGION)
        shared.store(m.source, 0, 1)
      },
    ],
    check: mirrored,
  }
  expectCaught('dirty bitmap broken: set before write', program, /is clean and differs/)
})
