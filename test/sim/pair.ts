/**
 * A primary and a secondary runtime in one process, over simulated disks and network.
 *
 * Invariants:
 * - Runtime, graph, NBD client and server, replication and its protection are the real ones.
 * - Both share one clock, and all chance comes from one seed.
 */
import type { AioContext } from '../../src/aio/aio-context.ts'
import type { BlockdevOptions } from '../../src/block/driver.ts'
import { makeReplicationDriver } from '../../src/replication/driver.ts'
import { Runtime } from '../../src/runtime.ts'
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
  /** Seconds that the link waits for a lost connection; 0 = not at all. */
  readonly reconnectDelay: number
}

/** The pair. */
export class SimPair {
  readonly primary: Runtime
  readonly secondary: Runtime
  /** `own` of the primary; `local`, `hidden` and `active` of the secondary. */
  readonly disks: ReadonlyMap<string, SimDisk>

  private constructor(primary: Runtime, secondary: Runtime, disks: ReadonlyMap<string, SimDisk>) {
    this.primary = primary
    this.secondary = secondary
    this.disks = disks
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
    const names = ['own', 'local', 'hidden', 'active']
    const disks = new Map(names.map((name) => [name, new SimDisk(name, world)]))
    const driver = simDriver(disks)
    const primary = await Runtime.create({ clock, drivers: [driver] })
    const secondary = await Runtime.create({ clock, drivers: [driver] })
    const machinery = simMachinery(secondary, canary)
    secondary.graph.drivers.set(
      'replication',
      makeReplicationDriver(secondary.replication, machinery),
    )
    const pair = new SimPair(primary, secondary, disks)
    for (const [side, runtime] of [
      ['primary', primary],
      ['secondary', secondary],
    ] as const)
      runtime.events.onAny((name) => trace(`event ${side} ${name}`))
    if (canary === 'lying-disk') pair.disk('local').lieAt = 5
    // One connection at a time: a lost one is over, with all its writes, before the next begins.
    const connections = canary === 'many-connections' ? 0 : 1
    await pair.#buildSecondary(random, connections)
    await pair.#buildPrimary(options.reconnectDelay)
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

  /** All disks are sound from now on. */
  heal(): void {
    this.setFaults(SOUND)
  }

  /** The secondary disk now. */
  localWords(): number[] {
    return Array.from({ length: PAGES }, (_, page) => this.disk('local').tagOf(page))
  }

  /** Hidden disk over secondary disk now: what K speaks of. */
  frozenWord(page: number): number {
    const hidden = this.disk('hidden')
    return (hidden.holds(page) ? hidden : this.disk('local')).tagOf(page)
  }

  get stage(): string {
    return this.secondary.replication.find('top')?.stage ?? 'closed'
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

  async #buildSecondary(random: Random, connections: number): Promise<void> {
    const { secondary } = this
    const unit = (): number => random.pick([PAGE, PAGE, 4 * PAGE, 16 * PAGE])
    await secondary.addNode(memory('local'))
    const hidden = { ...memory('hidden', unit()), backing: 'local' }
    const role: BlockdevOptions = {
      driver: 'replication',
      mode: 'secondary',
      'top-id': 'top',
      file: { ...memory('active', unit()), backing: hidden },
      discard: 'unmap',
    }
    await secondary.addNode({ ...role, 'node-name': 'top' })
    await secondary.startNbdServer(SERVER, connections)
    await secondary.addExport({ id: 'replica', nodeName: 'local', name: 'disk', writable: true })
  }

  async #buildPrimary(reconnectDelay: number): Promise<void> {
    const { primary } = this
    const link: BlockdevOptions = {
      driver: 'nbd',
      'node-name': 'link',
      server: SERVER,
      export: 'disk',
      'reconnect-delay': reconnectDelay,
      'request-timeout': 30,
    }
    await primary.addNode(memory('own'))
    const replica = { driver: 'replication', 'node-name': 'replica', mode: 'primary', file: link }
    await primary.addNode({
      driver: 'quorum',
      'node-name': 'colo',
      'vote-threshold': 1,
      'read-pattern': 'fifo',
      discard: 'unmap',
      children: ['own', replica],
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
