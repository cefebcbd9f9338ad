/** A secondary or primary of memory disks in one graph, with real jobs and worker threads. */
import type { BlockBackend } from '../../src/block/backend.ts'
import type { BlockdevOptions, DriverDefinition } from '../../src/block/driver.ts'
import type { BlockGraph } from '../../src/block/graph.ts'
import { commitFilterDriver } from '../../src/drivers/commit-filter.ts'
import { copyBeforeWriteDriver } from '../../src/drivers/copy-before-write.ts'
import { jobRegistry } from '../../src/job/host.ts'
import { WorkerPool } from '../../src/job/pool.ts'
import type { JobRegistry } from '../../src/job/registry.ts'
import { makeReplicationDriver } from '../../src/replication/driver.ts'
import { makeJobMachinery } from '../../src/replication/job-machinery.ts'
import { ReplicationRegistry } from '../../src/replication/registry.ts'
import { fill, guest, memoryGraph } from './graph.ts'

/** Size of the test disks: 64 clusters. */
export const DISK_BYTES: number = 4 * 1024 * 1024

/** A graph that can replicate. */
export interface World extends AsyncDisposable {
  readonly graph: BlockGraph
  readonly registry: ReplicationRegistry
  readonly jobs: JobRegistry
  readonly pool: WorkerPool
}

/** Makes a graph with the drivers of replication and the given further ones. */
export function replicationWorld(...more: DriverDefinition[]): World {
  const registry = new ReplicationRegistry()
  const graph = memoryGraph(copyBeforeWriteDriver, commitFilterDriver, ...more)
  const jobs = jobRegistry(graph)
  const pool = new WorkerPool()
  const driver = makeReplicationDriver(
    registry,
    makeJobMachinery(jobs, () => pool),
  )
  graph.drivers.set(driver.name, driver)
  return {
    graph,
    registry,
    jobs,
    pool,
    async [Symbol.asyncDispose]() {
      await registry.shutdownAll()
      await jobs.cancelAll()
      await pool.close()
      await graph.ctx.close()
    },
  }
}

/** Options of a memory disk. */
export const memory = (name: string, more: Record<string, unknown> = {}): BlockdevOptions => ({
  driver: 'memory',
  'node-name': name,
  size: DISK_BYTES,
  ...more,
})

/** A secondary and who uses it. */
export interface Secondary {
  /** The export that the primary writes to. */
  readonly exported: BlockBackend
  /** The secondary's own guest. */
  readonly guest: BlockBackend
}

/** What a test may change of a secondary. */
export interface SecondaryOptions {
  readonly prefix?: string
  readonly topId?: string
  /** Wraps the tree of a disk. */
  readonly wrap?: Partial<
    Record<'local' | 'hidden' | 'active', (tree: BlockdevOptions) => BlockdevOptions>
  >
}

/** local (0x11) ← hidden ← active ← replication `top`, local exported, top in use by a guest. */
export async function secondary(world: World, options: SecondaryOptions = {}): Promise<Secondary> {
  const { graph } = world
  const name = (x: string): string => `${options.prefix ?? ''}${x}`
  const wrap = (x: 'local' | 'hidden' | 'active', tree: BlockdevOptions): BlockdevOptions =>
    options.wrap?.[x]?.(tree) ?? tree
  const local = await graph.add(wrap('local', memory(name('local'))))
  const exported = await guest(graph, local)
  await fill(exported, 0x11, 0, DISK_BYTES)
  const hidden = wrap('hidden', memory(name('hidden'), { backing: name('local') }))
  const top = await graph.add({
    driver: 'replication',
    'node-name': name('top'),
    mode: 'secondary',
    'top-id': options.topId ?? name('top'),
    file: wrap('active', memory(name('active'), { backing: hidden })),
  })
  return { exported, guest: await guest(graph, top) }
}
