/**
 * Backup: the target keeps what the source's clusters held when the job began.
 *
 * Invariants:
 * - The copy-before-write filter protects from the moment it is in the graph; the job and its
 *   worker only do the copying for it.
 * - With `sync=none` the job never ends by itself. When a job ends, a filter of its own goes with it; a filter that
 *   belongs to somebody else stays and refuses writes until it is armed again.
 */
import { FLAG } from '../block/driver.ts'
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import { nodeFlush } from '../block/request.ts'
import { BlockError, ioError } from '../util/errors.ts'
import { type BackupBitmap, BitmapPart } from './backup-bitmap.ts'
import type { WorkerBody } from './body.ts'
import { type CopyBeforeWriteFilter, copyBeforeWriteOf, insertCopyBeforeWrite } from './cbw.ts'
import { ClusterCrew } from './cluster-crew.ts'
import { describeCopy } from './describe.ts'
import { copyEverything } from './full-backup.ts'
import { JobEdges } from './host.ts'
import type { Job } from './job.ts'
import type { JobDriver } from './job-types.ts'
import type { OnError } from './policy.ts'
import type { WorkerPool } from './pool.ts'
import type { JobRegistry } from './registry.ts'
import { makingNode } from './start-job.ts'
import type { Transaction } from './transaction.ts'

/** A backup. */
export interface BackupOptions {
  /** Id of the job; absent for an internal one. */
  readonly jobId?: string | undefined
  /** Invisible and silent. */
  readonly internal?: boolean | undefined
  /** The disk that is protected. */
  readonly source: BlockNode
  /** Where old content goes. */
  readonly target: BlockNode
  /** Everything, what the top layer holds, what a bitmap says, or only what is about to change. */
  readonly sync: 'none' | 'full' | 'top' | 'bitmap'
  /** A bitmap of the source; `bitmap` needs one, `none` takes none. */
  readonly bitmap?: BackupBitmap | undefined
  /** What to do about an error while copying; default `report`. */
  readonly onSourceError?: OnError | undefined
  /** What to do about an error while copying; default `report`. */
  readonly onTargetError?: OnError | undefined
  /** A filter over `source` that the caller owns and keeps; absent: the job makes its own. */
  readonly filter?: BlockNode | undefined
  /** Write compressed, which the target has to support. Only with a filter of the job's own. */
  readonly compress?: boolean | undefined
  /** Discard what was copied, as a source that is itself only a copy allows; own filter only. */
  readonly discardSource?: boolean | undefined
  /** Name of the job's own filter. */
  readonly filterNodeName?: string | undefined
  /** Bytes a second that are reported; copies before writes are never delayed. */
  readonly speed?: number | undefined
  /** See `JobOptions`. */
  readonly autoFinalize?: boolean | undefined
  /** See `JobOptions`. */
  readonly autoDismiss?: boolean | undefined
  /** The group that the job completes with; default: a group of its own. */
  readonly transaction?: Transaction | undefined
  /** Called once with the result, before the job is concluded. */
  readonly onDone?: ((error: BlockError | undefined) => void | Promise<void>) | undefined
}

/** A backup that runs. */
export interface RunningBackup {
  readonly job: Job
  /** The node of the filter. */
  readonly filterNode: BlockNode
  /** The filter: `checkpoint`, `counters` and so on. */
  readonly filter: CopyBeforeWriteFilter
  /** The threads that copy; none when the filter copies by itself. */
  readonly bodies: readonly WorkerBody[]
}

/** The checks before anything changes, in their order. Errors: EINVAL, EBUSY. */
export function checkBackup(source: BlockNode, target: BlockNode): void {
  if (source === target) {
    throw new BlockError('EINVAL', 'Source and target cannot be the same')
  }
  for (const node of [source, target]) {
    if (node.driver === undefined) {
      throw new BlockError('ENOMEDIUM', `Device is not inserted: ${node.name}`)
    }
  }
  source.blockers.check('backup-source', source.name)
  target.blockers.check('backup-target', target.name)
  if (source.length() !== target.length()) {
    throw new BlockError('EINVAL', 'Source and target image have different sizes')
  }
}

/** Creates and starts a backup. Nothing stays changed when it throws. */
export async function startBackup(
  graph: BlockGraph,
  registry: JobRegistry,
  pool: WorkerPool,
  options: BackupOptions,
): Promise<RunningBackup> {
  const backup = await createBackup(graph, registry, pool, options)
  backup.job.start()
  return backup
}

/**
 * Creates a backup that protects from now on; the caller starts or cancels its job. Nothing stays
 * changed when it throws.
 */
export async function createBackup(
  graph: BlockGraph,
  registry: JobRegistry,
  pool: WorkerPool,
  options: BackupOptions,
): Promise<RunningBackup> {
  const { source, target } = options
  checkBackup(source, target)
  registry.checkId(options.jobId, options.internal ?? false)
  if (options.compress === true) checkCompresses(target)
  options.bitmap?.bitmap.checkChangeable()
  const driver = await makeDriver(graph, options)
  const { filterNode } = driver
  let job: Job
  try {
    await driver.open(pool)
    job = registry.create({
      id: options.jobId,
      internal: options.internal,
      driver,
      autoFinalize: options.autoFinalize,
      autoDismiss: options.autoDismiss,
      speed: options.speed,
      transaction: options.transaction,
      onDone: options.onDone,
    })
  } catch (thrown) {
    driver.abort()
    await driver.clean()
    throw thrown
  }
  await driver.adopt(job, [
    [filterNode, 'main node'],
    [target, 'target'],
  ])
  return { job, filterNode, filter: driver.filter, bodies: driver.crew?.bodies ?? [] }
}

