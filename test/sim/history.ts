/**
 * One history of a pair, made and judged from a seed.
 *
 * Invariants:
 * - The same seed gives the same trace, line by line.
 * - Every order and every request has to settle within a bound of virtual time.
 * - What is judged: hidden over secondary disk equals the last checkpoint, at every write of the secondary
 *   disk and at random moments; every read; what the secondary holds after failover and stop;
 *   errors without a cause; counters at the end.
 */

import { VirtualClock } from '../../src/util/clock.ts'
import { asBlockError, type BlockError } from '../../src/util/errors.ts'
import { Random } from '../../src/util/random.ts'
import { PAGE, SOUND } from './disk.ts'
import { type GuestHost, Guests } from './guest.ts'
import { useHostNet } from './host-net.ts'
import type { Canary } from './machinery.ts'
import { PrimaryModel, SecondaryModel } from './model.ts'
import { SimNetwork } from './network.ts'
import { PAGES, restOf, SimPair } from './pair.ts'

/** How a history ended. */
export interface Verdict {
  readonly seed: number
  /** What was wrong, first things first; empty for a good history. */
  readonly problems: readonly string[]
  readonly trace: readonly string[]
  /** How it ended: `failover`, `stop`, `close` … */
  readonly finale: Finale
  readonly requests: number
  readonly checkpoints: number
}

/** How a history ends. */
export type Finale = 'failover' | 'crash' | 'stop' | 'close' | 'close-merging'

/** Nothing may take longer than this, in virtual milliseconds. */
const PATIENCE_MS = 300_000
const FINALES: readonly Finale[] = ['failover', 'crash', 'crash', 'stop', 'close', 'close-merging']

/** Makes and judges the history of a seed. */
export async function runHistory(seed: number, canary?: Canary): Promise<Verdict> {
  const history = new History(seed, canary)
  await history.run()
  return history.verdict()
}

class History {
  readonly #seed: number
  readonly #canary: Canary | undefined
  readonly #random: Random
  readonly #clock = new VirtualClock()
  readonly #trace: string[] = []
  readonly #problems: string[] = []
  readonly #network: SimNetwork
  readonly #finale: Finale
  /** Whether anything is ever made to fail. */
  readonly #calm: boolean
  /** Connections break often while writes hang on the other side. */
  readonly #stormy: boolean
  readonly #primaryModel = new PrimaryModel(PAGES)
  readonly #model = new SecondaryModel(PAGES)
  #pair!: SimPair
  #writers!: Guests
  #guests!: Guests
  #tags = 0
  #watching = false
  #closing = false
  #disturbed = false
  #checkpoints = 0
  #waitingFor = 'setup'

