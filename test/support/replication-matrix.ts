/** One cell of the matrix: requests on both sides, an action in their midst, and a fault. */
import type { BlockBackend } from '../../src/block/backend.ts'
import { BlockBackend as Backend } from '../../src/block/backend.ts'
import { PERM } from '../../src/block/driver.ts'
import type { WorkerPool } from '../../src/job/pool.ts'
import { NbdClient } from '../../src/nbd/client.ts'
import type { ReplicationMachinery } from '../../src/replication/machinery.ts'
import { Exports } from '../../src/runtime/exports.ts'
import { HostClock } from '../../src/util/clock.ts'
import type { ErrorCode } from '../../src/util/errors.ts'
import {
  type Action,
  type Fault,
  type Kind,
  type Operation,
  SHAPES,
  type Shape,
  type Side,
} from './replication-cells.ts'
import { ProofStage } from './replication-proof.ts'
import {
  type Deed,
  explain,
  firstWorld,
  guestView,
  type Happening,
  type PossibleWorld,
  sameUnits,
  UNIT,
} from './replication-worlds.ts'
import { turn } from './tap.ts'

const CLUSTERS = 8
const PER_CLUSTER = 16
const UNITS = CLUSTERS * PER_CLUSTER
const SIZE = UNITS * UNIT
const BASE = 0x11
/** Turns of the loop within which everything settles, far more than anything takes. */
const PATIENCE = 1_000_000
const ERRORS: Readonly<Record<'read fault' | 'write fault' | 'no space', ErrorCode>> = {
  'read fault': 'EIO',
  'write fault': 'EIO',
  'no space': 'ENOSPC',
}

/** How a cell went. */
export interface Outcome {
  /** Sentences; none when everything is explained. */
  readonly problems: readonly string[]
  /** The request was on its way when the action began. */
  readonly overlapped: boolean
  /** Requests that the fault hit. */
  readonly faults: number
}

/** How a cell is played. */
export interface CellOptions {
  readonly pool: WorkerPool
  readonly machinery?: (right: ReplicationMachinery) => ReplicationMachinery
}

class Stop extends Error {}

/** One cell while it is played. */
class Cell {
  readonly problems: string[] = []
  overlapped = false
  readonly #stage: ProofStage
  readonly #operation: Operation
  readonly #action: Action
  readonly #fault: Fault
  #worlds: PossibleWorld[] = [firstWorld(UNITS, BASE)]
  #tick = 0
  #value = 0x40
  #exported!: BlockBackend
  #guest!: BlockBackend
  #exports: Exports | undefined
  #client: NbdClient | undefined

  constructor(stage: ProofStage, operation: Operation, action: Action, fault: Fault) {
    this.#stage = stage
    this.#operation = operation
    this.#action = action
    this.#fault = fault
  }

  get faults(): number {
    return this.#stage.taps.failed
  }

  async play(): Promise<void> {
    try {
      await this.#prepare()
      await this.#collide()
      await this.#aftermath()
    } catch (thrown) {
      if (!(thrown instanceof Stop)) throw thrown
    }
  }

  /** Gives everything back; also that has to come to an end. */
  async end(): Promise<void> {
    try {
      await this.#within(this.#stage[Symbol.asyncDispose](), 'the end of the stage')
    } catch (thrown) {
      if (!(thrown instanceof Stop)) throw thrown
    }
  }

