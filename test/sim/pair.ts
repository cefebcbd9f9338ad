/**
 * A primary and a secondary runtime in one process, over simulated disks and network.
 *
 * Invariants:
 * - Runtime, graph, NBD client and server, replication and its protection are the real ones.
 * - Both share one clock, and all chance comes from one seed.
 */
import type { AioContext } from '../../src/aio/aio-context.ts'
import type { BlockBackend } from '../../src/block/backend.ts'
import type { BlockdevOptions } from '../../src/block/driver.ts'
import type { BlockNode } from '../../src/block/node.ts'
import { makeReplicationDriver } from '../../src/replication/driver.ts'
import { Runtime } from '../../src/runtime/runtime.ts'
import type { VirtualClock } from '../../src/util/clock.ts'
import type { Random } from '../../src/util/random.ts'
import { type Faults, PAGE, SimDisk, SOUND, simDriver } from './disk.ts'
import { type Canary, simMachinery } from './machinery.ts'

/** Size of the disks: eight clusters of the protection. */
export const PAGES = 128
const SERVER = { type: 'unix', path: '/secondary.sock' } as const

/** What makes one pair differ from another. */
export interface PairOptions {
  readonly clock: VirtualClock
  readonly random: Random
  readonly trace: (line: string) => void
  readonly canary: Canary | undefined
  /** How many disks are replicated. */
  readonly count: number
  /** Seconds that the link waits for a lost connection; 0 = not at all. */
  readonly reconnectDelay: number
}

/** What comes before the names of each disk. */
const PREFIXES = ['', 'b-'] as const

/** The pair. */
export class SimPair {
  readonly primary: Runtime
  readonly secondary: Runtime
  /** `own` of the primary; `local`, `hidden` and `active` of the secondary; of each replicated disk. */
  readonly disks: ReadonlyMap<string, SimDisk>
  /** One of each replicated disk. */
  readonly prefixes: readonly string[]

  private constructor(
    primary: Runtime,
    secondary: Runtime,
    disks: ReadonlyMap<string, SimDisk>,
    prefixes: readonly string[],
  ) {
    this.primary = primary
    this.secondary = secondary
    this.disks = disks
    this.prefixes = prefixes
  }

  /** Builds both sides; nothing is started yet. */
  static async create(options: PairOptions): Promise<SimPair> {
    const { clock, random, trace, canary } = options
    const world = {
      clock,
      random: random.fork(),
      trace,
      inline: random.next(),
      delayMs: 1 + random.int(40),
    }
    const prefixes = PREFIXES.slice(0, options.count)
    const roles = ['own', 'local', 'hidden', 'active']
    const names = prefixes.flatMap((prefix) => roles.map((role) => `${prefix}${role}`))
    const disks = new Map(names.map((name) => [name, new SimDisk(name, world)]))
    const driver = simDriver(disks)
    const primary = await Runtime.create({ clock, drivers: [driver] })
    const secondary = await Runtime.create({ clock, drivers: [driver] })
    const machinery = simMachinery(secondary, canary)
    secondary.graph.drivers.set(
      'replication',
      makeReplicationDriver(secondary.replication, machinery),
    )
    const pair = new SimPair(primary, secondary, disks, prefixes)
    for (const [side, runtime] of [
      ['primary', primary],
      ['secondary', secondary],
    ] as const)
      runtime.events.onAny((name) => trace(`event ${side} ${name}`))
    if (canary === 'lying-disk') pair.disk('local').lieAt = 5
    // The changes of a lost connection have ended before those of the next one begin.
    await secondary.startNbdServer(SERVER)
    for (const prefix of prefixes) {
      await pair.#buildSecondary(prefix, random, canary !== 'many-connections')
      await pair.#buildPrimary(prefix, options.reconnectDelay)
    }
    return pair
  }

  disk(name: string): SimDisk {
    const disk = this.disks.get(name)
    if (disk === undefined) throw new Error(`no disk ${name}`)
    return disk
  }

