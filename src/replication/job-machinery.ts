/**
 * The machinery of replication out of jobs: an internal backup protects, an internal commit merges.
 *
 * Invariants:
 * - The filter belongs to the protection, not to the backup job: when the job is lost the filter
 *   stays and refuses writes, and the next checkpoint starts a new job for it.
 * - Neither job is visible or sends events.
 */
import type { BlockNode } from '../block/node.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { type RunningBackup, startBackup } from '../job/backup.ts'
import { copyBeforeWriteOf, insertCopyBeforeWrite } from '../job/cbw.ts'
import { startCommit } from '../job/commit.ts'
import type { WorkerPool } from '../job/pool.ts'
import type { JobRegistry } from '../job/registry.ts'
import type { BlockError } from '../util/errors.ts'
import { outlivesUs } from './buffers.ts'
import type { Merge, Protection, ReplicationMachinery } from './machinery.ts'
import { formatOf } from './topology.ts'

/** Makes the machinery over a registry of jobs and the pool their bodies run in. */
export function makeJobMachinery(jobs: JobRegistry, pool: () => WorkerPool): ReplicationMachinery {
  return {
    protect: (source, target, strict) => protect(jobs, pool(), source, target, strict === true),
    merge: (top, base) => merge(jobs, pool(), top, base),
  }
}

async function protect(
  jobs: JobRegistry,
  pool: WorkerPool,
  source: BlockNode,
  target: BlockNode,
  strict: boolean,
): Promise<Protection> {
  const { graph } = source
  const filterNode = await insertCopyBeforeWrite(graph, source, target)
  const filter = copyBeforeWriteOf(filterNode)
  const writeOut = (): Pending => formatOf(target).driver?.flush?.(false)
  if (outlivesUs(target)) filter.keepOrder(strict ? writeOut : undefined)
  const start = (): Promise<RunningBackup> =>
    startBackup(graph, jobs, pool, {
      internal: true,
      source,
      target,
      sync: 'none',
      filter: filterNode,
    })
  let backup: RunningBackup
  try {
    backup = await start()
  } catch (error) {
    await graph.removeFilter(filterNode)
    throw error
  }
  return {
    filter: filterNode,
    get lost(): BlockError | undefined {
      return filter.lost
    },
    get copiedBytes(): number {
      return filter.counters.epochBytes
    },
    get copyFailures(): number {
      return filter.counters.failures
    },
    async arm(): Promise<void> {
      await filter.whenIdle()
      if (filter.lost === undefined) return
      // The dead job may still be on its way out of the graph.
      await backup.job.cancelSync(true)
      backup = await start()
    },
    reset: () => filter.resetAll(),
    async remove(): Promise<void> {
      await backup.job.cancelSync(true)
      await graph.removeFilter(filterNode)
    },
  }
}

async function merge(
  jobs: JobRegistry,
  pool: WorkerPool,
  top: BlockNode,
  base: BlockNode,
): Promise<Merge> {
  let end: (error: BlockError | undefined) => void = () => undefined
  const ended = new Promise<BlockError | undefined>((resolve) => {
    end = resolve
  })
  const job = await startCommit(top.graph, jobs, pool, {
    internal: true,
    top,
    base,
    autoComplete: true,
    onDone: (error) => end(error),
  })
  return {
    ended,
    async cancel(): Promise<void> {
      await job.cancelSync(true)
      await ended
    },
  }
}