  /** Ends the cell with a sentence. */
  #fail(sentence: string): never {
    this.problems.push(sentence)
    throw new Stop(sentence)
  }

  /** Waits for something that has to settle. */
  async #within<T>(promise: Promise<T>, what: string): Promise<T> {
    let settled = false
    const note = (): void => {
      settled = true
    }
    promise.then(note, note)
    for (let n = 0; !settled; n++) {
      if (n > PATIENCE) this.#fail(`${what} does not settle`)
      await turn()
    }
    return promise
  }

  async #turnsUntil(done: () => boolean, most: number): Promise<void> {
    for (let n = 0; n < most && !done(); n++) await turn()
  }

  /** Does something and notes when it began and ended, and how. */
  async #note(
    what: Happening['what'],
    act: () => unknown,
    seen?: () => readonly number[],
  ): Promise<Happening> {
    const start = this.#tick++
    let error: string | undefined
    try {
      await act()
    } catch (thrown) {
      error = thrown instanceof Error ? thrown.message : String(thrown)
    }
    const end = this.#tick++
    const full = seen === undefined || error !== undefined || 'deed' in what
    return { what: full ? what : { ...what, seen: seen() }, start, end, error }
  }

  #deed(deed: Deed, act: () => unknown): Promise<Happening> {
    return this.#note({ deed }, act)
  }

  /** A request of one side to a range of units. */
  #request([side, kind]: readonly [Side, Kind], first: number, count: number): Promise<Happening> {
    const user = side === 'guest' ? this.#guest : this.#exported
    const client = side === 'export' ? this.#client : undefined
    const [offset, bytes] = [first * UNIT, count * UNIT]
    const value = kind === 'write' ? this.#value++ : 0
    const buf = new Uint8Array(bytes).fill(value)
    const op = kind === 'zeroes' ? 'write' : kind
    const act = (): unknown => {
      if (kind === 'read') return client?.read(offset, buf) ?? user.pread(offset, buf)
      if (kind === 'flush') return client?.flush() ?? user.flush()
      if (kind === 'discard') return client?.trim(offset, bytes) ?? user.pdiscard(offset, bytes)
      if (kind === 'zeroes')
        return client?.writeZeroes(offset, bytes) ?? user.pwriteZeroes(offset, bytes)
      return client?.write(offset, buf) ?? user.pwrite(offset, buf)
    }
    const seen = kind === 'read' ? () => unitsOf(buf) : undefined
    return this.#note({ side, op, first, count, value }, act, seen)
  }

  /** What happened at the same time, or one after the other: some order must explain it. */
  #explain(happenings: readonly Happening[], faulty: boolean): void {
    const worlds = explain(this.#worlds, happenings, faulty)
    if (worlds.length === 0)
      this.#fail(`no order explains: ${happenings.map(sentenceOf).join('; ')}`)
    this.#worlds = worlds
  }

  async #step(...happening: Promise<Happening>[]): Promise<void> {
    this.#explain(await this.#within(Promise.all(happening), 'a request'), false)
  }

  async #prepare(): Promise<void> {
    const { exported, guest } = await this.#stage.secondary()
    this.#exported = exported
    this.#guest = guest
    if (this.#fault === 'lost connection') await this.#connect()
    await this.#step(this.#request(['export', 'write'], 7 * PER_CLUSTER, 3))
    if (this.#action === 'start') return
    const { registry } = this.#stage
    await this.#step(this.#deed('start', () => registry.startAll('secondary')))
    await this.#step(this.#request(['export', 'write'], PER_CLUSTER, 4))
    await this.#step(this.#request(['guest', 'write'], 2 * PER_CLUSTER + 2, 4))
    await this.#look()
  }

  async #connect(): Promise<void> {
    const path = `${this.#stage.folder}/nbd`
    const exports = new Exports(this.#stage.graph)
    await exports.startServer({ type: 'unix', path })
    await exports.add({ id: 'e', nodeName: 'local', name: 'e', writable: true })
    this.#exports = exports
    const address = { type: 'unix', path } as const
    const ctx = { clock: new HostClock() }
    this.#client = await NbdClient.connect({ ctx, address, exportName: 'e' })
  }

  /** The heart: a request is held on its way, the action begins, another request follows. */
  async #collide(): Promise<void> {
    const { registry, taps } = this.#stage
    const merging = this.#action === 'commit pivot' || this.#action === 'merge cancel'
    if (merging) {
      void taps.of('local').hold('write')
      await this.#step(this.#deed('failover', () => registry.stopAll(true)))
    }
    const shape = SHAPES[this.#operation]
    const arrivals = shape.held.map(([node, op]) => taps.of(node).hold(op))
    this.#arm(shape)
    let settled = false
    const early = [...this.#pair(shape, 3 * PER_CLUSTER + 2)]
    const first = (early[0] as Promise<Happening>).finally(() => {
      settled = true
    })
    await this.#within(Promise.race([...arrivals, first]), 'the arrival of the request')
    this.overlapped = !settled
    let acted = false
    const action = this.#act().finally(() => {
      acted = true
    })
    if (merging && !shape.held.some(([node, op]) => node === 'local' && op === 'write'))
      taps.of('local').release('write')
    const pivoting = (): boolean => acted || this.#stage.graph.lookup('top').gate.quiesceCount > 0
    if (this.#action === 'commit pivot') await this.#turnsUntil(pivoting, 3000)
    else await this.#turnsUntil(() => acted, 20)
    const late = this.#pair(shape, 4 * PER_CLUSTER + 1)
    await this.#turnsUntil(() => acted, 20)
    if (this.#fault === 'lost connection') this.#client?.yank()
    for (const tap of taps.all()) tap.release()
    const all = await this.#within(Promise.all([...early, action, ...late]), this.#action)
    await this.#within(registry.settled(), 'the merge')
    await this.#rest()
    for (const tap of taps.all()) tap.clear()
    // The other end may have gone on with what its client gave up.
    const done = this.#tick++
    const lost = this.#fault === 'lost connection'
    const longer = all.map((one) => (lost && one.error !== undefined ? { ...one, end: done } : one))
    this.#explain(longer, this.#fault !== 'no fault' && this.#fault !== 'slow')
    await this.#look()
  }

  #arm({ broken }: Shape): void {
    const { taps } = this.#stage
    const fault = this.#fault
    if (fault === 'slow') for (const name of ['local', 'hidden', 'active']) taps.of(name).slow = 3
    if (fault === 'read fault' || fault === 'write fault' || fault === 'no space') {
      const [node, op] = broken[fault]
      taps.of(node).fail(op, ERRORS[fault])
    }
  }

  #pair({ own, other }: Shape, first: number): Promise<Happening>[] {
    return [this.#request(own, first, 4), this.#request(other, first + 1, 4)]
  }

  #act(): Promise<Happening> {
    const { graph, jobs, registry } = this.#stage
    switch (this.#action) {
      case 'start':
        return this.#deed('start', () => registry.startAll('secondary'))
      case 'checkpoint':
        return this.#deed('checkpoint', () => registry.checkpointAll())
      case 'failover begin':
        return this.#deed('failover', () => registry.stopAll(true))
      case 'commit pivot':
        return this.#deed('nothing', () => registry.settled())
      case 'stop':
        return this.#deed('stop', () => registry.stopAll(false))
      case 'close':
        return this.#deed('stop', () => registry.shutdownAll())
      case 'reopen': {
        const nodes = ['local', 'hidden', 'active'].map((name) => graph.lookup(name))
        const entries = nodes.map((node) => ({ node, options: node.given, keepChildren: true }))
        return this.#deed('nothing', () => graph.reopen(entries))
      }
      case 'drain nesting':
        return this.#deed('nothing', () => this.#nest())
      case 'job cancel':
      case 'merge cancel': {
        const deed = this.#action === 'job cancel' ? 'lose-protection' : 'nothing'
        const cancel = () => Promise.all(jobs.all().map((job) => job.cancelSync(true)))
        return this.#deed(deed, cancel)
      }
    }
  }

  async #nest(): Promise<void> {
    const { graph } = this.#stage
    const nodes = ['top', 'local', 'active', 'local'].map((name) => graph.lookup(name))
    for (const node of nodes) await graph.drainedBegin(node)
    await graph.drainAllBegin()
    for (const node of nodes) graph.drainedEnd(node)
    graph.drainAllEnd()
  }

  /** Everything comes to rest. */
  async #rest(): Promise<void> {
    await this.#turnsUntil(() => this.#stage.restless().length === 0, 100_000)
    this.problems.push(...this.#stage.restless())
    for (const [who, user] of [
      ['the guest', this.#guest],
      ['the export', this.#exported],
    ] as const)
      if (user.inFlight + user.queued !== 0) this.problems.push(`${who} has requests left`)
    if (this.problems.length > 0) throw new Stop()
  }

  /** Compares what is to be seen with the worlds that are possible, and keeps those that fit. */
  async #look(): Promise<void> {
    const { stage } = this.#stage.status()
    const secondary = await this.#whole(this.#exported, 'the secondary disk')
    const expected = this.#worlds
    if (stage === 'done') this.#worlds = this.#worlds.map(finished)
    this.#keep('secondary disk', secondary, (world) =>
      // A merge that broke off leaves the disk somewhere in between.
      world.stage === 'failover' ? undefined : world.secondary,
    )
    if (stage !== 'none')
      this.#keep('guest view', await this.#whole(this.#guest, 'the view'), guestView)
    if (stage === 'running') await this.#lookAtK()
    if (expected.every((world) => (world.stage === 'none') !== (stage === 'none')))
      this.#fail(`the stage is ${stage}`)
  }

  async #lookAtK(): Promise<void> {
    const { graph } = this.#stage
    const options = { perm: PERM.CONSISTENT_READ, shared: PERM.ALL }
    const hidden = await Backend.create(graph, graph.lookup('hidden'), options)
    const held = await this.#whole(hidden, 'the hidden disk')
    await hidden.close()
    this.#keep('hidden over secondary', held, (world) => world.checkpoint)
  }

  async #whole(user: BlockBackend, what: string): Promise<number[]> {
    const buf = new Uint8Array(SIZE)
    await this.#within((async () => user.pread(0, buf))(), `a read of ${what}`)
    return unitsOf(buf)
  }

  #keep(
    what: string,
    seen: number[],
    wanted: (world: PossibleWorld) => ArrayLike<number> | undefined,
  ): void {
    const kept = this.#worlds.filter((world) => sameUnits(wanted(world) ?? seen, seen))
    if (kept.length === 0) {
      const one = (this.#worlds[0] && wanted(this.#worlds[0])) ?? []
      const unit = seen.findIndex((byte, at) => byte !== one[at])
      this.#fail(`${what}: unit ${unit} is ${seen[unit]}, not ${one[unit]} as in any world`)
    }
    this.#worlds = kept
  }

  /** Life goes on: whatever the stage, requests, a checkpoint, a failover, and the last look. */
  async #aftermath(): Promise<void> {
    const { registry } = this.#stage
    this.#client = undefined
    if (this.#exports !== undefined) await this.#within(this.#exports.close(), 'the export')
    if (this.#stage.status().stage === 'none')
      await this.#step(this.#deed('start', () => registry.startAll('secondary')))
    await this.#bothWrite(3 * PER_CLUSTER + 10)
    if (this.#stage.status().stage === 'running') {
      await this.#step(this.#deed('checkpoint', () => registry.checkpointAll()))
      await this.#look()
      registry.getErrorAll()
      await this.#bothWrite(3 * PER_CLUSTER + 8)
      await this.#step(this.#deed('failover', () => registry.stopAll(true)))
    }
    await this.#within(registry.settled(), 'the merge')
    if (this.#stage.status().stage === 'failover-failed')
      await this.#step(this.#deed('nothing', () => registry.retryFailover('top')))
    await this.#within(registry.settled(), 'the merge')
    if (this.#stage.status().stage !== 'done') this.#fail('the end is not reached')
    registry.getErrorAll()
    await this.#look()
    await this.#bothWrite(5 * PER_CLUSTER)
    await this.#rest()
    if (this.#stage.jobs.all().length > 0) this.problems.push('a job is left')
  }

  async #bothWrite(first: number): Promise<void> {
    await this.#step(this.#request(['export', 'write'], first, 3))
    await this.#step(this.#request(['guest', 'write'], first + 1, 3))
    await this.#step(this.#request(['export', 'write'], 6 * PER_CLUSTER + 2, 1))
    await this.#look()
  }
}

/** A merge that is complete: the disk is what the guest saw. */
function finished(world: PossibleWorld): PossibleWorld {
  if (world.stage !== 'failover') return world
  return { ...world, secondary: guestView(world), stage: 'done' }
}

/** The byte of each unit; -1 where there are several. */
function unitsOf(buf: Uint8Array): number[] {
  return Array.from({ length: buf.length / UNIT }, (_, unit) => {
    const part = Buffer.from(buf.buffer, buf.byteOffset + unit * UNIT, UNIT)
    // Every byte equals the one before it.
    const uniform = part.subarray(1).equals(part.subarray(0, -1))
    return uniform ? (part[0] ?? -1) : -1
  })
}

function sentenceOf({ what, start, end, error }: Happening): string {
  const how = error === undefined ? '' : ` failed (${error})`
  if ('deed' in what) return `${what.deed}${how} at ${start}-${end}`
  const { side, op, first, count, value, seen } = what
  const data = op === 'read' ? ` saw ${seen?.join()}` : op === 'write' ? ` ${value}` : ''
  return `${side} ${op} ${first}+${count}${data}${how} at ${start}-${end}`
}

/** Plays one cell. */
export async function playCell(
  operation: Operation,
  action: Action,
  fault: Fault,
  options: CellOptions,
): Promise<Outcome> {
  const stage = new ProofStage({ size: SIZE, ...options })
  const cell = new Cell(stage, operation, action, fault)
  await cell.play()
  await cell.end()
  return { problems: cell.problems, overlapped: cell.overlapped, faults: cell.faults }
}