function checkCompresses(target: BlockNode): void {
  if ((target.needDriver().writeFlags & FLAG.WRITE_COMPRESSED) !== 0) return
  const words = `Compression is not supported for this drive ${target.name}`
  throw new BlockError('ENOTSUP', words, { node: target.name })
}

/** Filter and bitmap begin at the same moment. */
async function makeDriver(graph: BlockGraph, options: BackupOptions): Promise<BackupDriver> {
  const { source, target, filter, filterNodeName: nodeName, compress, discardSource } = options
  if (filter !== undefined) return new BackupDriver(graph, filter, false, options)
  return graph.withDrained(source, async () => {
    const own = await makingNode(() =>
      insertCopyBeforeWrite(graph, source, target, { nodeName, compress, discardSource }),
    )
    try {
      return new BackupDriver(graph, own, true, options)
    } catch (thrown) {
      await graph.removeFilter(own)
      throw thrown
    }
  })
}

class BackupDriver implements JobDriver {
  readonly type = 'backup'
  readonly filter: CopyBeforeWriteFilter
  readonly filterNode: BlockNode
  readonly #graph: BlockGraph
  readonly #part: BitmapPart | undefined
  readonly #own: boolean
  readonly #options: BackupOptions
  #edges: JobEdges | undefined
  #death: BlockError | undefined
  #job: Job | undefined
  /** Bytes that turned out to need no copy. */
  #skipped = 0
  crew: ClusterCrew | undefined

  constructor(graph: BlockGraph, filterNode: BlockNode, own: boolean, options: BackupOptions) {
    this.#graph = graph
    this.filterNode = filterNode
    this.#own = own
    this.#options = options
    this.filter = copyBeforeWriteOf(filterNode)
    const { bitmap, sync } = options
    if (bitmap !== undefined) this.#part = new BitmapPart(bitmap, this.filter, sync !== 'bitmap')
  }

  /** Lets workers copy where they can reach both disks; else the filter copies by itself. */
  async open(pool: WorkerPool): Promise<void> {
    const { source, target, sync, compress, speed = 0 } = this.#options
    const attached = compress === true ? undefined : this.#attached()
    if (attached === undefined) {
      this.filter.rearm()
      return
    }
    const bytes = sync === 'none' || speed > 0 ? 0 : source.length()
    const crew = await ClusterCrew.start(pool, { ...attached, targetNode: target, bytes })
    this.crew = crew
    this.filter.rearm(crew)
    crew.onDeath((cause) => this.#died(cause))
  }

  #attached(): ReturnType<typeof describeCopy> {
    const { source, target } = this.#options
    return describeCopy(source, target, { unit: this.filter.clusterSize })
  }

  /** Ties the job to its nodes; a job that cannot be tied is ended. */
  async adopt(job: Job, nodes: readonly (readonly [BlockNode, string])[]): Promise<void> {
    this.#job = job
    this.#edges = new JobEdges(this.#graph, job)
    // The filter is gone by the time somebody asks for the last time.
    const { source, sync } = this.#options
    const length = source.length()
    const planned = sync === 'bitmap' ? (this.#part?.rest.dirtyBytes ?? length) : length
    job.progressSource = () => {
      job.current = this.filter.counters.totalBytes
      job.total = Math.max(job.current, planned - this.#skipped)
    }
    try {
      for (const [node, name] of nodes) await this.#edges.add(node, name)
    } catch (thrown) {
      await job.cancelSync()
      throw thrown
    }
  }

  async run(job: Job): Promise<void> {
    const { source, target, sync } = this.#options
    if (sync !== 'none') {
      await copyEverything(job, {
        graph: this.#graph,
        source,
        filter: this.filter,
        sync,
        part: this.#part,
        workers: this.crew?.bodies.length ?? 0,
        discardSource: this.#own && this.#options.discardSource === true,
        skip: (bytes) => {
          if (sync === 'top') this.#skipped += bytes
        },
        onSourceError: this.#options.onSourceError ?? 'report',
        onTargetError: this.#options.onTargetError ?? 'report',
      })
      if (!job.forceCancelled) await nodeFlush(target)
      return
    }
    while (!job.forceCancelled && this.#death === undefined) await job.waitKick()
    if (this.#death !== undefined) throw this.#death
  }

  commit(): void {
    this.#part?.end(true)
  }

  abort(): void {
    this.#part?.end(false)
  }

  async clean(): Promise<void> {
    this.#edges?.detachAll()
    if (this.#own) await this.#graph.removeFilter(this.filterNode)
    // Somebody else's filter must not let a write pass unprotected because its job is gone.
    else this.filter.loseProtection(this.#death ?? this.#job?.error ?? ioError('ECANCELED'))
    await this.crew?.finish()
  }

  #died(cause: BlockError): void {
    this.#death = cause
    this.filter.loseProtection(cause)
    this.#job?.kick()
  }
}
