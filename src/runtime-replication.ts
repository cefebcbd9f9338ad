/**
 * Lends jobs to replication: the protection of a secondary disk and the merge at failover.
 *
 * Invariants:
 * - What replication starts is internal: no query shows it, no event tells of it.
 * - The filter belongs to the protection, not to the job that copies for it: without the job it
 *   stays in the graph and refuses the writes that need it.
 */
import type { BlockGraph } from './block/graph.ts'
import type { BlockNode } from './block/node.ts'
import { startBackup } from './job/backup.ts'
import { copyBeforeWriteOf, insertCopyBeforeWrite } from './job/cbw.ts'
import { startCommit } from './job/commit.ts'
import type { Job } from './job/job.ts'
import type { WorkerPool } from './job/pool.ts'
import type { JobRegistry } from './job/registry.ts'
import type { Merge, Protection, ReplicationMachinery } from './replication/machinery.ts'
import type { BlockError } from './util/errors.ts'

/** The machinery of a runtime. */
export class JobMachinery implements ReplicationMachinery {
  readonly #graph: BlockGraph
  readonly #jobs: JobRegistry
  readonly #pool: WorkerPool

  constructor(graph: BlockGraph, jobs: JobRegistry, pool: WorkerPool) {
    this.#graph = graph
    this.#jobs = jobs
    this.#pool = pool
  }

  async protect(source: BlockNode, target: BlockNode): Promise<Protection> {
    const filter = await insertCopyBeforeWrite(this.#graph, source, target)
    const driver = copyBeforeWriteOf(filter)
    let job: Job | undefined
    const arm = async (): Promise<void> => {
      const options = { internal: true, source, target, sync: 'none', filter } as const
      job = (await startBackup(this.#graph, this.#jobs, this.#pool, options)).job
    }
    const remove = async (): Promise<void> => {
      await job?.cancelSync(true)
      await this.#graph.removeFilter(filter)
    }
    try {
      await arm()
    } catch (error) {
      await this.#graph.removeFilter(filter)
      throw error
    }
    return {
      filter,
      get lost(): BlockError | undefined {
        return driver.lost
      },
      get copiedBytes(): number {
        return driver.counters.epochBytes
      },
      async checkpoint(): Promise<void> {
        await driver.checkpoint()
        if (driver.lost === undefined) return
        await job?.cancelSync(true)
        await arm()
      },
      remove,
    }
  }

  async merge(top: BlockNode, base: BlockNode): Promise<Merge> {
    const job = await startCommit(this.#graph, this.#jobs, this.#pool, {
      internal: true,
      top,
      base,
      autoComplete: true,
    })
    return {
      ended: job.done.then(() => job.error),
      async cancel(): Promise<void> {
        await job.cancelSync(true)
      },
    }
  }
}
