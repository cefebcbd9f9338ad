/** Secondaries and primaries under taps, of memory or qcow2 disks, for the proofs of replication. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { BlockBackend } from '../../src/block/backend.ts'
import type { BlockdevOptions, DriverDefinition } from '../../src/block/driver.ts'
import type { BlockGraph } from '../../src/block/graph.ts'
import { blkdebugDriver } from '../../src/drivers/blkdebug.ts'
import { commitFilterDriver } from '../../src/drivers/commit-filter.ts'
import { copyBeforeWriteDriver } from '../../src/drivers/copy-before-write.ts'
import { fileDriver } from '../../src/drivers/file.ts'
import { createQcow2 } from '../../src/drivers/qcow2/create.ts'
import { qcow2Driver } from '../../src/drivers/qcow2/driver.ts'
import { jobRegistry } from '../../src/job/host.ts'
import { WorkerPool } from '../../src/job/pool.ts'
import type { JobRegistry } from '../../src/job/registry.ts'
import { makeReplicationDriver } from '../../src/replication/driver.ts'
import { makeJobMachinery } from '../../src/replication/job-machinery.ts'
import type { ReplicationMachinery } from '../../src/replication/machinery.ts'
import { ReplicationRegistry } from '../../src/replication/registry.ts'
import { guest, memoryGraph } from './graph.ts'
import { Taps } from './tap.ts'

/** What disks are made of. */
export type DiskKind = 'memory' | 'qcow2'

/** How a stage is set. */
export interface StageOptions {
  readonly kind?: DiskKind
  /** Size of every disk in bytes. */
  readonly size: number
  /** Workers of other stages too; default its own. */
  readonly pool?: WorkerPool
  /** Changes the machinery, to break it. */
  readonly machinery?: (right: ReplicationMachinery) => ReplicationMachinery
  readonly drivers?: readonly DriverDefinition[]
}

/** A graph that replicates tapped disks. */
export class ProofStage implements AsyncDisposable {
  readonly taps: Taps = new Taps()
  readonly registry: ReplicationRegistry = new ReplicationRegistry()
  readonly graph: BlockGraph
  readonly jobs: JobRegistry
  readonly #options: StageOptions
  readonly #pool: WorkerPool
  #folder: string | undefined

  constructor(options: StageOptions) {
    this.#options = options
    this.graph = memoryGraph(
      ...[copyBeforeWriteDriver, commitFilterDriver, qcow2Driver, fileDriver, blkdebugDriver],
      ...[this.taps.definition, ...(options.drivers ?? [])],
    )
    this.jobs = jobRegistry(this.graph)
    this.#pool = options.pool ?? new WorkerPool()
    const right = makeJobMachinery(this.jobs, () => this.#pool)
    const driver = makeReplicationDriver(this.registry, options.machinery?.(right) ?? right)
    this.graph.drivers.set(driver.name, driver)
  }

  /** A folder of its own for images and sockets. */
  get folder(): string {
    this.#folder ??= mkdtempSync(join(tmpdir(), 'proof-'))
    return this.#folder
  }

  /** Path of the image of a qcow2 disk. */
  image(name: string): string {
    return join(this.folder, `${name}.qcow2`)
  }

  /** Options of a tapped, empty disk. */
  async disk(name: string, backing?: BlockdevOptions | string): Promise<BlockdevOptions> {
    const { size, kind = 'memory' } = this.#options
    const inner = `${name}-disk`
    const over = backing === undefined ? {} : { backing }
    if (kind === 'memory') {
      const file = { driver: 'memory', 'node-name': inner, size, ...over }
      return { driver: 'tap', 'node-name': name, file }
    }
    const filename = this.image(name)
    await createQcow2(filename, { size })
    const file = { driver: 'file', filename }
    return {
      driver: 'tap',
      'node-name': name,
      file: { driver: 'qcow2', 'node-name': inner, file, ...over },
    }
  }

  /**
   * local ← hidden ← active ← replication `top`, each disk under a tap of its name; local full of
   * 0x11 and exported. `prefix` goes before every name.
   */
  async secondary(options: { readonly prefix?: string; readonly topId?: string } = {}) {
    const name = (x: string): string => `${options.prefix ?? ''}${x}`
    const exported = await guest(this.graph, await this.graph.add(await this.disk(name('local'))))
    await exported.pwrite(0, new Uint8Array(this.#options.size).fill(0x11))
    const hidden = await this.disk(name('hidden'), name('local'))
    const top = await this.graph.add({
      driver: 'replication',
      'node-name': name('top'),
      mode: 'secondary',
      'top-id': options.topId ?? name('top'),
      file: await this.disk(name('active'), hidden),
    })
    return { exported, guest: await guest(this.graph, top) } satisfies Record<string, BlockBackend>
  }

  /** Stage and error of a replication node. */
  status(name = 'top') {
    const found = this.registry.list().find((one) => one.node === name)
    if (found === undefined) throw new Error(`no replication node ${name}`)
    return found
  }

  /** What is not at rest, one sentence each. */
  restless(): string[] {
    const all: string[] = []
    for (const node of this.graph.nodes()) {
      const { quiesceCount, inFlight } = node.gate
      if (quiesceCount !== 0) all.push(`${node.name} is drained ${quiesceCount} times`)
      if (inFlight !== 0) all.push(`${node.name} has ${inFlight} requests`)
      if (node.tracked.size !== 0) all.push(`${node.name} tracks ${node.tracked.size} requests`)
    }
    return all
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const tap of this.taps.all()) tap.clear()
    await this.registry.shutdownAll()
    await this.jobs.cancelAll()
    if (this.#options.kind === 'qcow2') await this.#closeDisks()
    if (this.#options.pool === undefined) await this.#pool.close()
    await this.graph.ctx.close()
    if (this.#folder !== undefined) rmSync(this.#folder, { recursive: true, force: true })
  }

  async #closeDisks(): Promise<void> {
    const users = new Set<BlockBackend>()
    for (const node of this.graph.nodes())
      for (const { owner } of node.parents)
        if (owner.ownerKind === 'backend') users.add(owner as BlockBackend)
    for (const user of users) await user.close()
    await this.graph.close()
  }
}