  setFaults(faults: Faults, names: Iterable<string> = this.disks.keys()): void {
    for (const name of names) this.disk(name).faults = faults
  }

  /** No request fails now. */
  get sound(): boolean {
    return [...this.disks.values()].every(({ faults }) => faults.read + faults.write === 0)
  }

  /** All disks are sound from now on. */
  heal(): void {
    this.setFaults(SOUND)
  }

  /** What a disk holds now, page by page. */
  words(name: string): number[] {
    return Array.from({ length: PAGES }, (_, page) => this.disk(name).tagOf(page))
  }

  /** Hidden disk over secondary disk now: what K speaks of. */
  frozenWord(prefix: string, page: number): number {
    const hidden = this.disk(`${prefix}hidden`)
    return (hidden.holds(page) ? hidden : this.disk(`${prefix}local`)).tagOf(page)
  }

  /** The stage of a replication node of the secondary. */
  stageOf(node: string): string {
    return this.secondary.replication.find(node)?.stage ?? 'closed'
  }

  /** The exports take writes again although a checkpoint broke off. */
  forgetFence(): void {
    for (const prefix of this.prefixes)
      for (const node of this.secondary.graph.lookup(`${prefix}local`).parents)
        if (node.owner.ownerKind === 'node')
          for (const { owner } of (node.owner as BlockNode).parents)
            if (owner.ownerKind === 'backend') (owner as BlockBackend).unfence()
  }

  /** Counters that are not zero, in words; for a moment at which nothing runs. */
  restless(): string[] {
    const found: string[] = []
    for (const runtime of [this.primary, this.secondary])
      for (const node of runtime.graph.nodes()) {
        if (node.gate.quiesceCount > 0) found.push(`${node.name} is drained`)
        if (node.gate.inFlight > 0) found.push(`${node.name} has requests`)
      }
    return found
  }

  async #buildSecondary(prefix: string, random: Random, exclusive: boolean): Promise<void> {
    const { secondary } = this
    const local = `${prefix}local`
    const top = `${prefix}top`
    const unit = (): number => random.pick([PAGE, PAGE, 4 * PAGE, 16 * PAGE])
    await secondary.addNode(memory(local))
    const hidden = { ...memory(`${prefix}hidden`, unit()), backing: local }
    const role: BlockdevOptions = {
      driver: 'replication',
      mode: 'secondary',
      'top-id': top,
      file: { ...memory(`${prefix}active`, unit()), backing: hidden },
      discard: 'unmap',
    }
    await secondary.addNode({ ...role, 'node-name': top })
    const exported = { id: `${prefix}replica`, nodeName: local, name: `${prefix}disk`, exclusive }
    await secondary.addExport({ ...exported, writable: true })
  }

  async #buildPrimary(prefix: string, reconnectDelay: number): Promise<void> {
    const { primary } = this
    const link: BlockdevOptions = {
      driver: 'nbd',
      'node-name': `${prefix}link`,
      server: SERVER,
      export: `${prefix}disk`,
      'reconnect-delay': reconnectDelay,
      'request-timeout': 30,
    }
    await primary.addNode(memory(`${prefix}own`))
    const role = { driver: 'replication', mode: 'primary', file: link }
    const replica = { ...role, 'node-name': `${prefix}replica` }
    await primary.addNode({
      driver: 'quorum',
      'node-name': `${prefix}colo`,
      'vote-threshold': 1,
      'read-pattern': 'fifo',
      discard: 'unmap',
      children: [`${prefix}own`, replica],
    })
  }
}

function memory(name: string, unit: number = PAGE): BlockdevOptions {
  return {
    driver: 'sim-memory',
    'node-name': name,
    size: PAGES * PAGE,
    'cluster-size': unit,
    discard: 'unmap',
  }
}

/** Whether a context has anything left to do. */
export function restOf(ctx: AioContext): string[] {
  const { coroutines, timers, queued } = ctx.report()
  const counts = timers + queued > 0 ? [`${timers} timers, ${queued} tasks`] : []
  return [...coroutines, ...counts]
}
