/**
 * What a drain across threads costs, against a bare notify that is answered by a bare notify.
 *
 * Invariants:
 * - The worker's requests are work of the same length; a drain meets one at a random place, so half
 *   of it is left on average, and the bare answer has half of it to do before it answers.
 * - Nothing is subtracted.
 */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import { Gate } from '../src/sync/gate.ts'
import { type BenchRow, percentile } from './measure.ts'

/** How long a request works, in microseconds. */
const REQUEST_US = 40
/** Drains, and bare trips, of each kind. */
const SAMPLES = 900
/** How often the kinds alternate. */
const TURNS = 15

/** Words between the two threads. */
const WORD = { ask: 0, answer: 1, mode: 2, requests: 3, never: 4 } as const
/** What the worker does: requests with a sleep between, as a disk's worker has, or bare answers. */
const MODE = { requests: 0, bare: 1, end: 2 } as const

const WORKER = `
const { workerData } = require('node:worker_threads')
const { words, WORD, MODE, gateUrl, requestNs } = workerData
function work(ns) {
  const end = process.hrtime.bigint() + BigInt(ns)
  while (process.hrtime.bigint() < end);
}
import(gateUrl).then(({ Gate }) => {
  const gate = new Gate(workerData.gate)
  for (;;) {
    const mode = Atomics.load(words, WORD.mode)
    if (mode === MODE.end) return
    if (mode === MODE.bare) {
      Atomics.wait(words, WORD.ask, Atomics.load(words, WORD.answer))
      const asked = Atomics.load(words, WORD.ask)
      if (asked === Atomics.load(words, WORD.answer)) continue
      work(requestNs / 2)
      Atomics.store(words, WORD.answer, asked)
      Atomics.notify(words, WORD.answer)
      continue
    }
    gate.enterBlocking()
    Atomics.add(words, WORD.requests, 1)
    work(requestNs)
    gate.end()
    Atomics.wait(words, WORD.never, 0, requestNs / 1e6)
  }
})`

/** Drains of two kinds and bare trips, in nanoseconds. */
interface Times {
  readonly inside: number[]
  readonly any: number[]
  readonly bare: number[]
}

class Bench {
  readonly #gate = Gate.create()
  readonly #words = new Int32Array(new SharedArrayBuffer(20))
  readonly #worker: Worker

  constructor() {
    const gateUrl = new URL('../src/sync/gate.js', import.meta.url).href
    const data = { gate: this.#gate.words, words: this.#words, WORD, MODE, gateUrl }
    const workerData = { ...data, requestNs: REQUEST_US * 1000 }
    this.#worker = new Worker(WORKER, { eval: true, workerData })
  }

  /** The three kinds in turns, so that a slow moment of the machine meets all of them. */
  async measure(): Promise<Times> {
    const times: Times = { inside: [], any: [], bare: [] }
    for (let turn = 0; turn < TURNS; turn++) {
      await this.#switchTo(MODE.requests)
      await this.#drains(times.inside, true)
      await this.#drains(times.any, false)
      await this.#switchTo(MODE.bare)
      await this.#trips(times.bare)
    }
    const exit = once(this.#worker, 'exit')
    await this.#switchTo(MODE.end)
    await exit
    this.#gate.dispose()
    return times
  }

  async #switchTo(mode: number): Promise<void> {
    Atomics.store(this.#words, WORD.mode, mode)
    // It may sleep for the next question.
    Atomics.add(this.#words, WORD.answer, 1)
    Atomics.store(this.#words, WORD.ask, Atomics.load(this.#words, WORD.answer))
    Atomics.notify(this.#words, WORD.ask)
    await turns(20)
  }

  /** Drains at random moments; of `insideOnly` those count that found a request under way. */
  async #drains(into: number[], insideOnly: boolean): Promise<void> {
    const { length } = into
    while (into.length < length + SAMPLES / TURNS) {
      await this.#someRequests()
      if (insideOnly) this.#meetRequest()
      const start = process.hrtime.bigint()
      this.#gate.quiesce()
      const wait = this.#gate.whenIdle()
      if (wait !== undefined) await wait
      const ns = Number(process.hrtime.bigint() - start)
      this.#gate.unquiesce()
      if (wait !== undefined || !insideOnly) into.push(ns)
    }
  }

  /** Until the worker is back at work, and then some, so that the next drain meets it anywhere. */
  async #someRequests(): Promise<void> {
    const before = Atomics.load(this.#words, WORD.requests)
    while (Atomics.load(this.#words, WORD.requests) < before + 2) await turns(1)
    await randomTurns()
  }

  /** Until a request is under way, and then up to its length. */
  #meetRequest(): void {
    while (this.#gate.inFlight === 0);
    const end = performance.now() + (Math.random() * REQUEST_US) / 1000
    while (performance.now() < end);
  }

  async #trips(into: number[]): Promise<void> {
    // Nothing but a wait that the loop does not count keeps the process alive here.
    const keep = setInterval(() => undefined, 1000)
    for (let i = 0; i < SAMPLES / TURNS; i++) {
      await randomTurns()
      const start = process.hrtime.bigint()
      const asked = Atomics.load(this.#words, WORD.ask) + 1
      Atomics.store(this.#words, WORD.ask, asked)
      Atomics.notify(this.#words, WORD.ask)
      const wait = Atomics.waitAsync(this.#words, WORD.answer, asked - 1)
      if (wait.async) await wait.value
      into.push(Number(process.hrtime.bigint() - start))
    }
    clearInterval(keep)
  }
}

async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve))
}

/** Turns of the host loop for a random time of up to four requests. */
async function randomTurns(): Promise<void> {
  const end = performance.now() + (Math.random() * 4 * REQUEST_US) / 1000
  do await turns(1)
  while (performance.now() < end)
}

/** The rows about drains. */
export async function drainRows(): Promise<BenchRow[]> {
  const times = await new Bench().measure()
  const bare = percentile(times.bare, 0.5)
  const row = (kind: string, list: number[], goal?: string): BenchRow => ({
    what:
      `cross-thread drain begun ${kind} to acknowledged / ` +
      `bare notify and waitAsync round trip with half a request in it (medians)`,
    ratio: percentile(list, 0.5) / bare,
    ...(goal === undefined ? {} : { goal }),
    detail: `${us(percentile(list, 0.5))} / ${us(bare)}, requests of ${REQUEST_US} us`,
  })
  return [
    row('while the worker is inside a request', times.inside, '<= 1.5'),
    row('at any moment', times.any, '<= 1.5'),
  ]
}

function us(ns: number): string {
  return `${(ns / 1000).toFixed(1)} us`
}
