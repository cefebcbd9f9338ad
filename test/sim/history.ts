/**
 * One history of a pair, made and judged from a seed.
 *
 * Invariants:
 * - The same seed gives the same trace, line by line.
 * - Every order and every request has to settle within a bound of virtual time.
 * - What is judged: hidden over secondary disk equals the last checkpoint, at every write of the secondary
 *   disk and at random moments; every read; that all disks are in one stage and epoch, and none
 *   changes while a broken checkpoint waits; what the secondary holds after failover and stop;
 *   errors without a cause; counters at the end.
 */

import { VirtualClock } from '../../src/util/clock.ts'
import { Random } from '../../src/util/random.ts'
import { type Action, noteCells } from './coverage.ts'
import { SOUND } from './disk.ts'
import type { GuestHost, Guests } from './guest.ts'
import { useHostNet } from './host-net.ts'
import type { Canary } from './machinery.ts'
import { SimNetwork } from './network.ts'
import { describe, type Finale, failureOf, type Verdict } from './outcome.ts'
import { restOf, SimPair } from './pair.ts'
import { Volume } from './volume.ts'

/** Nothing may take longer than this, in virtual milliseconds. */
const PATIENCE_MS = 300_000
/** Longer than anything that a lost connection left behind can take, in virtual milliseconds. */
const LINGER_MS = 5000
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
  readonly #cells = new Set<string>()
  #pair!: SimPair
  #volumes: readonly Volume[] = []
  #interrupted = 0
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
    const storm = canary === 'many-connections' || canary === 'open-fence'
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
      requests: this.#users().reduce((sum, { requests }) => sum + requests, 0),
      checkpoints: this.#checkpoints,
      interrupted: this.#interrupted,
      cells: this.#cells,
    }
  }

  #users(): Guests[] {
    return this.#volumes.flatMap(({ writers, guests }) => [writers, guests])
  }

  /** The stage of every disk; they have to agree. */
  #stage(): string {
    const stages = new Set(this.#volumes.map(({ stage }) => stage))
    if (stages.size > 1) this.#problem(`the disks are in different stages: ${[...stages].join()}`)
    return [...stages].join()
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
      count: random.chance(0.4) ? 2 : 1,
      reconnectDelay: random.chance(0.3) ? 5 : 0,
    })
    const { primary, secondary, prefixes } = this.#pair
    const host: GuestHost = {
      clock: this.#clock,
      random: random.fork(),
      trace: this.#note,
      newTag: () => ++this.#tags,
      problem: this.#problem,
      mayFail: () => this.#disturbed || this.#closing,
    }
    const options = { pair: this.#pair, host, watching: () => this.#watching }
    const volumes: Volume[] = []
    for (const prefix of prefixes) volumes.push(await Volume.open(prefix, options))
    this.#volumes = volumes
    secondary.events.on('REPLICATION_FAILOVER_DONE', () => this.#meet('commit pivot'))
    await this.#startSecondary()
    await primary.replication.startAll('primary')
    this.#watching = true
    for (const { writers, guests } of volumes) {
      writers.start(1 + random.int(3), 5 + random.int(60))
      guests.start(1 + random.int(2), 5 + random.int(60))
    }
  }

  #meet(action: Action): void {
    noteCells(this.#cells, action, this.#volumes, this.#pair, this.#network.cuts)
  }

  /** With disks that fail now and then; a start that failed has to work once they do not. */
  async #startSecondary(): Promise<void> {
    const { replication } = this.#pair.secondary
    const sick = !this.#calm && this.#random.chance(0.3)
    if (sick) this.#pair.setFaults({ read: 0.2, write: 0.2, full: false, stall: 0, empty: 0.3 })
    const failed = await failureOf(replication.startAll('secondary'))
    this.#pair.heal()
    if (failed === undefined) return
    const stage = this.#stage()
    if (!sick || stage !== 'none')
      this.#problem(`a start failed and left ${stage}: ${failed.message}`)
    await replication.startAll('secondary')
  }

  async #step(): Promise<void> {
    const random = this.#random
    const roll = random.next()
    if (this.#stormy && roll < 0.3) this.#storm()
    else if (roll < 0.55) await this.#order('checkpoint', () => this.#checkpoint())
    else if (roll < 0.72) await this.#order('drain', () => this.#drain())
    else if (roll < 0.75) await this.#order('reopen', () => this.#reopen())
    else if (this.#calm) return
    else if (roll < 0.88) this.#breakDisks()
    else if (roll < 0.9) this.#pair.heal()
    else if (roll < 0.94) await this.#order('resync', () => this.#resync())
    else if (roll < 0.97) this.#disturb('cut', () => this.#network.cut())
    else this.#disturb('lose protection', () => this.#loseProtection())
  }

  #storm(): void {
    const { prefix } = this.#random.pick(this.#volumes)
    const noEmptying = this.#canary === undefined && this.#random.chance(0.3)
    if (this.#canary === 'open-fence' || noEmptying) {
      const sick = [`${prefix}hidden`]
      this.#disturb('no emptying', () => this.#pair.setFaults({ ...SOUND, empty: 0.7 }, sick))
      return
    }
    this.#pair.setFaults({ ...SOUND, stall: 0.1 }, [`${prefix}local`])
    this.#disturb('cut', () => this.#network.cut())
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
    this.#meet('job cancel')
    for (const job of this.#pair.secondary.jobs.all()) void job.cancelSync(true)
  }

  /** What did not arrive is sent again while the guests go on. */
  async #resync(): Promise<void> {
    const { graph, replication } = this.#pair.primary
    for (const { prefix } of this.#volumes) {
      const node = `${prefix}replica`
      if (replication.list().find((one) => one.node === node)?.error === undefined) continue
      const failed = await failureOf(replication.resync(node, graph.lookup(`${prefix}own`)))
      this.#note(`resync ${prefix}${failed?.code ?? 'done'}`)
    }
  }

  /**
   * As a manager does it: the primary's guests rest, it says that all arrived, then we move. Or
   * without that: a point in time all the same, of whatever has arrived.
   */
  async #checkpoint(): Promise<void> {
    if (this.#random.chance(0.25)) return this.#move(false)
    const still = this.#random.chance(0.5)
    if (this.#random.chance(0.6)) await this.#resync()
    for (const { writers } of this.#volumes) await writers.hold()
    if (still) for (const { guests } of this.#volumes) await guests.hold()
    try {
      // What a broken checkpoint left is completed whatever the primary says meanwhile.
      if (this.#stage() !== 'interrupted' && !(await this.#allArrived())) return
      await this.#move(still)
    } finally {
      for (const { writers } of this.#volumes) writers.release()
      if (still) for (const { guests } of this.#volumes) guests.release()
    }
  }

  async #allArrived(): Promise<boolean> {
    const sick = await failureOf(this.#pair.primary.replication.checkpointAll())
    if (sick !== undefined) {
      this.#note(`refused ${sick.code}`)
      if (!this.#disturbed) this.#problem(`a checkpoint was refused: ${sick.message}`)
      return false
    }
    for (const volume of this.#volumes) volume.judgeArrived()
    return true
  }

  async #move(still: boolean): Promise<void> {
    const before = this.#stage()
    this.#watching = false
    for (const { model } of this.#volumes) model.checkpointBegins()
    this.#meet('checkpoint')
    const failed = await failureOf(this.#pair.secondary.replication.checkpointAll())
    const stage = this.#stage()
    const moved = failed === undefined || (stage === 'interrupted' && before !== stage)
    for (const volume of this.#volumes) {
      if (moved) volume.guests.version += 1
      if (moved) volume.model.checkpointEnds(volume.checkpointWords())
      else volume.model.checkpointFailed()
    }
    this.#watching = true
    this.#note(`checkpoint ${failed?.message ?? 'done'}`)
    if (failed === undefined) this.#checkpoints += 1
    else if (!this.#disturbed) this.#problem(`a checkpoint failed: ${failed.message}`)
    if (failed === undefined && stage !== 'running') this.#problem(`it left ${stage}`)
    if (stage === 'interrupted' && before !== stage) this.#broken()
    for (const volume of this.#volumes) {
      volume.judgeFrozen('a checkpoint')
      if (still && stage === 'running' && this.#pair.sound)
        await volume.guests.judgeAll('a checkpoint')
    }
    const epochs = this.#pair.secondary.replication.list().map(({ epoch }) => epoch)
    if (new Set(epochs).size > 1) this.#problem(`the disks are in epochs ${epochs.join()}`)
  }

  #broken(): void {
    this.#interrupted += 1
    if (this.#canary === 'open-fence') this.#pair.forgetFence()
  }

  /** Changes an option of a disk under load; a disk in use may refuse. */
  async #reopen(): Promise<void> {
    const { graph } = this.#pair.secondary
    const { prefix } = this.#random.pick(this.#volumes)
    const node = graph.find(prefix + this.#random.pick(['local', 'hidden', 'active']))
    if (node === undefined) return
    const options = { ...node.options, 'detect-zeroes': this.#random.pick(['on', 'off'] as const) }
    this.#meet('reopen')
    const failed = await failureOf(graph.reopen([{ node, options }]))
    this.#note(`reopen ${node.name} ${failed?.message ?? 'done'}`)
  }

  async #drain(): Promise<void> {
    const { graph } = this.#pair.secondary
    const node = this.#random.pick(graph.nodes())
    this.#meet('drain nesting')
    await graph.drainedBegin(node)
    await this.#sleep(this.#random.next() * 50)
    const all = this.#random.chance(0.3)
    if (all) {
      await graph.drainAllBegin()
      for (const each of graph.nodes())
        if (each.gate.inFlight > 0) this.#problem(`${each.name} has requests while drained`)
    }
    for (const volume of this.#volumes) volume.judgeFrozen('a drain')
    if (all) graph.drainAllEnd()
    graph.drainedEnd(node)
  }

  async #finish(): Promise<void> {
    this.#watching = false
    if (this.#finale === 'close') return
    if (this.#finale === 'stop') return this.#stop()
    if (this.#finale !== 'failover') await this.#crash()
    // From now on what the primary forwards is refused, which its guests do not notice.
    this.#meet('failover begin')
    const failed = await failureOf(this.#pair.secondary.replication.stopAll(true))
    if (failed !== undefined) this.#problem(`the failover failed: ${failed.message}`)
    if (this.#finale === 'close-merging') return
    await this.#merged()
    await this.#sleep(this.#random.next() * 100)
    for (const { guests } of this.#volumes) await guests.hold()
    this.#pair.heal()
    for (const volume of this.#volumes) await volume.judgeMerged()
    for (const { guests } of this.#volumes) guests.release()
  }

  async #merged(): Promise<void> {
    const { replication } = this.#pair.secondary
    await replication.settled()
    const failed = this.#volumes.filter(({ stage }) => stage === 'failover-failed')
    if (failed.length > 0) {
      if (!this.#disturbed) this.#problem('the merge failed without a cause')
      await this.#sleep(this.#random.next() * 100)
      this.#pair.heal()
      for (const { prefix } of failed) await replication.retryFailover(`${prefix}top`)
      await replication.settled()
    }
    const stage = this.#stage()
    if (stage !== 'done') this.#problem(`the merge ended in ${stage}`)
  }

  async #crash(): Promise<void> {
    this.#disturb('crash', () => this.#network.takeDown())
    await this.#sleep(this.#random.next() * 100)
  }

  async #stop(): Promise<void> {
    // After it our guest's writes stand over a disk that the primary may change: one side rests.
    const rests = this.#random.pick(['both', 'guests', 'writers'] as const)
    if (rests !== 'writers') for (const { guests } of this.#volumes) await guests.hold()
    if (rests !== 'guests') for (const { writers } of this.#volumes) await writers.hold()
    // A stop works also when a buffer cannot be emptied, or with whatever is broken already.
    const empty = this.#disturbed && this.#random.chance(0.5) ? 0.5 : 0
    if (this.#random.chance(0.5)) this.#pair.setFaults({ ...SOUND, empty })
    // What an ended connection left on its way has to come to rest before the view is compared.
    if (rests !== 'guests') await this.#sleep(LINGER_MS)
    for (const { model } of this.#volumes) model.checkpointBegins()
    this.#meet('stop')
    const failed = await failureOf(this.#pair.secondary.replication.stopAll(false))
    if (failed !== undefined) this.#problem(`stop failed: ${failed.message}`)
    this.#pair.heal()
    if (rests === 'writers') for (const { guests } of this.#volumes) await guests.hold()
    if (rests === 'guests') {
      for (const { writers } of this.#volumes) await writers.hold()
      await this.#sleep(LINGER_MS)
    }
    for (const volume of this.#volumes) {
      volume.model.checkpointEnds(volume.words())
      volume.guests.version += 1
      await volume.guests.judgeAll('a stop')
      volume.guests.release()
    }
    const stage = this.#stage()
    if (stage !== 'done') this.#problem(`stop ended in ${stage}`)
    await this.#pair.primary.replication.stopAll(false)
  }

  async #end(): Promise<void> {
    const { primary, secondary } = this.#pair
    const merging = this.#finale === 'close-merging' || this.#finale === 'close'
    this.#closing = true
    if (!merging) {
      await this.#stopUsers()
      for (const found of this.#pair.restless()) this.#problem(`at the end ${found}`)
      this.#pair.heal()
      for (const { writers } of this.#volumes) await writers.judgeAll('the end')
    }
    this.#meet('close')
    for (const runtime of this.#random.shuffle([primary, secondary]))
      await this.#order('close', () => runtime.close())
    await this.#stopUsers()
    for (const runtime of [primary, secondary]) {
      for (const node of runtime.graph.nodes()) this.#problem(`node ${node.name} outlived its end`)
      for (const left of restOf(runtime.ctx)) this.#problem(`at the end there is ${left}`)
    }
  }

  async #stopUsers(): Promise<void> {
    await Promise.all(this.#users().map((user) => user.stop()))
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