  constructor(seed: number, canary: Canary | undefined) {
    this.#seed = seed
    this.#canary = canary
    this.#random = new Random(seed)
    const storm = canary === 'many-connections'
    this.#calm = !storm && (canary !== undefined || this.#random.chance(0.3))
    this.#stormy = storm || (!this.#calm && this.#random.chance(0.3))
    this.#finale = this.#random.pick(FINALES)
    this.#network = new SimNetwork({
      clock: this.#clock,
      random: this.#random.fork(),
      delayMs: 1 + this.#random.int(30),
      trace: this.#note,
    })
  }

  verdict(): Verdict {
    return {
      seed: this.#seed,
      problems: this.#problems,
      trace: this.#trace,
      finale: this.#finale,
      requests: (this.#writers?.requests ?? 0) + (this.#guests?.requests ?? 0),
      checkpoints: this.#checkpoints,
    }
  }

  /** Runs everything, moving time for as long as something waits for it. */
  async run(): Promise<void> {
    useHostNet(this.#network)
    let over = false
    const story = this.#story().then(
      () => undefined,
      (thrown: unknown) => this.#problem(`the history broke: ${describe(thrown)}`),
    )
    void story.then(() => {
      over = true
    })
    while (!over && this.#clock.nowMs() < PATIENCE_MS) await this.#clock.advance(50)
    if (!over) this.#problem(`waits forever for: ${this.#waitingFor}`)
    useHostNet(undefined)
  }

  readonly #note = (line: string): void => {
    this.#trace.push(`${this.#clock.nowMs().toFixed(3)} ${line}`)
  }

  readonly #problem = (sentence: string): void => {
    this.#note(`PROBLEM ${sentence}`)
    this.#problems.push(sentence)
  }

  async #story(): Promise<void> {
    await this.#setUp()
    const steps = 6 + this.#random.int(14)
    for (let step = 0; step < steps; step++) {
      await this.#sleep(this.#random.next() * 200)
      await this.#step()
    }
    await this.#sleep(this.#random.next() * 200)
    await this.#order(this.#finale, () => this.#finish())
    await this.#order('the end', () => this.#end())
  }

  async #setUp(): Promise<void> {
    const random = this.#random
    this.#pair = await SimPair.create({
      clock: this.#clock,
      random: random.fork(),
      trace: this.#note,
      canary: this.#canary,
      reconnectDelay: random.chance(0.3) ? 5 : 0,
    })
    const { primary, secondary } = this.#pair
    const host: GuestHost = {
      clock: this.#clock,
      random: random.fork(),
      trace: this.#note,
      newTag: () => ++this.#tags,
      problem: this.#problem,
      mayFail: () => this.#disturbed || this.#closing,
    }
    const colo = await primary.openBackend('colo')
    const top = await secondary.openBackend('top')
    this.#writers = new Guests('primary', colo, this.#primaryModel, host)
    this.#guests = new Guests('secondary', top, this.#model, { ...host, random: random.fork() })
    this.#pair.disk('local').applied = (offset, bytes) =>
      this.#judgeFrozen('a write', offset, bytes)
    await this.#startSecondary()
    await primary.replication.startAll('primary')
    this.#watching = true
    this.#writers.start(1 + random.int(3), 5 + random.int(60))
    this.#guests.start(1 + random.int(2), 5 + random.int(60))
  }

  /** With disks that fail now and then; a start that failed has to work once they do not. */
  async #startSecondary(): Promise<void> {
    const { replication } = this.#pair.secondary
    const sick = !this.#calm && this.#random.chance(0.3)
    if (sick) this.#pair.setFaults({ read: 0.2, write: 0.2, full: false, stall: 0, empty: 0.3 })
    const failed = await failureOf(replication.startAll('secondary'))
    this.#pair.heal()
    if (failed === undefined) return
    if (!sick || this.#pair.stage !== 'none')
      this.#problem(`a start failed and left ${this.#pair.stage}: ${failed.message}`)
    await replication.startAll('secondary')
  }

  async #step(): Promise<void> {
    const random = this.#random
    const roll = random.next()
    if (this.#stormy && roll < 0.3) {
      this.#pair.setFaults({ ...SOUND, stall: 0.1 }, ['local'])
      this.#disturb('cut', () => this.#network.cut())
    } else if (roll < 0.55) await this.#order('checkpoint', () => this.#checkpoint())
    else if (roll < 0.72) await this.#order('drain', () => this.#drain())
    else if (roll < 0.75) await this.#order('reopen', () => this.#reopen())
    else if (this.#calm) return
    else if (roll < 0.88) this.#breakDisks()
    else if (roll < 0.9) this.#pair.heal()
    else if (roll < 0.94) await this.#order('resync', () => this.#resync())
    else if (roll < 0.97) this.#disturb('cut', () => this.#network.cut())
    else this.#disturb('lose protection', () => this.#loseProtection())
  }

  #breakDisks(): void {
    const random = this.#random
    const names = [...this.#pair.disks.keys()].filter(() => random.chance(0.5))
    const full = random.chance(0.2)
    const rare = (): number => (random.chance(0.5) ? random.next() * 0.1 : 0)
    const faults = { read: rare(), write: rare(), full, stall: rare() / 3, empty: rare() * 5 }
    this.#disturb(`faults ${names.join(' ')}`, () => this.#pair.setFaults(faults, names))
  }

  #disturb(what: string, act: () => void): void {
    this.#disturbed = true
    this.#note(`order ${what}`)
    act()
  }

  /** The job that saves old data is cancelled, as at the death of its thread. */
  #loseProtection(): void {
    for (const job of this.#pair.secondary.jobs.all()) void job.cancelSync(true)
  }

  /** What did not arrive is sent again while the guests go on. */
  async #resync(): Promise<void> {
    const { graph, replication } = this.#pair.primary
    if (replication.list()[0]?.error === undefined) return
    const own = graph.find('own')
    if (own === undefined) return
    const failed = await failureOf(replication.resync('replica', own))
    this.#note(`resync ${failed?.code ?? 'done'}`)
  }

  /** As a manager does it: the primary's guests rest, it says that all arrived, then we move. */
  async #checkpoint(): Promise<void> {
    const { primary, secondary } = this.#pair
    const still = this.#random.chance(0.5)
    if (this.#random.chance(0.6)) await this.#resync()
    await this.#writers.hold()
    if (still) await this.#guests.hold()
    try {
      const sick = await failureOf(primary.replication.checkpointAll())
      if (sick !== undefined) {
        this.#note(`refused ${sick.code}`)
        if (!this.#disturbed) this.#problem(`a checkpoint was refused: ${sick.message}`)
        return
      }
      this.#judgeArrived()
      this.#watching = false
      this.#model.checkpointBegins()
      const failed = await failureOf(secondary.replication.checkpointAll())
      this.#guests.version += 1
      this.#model.checkpointEnds(failed === undefined ? this.#pair.localWords() : undefined)
      this.#watching = true
      this.#note(`checkpoint ${failed?.message ?? 'done'}`)
      if (failed === undefined) this.#checkpoints += 1
      else if (!this.#disturbed) this.#problem(`a checkpoint failed: ${failed.message}`)
      this.#judgeFrozen('a checkpoint', 0, PAGES * PAGE)
      if (still && this.#sound()) await this.#guests.judgeAll('a checkpoint')
    } finally {
      this.#writers.release()
      if (still) this.#guests.release()
    }
  }

  /** What the primary calls complete is complete. */
  #judgeArrived(): void {
    for (const [page, word] of this.#pair.localWords().entries()) {
      const allowed = this.#primaryModel.of(page)
      if (!allowed.has(word))
        this.#problem(`page ${page} arrived as ${word}, not ${[...allowed].join(' or ')}`)
    }
  }

  #sound(): boolean {
    return [...this.#pair.disks.values()].every(({ faults }) => faults.read + faults.write === 0)
  }

  /** Changes an option of a disk under load; a disk in use may refuse. */
  async #reopen(): Promise<void> {
    const { graph } = this.#pair.secondary
    const node = graph.find(this.#random.pick(['local', 'hidden', 'active']))
    if (node === undefined) return
    const options = { ...node.options, 'detect-zeroes': this.#random.pick(['on', 'off'] as const) }
    const failed = await failureOf(graph.reopen([{ node, options }]))
    this.#note(`reopen ${node.name} ${failed?.message ?? 'done'}`)
  }

  async #drain(): Promise<void> {
    const { graph } = this.#pair.secondary
    const node = this.#random.pick(graph.nodes())
    await graph.drainedBegin(node)
    await this.#sleep(this.#random.next() * 50)
    const all = this.#random.chance(0.3)
    if (all) {
      await graph.drainAllBegin()
      for (const each of graph.nodes())
        if (each.gate.inFlight > 0) this.#problem(`${each.name} has requests while drained`)
    }
    this.#judgeFrozen('a drain', 0, PAGES * PAGE)
    if (all) graph.drainAllEnd()
    graph.drainedEnd(node)
  }

  #judgeFrozen(when: string, offset: number, bytes: number): void {
    if (!this.#watching || this.#pair.stage !== 'running') return
    const end = Math.ceil((offset + bytes) / PAGE)
    for (let page = Math.floor(offset / PAGE); page < end; page++) {
      const word = this.#pair.frozenWord(page)
      const wanted = this.#model.checkpoint[page]
      if (word === wanted) continue
      this.#problem(`after ${when} hidden over secondary is ${word} in page ${page}, not ${wanted}`)
      return
    }
  }

  async #finish(): Promise<void> {
    this.#watching = false
    if (this.#finale === 'close') return
    if (this.#finale === 'stop') return this.#stop()
    if (this.#finale !== 'failover') await this.#crash()
    // From now on what the primary forwards is refused, which its guests do not notice.
    const failed = await failureOf(this.#pair.secondary.replication.stopAll(true))
    if (failed !== undefined) this.#problem(`the failover failed: ${failed.message}`)
    if (this.#finale === 'close-merging') return
    await this.#merged()
    await this.#sleep(this.#random.next() * 100)
    await this.#guests.hold()
    this.#pair.heal()
    const view = await this.#guests.judgeAll('the end')
    for (const [page, word] of this.#pair.localWords().entries())
      if (word !== view[page]) this.#problem(`page ${page} was not merged: ${word}, ${view[page]}`)
    this.#guests.release()
  }

  async #merged(): Promise<void> {
    const { replication } = this.#pair.secondary
    await replication.settled()
    if (this.#pair.stage === 'failover-failed') {
      if (!this.#disturbed) this.#problem('the merge failed without a cause')
      await this.#sleep(this.#random.next() * 100)
      this.#pair.heal()
      await replication.retryFailover('top')
      await replication.settled()
    }
    if (this.#pair.stage !== 'done') this.#problem(`the merge ended in ${this.#pair.stage}`)
  }

  async #crash(): Promise<void> {
    this.#disturb('crash', () => this.#network.takeDown())
    await this.#sleep(this.#random.next() * 100)
  }

  async #stop(): Promise<void> {
    await this.#writers.hold()
    await this.#guests.hold()
    this.#pair.heal()
    // What an ended connection left on its way has to come to rest before the view is compared.
    await this.#sleep(1000)
    const failed = await failureOf(this.#pair.secondary.replication.stopAll(false))
    if (failed !== undefined) this.#problem(`stop failed: ${failed.message}`)
    this.#model.discarded(this.#pair.localWords())
    this.#guests.version += 1
    await this.#guests.judgeAll('a stop')
    this.#guests.release()
    if (this.#pair.stage !== 'done') this.#problem(`stop ended in ${this.#pair.stage}`)
    await this.#pair.primary.replication.stopAll(false)
  }

  async #end(): Promise<void> {
    const { primary, secondary } = this.#pair
    const merging = this.#finale === 'close-merging' || this.#finale === 'close'
    this.#closing = true
    if (!merging) {
      await Promise.all([this.#writers.stop(), this.#guests.stop()])
      for (const found of this.#pair.restless()) this.#problem(`at the end ${found}`)
      this.#pair.heal()
      await this.#writers.judgeAll('the end')
    }
    for (const runtime of this.#random.shuffle([primary, secondary]))
      await this.#order('close', () => runtime.close())
    await Promise.all([this.#writers.stop(), this.#guests.stop()])
    for (const runtime of [primary, secondary]) {
      for (const node of runtime.graph.nodes()) this.#problem(`node ${node.name} outlived its end`)
      for (const left of restOf(runtime.ctx)) this.#problem(`at the end there is ${left}`)
    }
  }

  async #order(name: string, act: () => Promise<void>): Promise<void> {
    this.#waitingFor = name
    this.#note(`order ${name}`)
    await act()
    this.#note(`done ${name}`)
    this.#waitingFor = 'the next order'
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => void this.#clock.setTimer(ms, resolve))
  }
}

async function failureOf(work: Promise<void>): Promise<BlockError | undefined> {
  try {
    await work
    return undefined
  } catch (thrown) {
    return asBlockError(thrown)
  }
}

function describe(thrown: unknown): string {
  return thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown)
}
