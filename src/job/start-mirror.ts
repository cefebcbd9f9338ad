/**
 * `blockdev-mirror`: copies a disk onto another and keeps both equal until told otherwise.
 *
 * Invariants:
 * - All checks of the request come before the graph changes.
 * - Different sizes end the job with an error, not the request.
 */
import { PERM } from '../block/driver.ts'
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import { DirtyBitmap } from '../sync/dirty-bitmap.ts'
import { BlockError } from '../util/errors.ts'
import { launch, mirrorGranularity, openBackend, scanAllocated } from './commit.ts'
import { giveUpContent } from './give-up-content.ts'
import type { Job } from './job.ts'
import { MirrorDriver } from './mirror.ts'
import type { OnError } from './policy.ts'
import type { WorkerPool } from './pool.ts'
import type { JobRegistry } from './registry.ts'
import { insertCommitFilter, undoing } from './start-job.ts'

const GRANULARITY_MIN = 512
const GRANULARITY_MAX = 64 * 1024 * 1024

/** A mirror. */
export interface MirrorOptions {
  /** Id of the job. */
  readonly jobId: string
  /** The disk that is copied. */
  readonly source: BlockNode
  /** What it is copied onto. */
  readonly target: BlockNode
  /** Everything, what the top layer holds, or only what is written from now on. */
  readonly sync: 'full' | 'top' | 'none'
  /** The target is known to read as zeroes all over, so only what is allocated needs a copy. */
  readonly emptyTarget?: boolean | undefined
  /** The node that `complete` replaces by the target; default the source. */
  readonly replaces?: string | undefined
  /** Bytes a second; 0 = unlimited, the default. */
  readonly speed?: number | undefined
  /** Size of a dirty region in bytes; a power of two from 512 to 64 MiB. */
  readonly granularity?: number | undefined
  /** `write-blocking`: once ready, a guest's write ends when it is on the target too. */
  readonly copyMode?: 'background' | 'write-blocking' | undefined
  /** Name of the filter that sits over the source meanwhile. */
  readonly filterNodeName?: string | undefined
  /** What to do about an error; default `report`. */
  readonly onSourceError?: OnError | undefined
  /** What to do about an error; default `report`. */
  readonly onTargetError?: OnError | undefined
  /** See `JobOptions`. */
  readonly autoFinalize?: boolean | undefined
  /** See `JobOptions`. */
  readonly autoDismiss?: boolean | undefined
}

/** Creates and starts a mirror. Nothing stays changed when it throws. */
export async function startMirror(
  graph: BlockGraph,
  registry: JobRegistry,
  pool: WorkerPool,
  options: MirrorOptions,
): Promise<Job> {
  const { source, target } = options
  checkMirror(graph, options)
  registry.checkId(options.jobId, false)
  return undoing(async (undo) => {
    const filter = await insertCommitFilter(graph, source, options.filterNodeName)
    undo.push(() => graph.removeFilter(filter))
    const from = await openBackend(graph, source, PERM.CONSISTENT_READ, { readsForJob: true })
    undo.push(() => from.close())
    // Half a copy is nothing to read, and nobody else may write into it.
    const to = await openBackend(graph, target, PERM.WRITE, { shared: PERM.WRITE_UNCHANGED })
    undo.push(() => to.close())
    const base = options.sync === 'top' ? source.chainNext : undefined
    const unit = options.granularity ?? mirrorGranularity(target)
    const dirty = DirtyBitmap.create(source.length(), unit)
    const driver = new MirrorDriver({
      type: 'mirror',
      graph,
      pool,
      filter,
      top: source,
      base,
      source: from,
      target: to,
      dirty,
      scan: (job) => scan(graph, job, options, base, dirty),
      writeBlocking: options.copyMode === 'write-blocking',
      autoComplete: false,
      pivotFrom: options.replaces === undefined ? undefined : graph.find(options.replaces),
      pivotTo: target,
      onSourceError: options.onSourceError ?? 'report',
      onTargetError: options.onTargetError ?? 'report',
      restore: async () => undefined,
    })
    undo.push(async () => driver.release())
    const job = registry.create({
      id: options.jobId,
      driver,
      autoFinalize: options.autoFinalize,
      autoDismiss: options.autoDismiss,
      speed: options.speed,
    })
    // From here on the job itself takes everything back when it ends.
    undo.length = 0
    await launch(graph, job, driver, [
      [filter, 'main node'],
      [source, 'source'],
      [target, 'target'],
    ])
    return job
  })
}

function checkMirror(graph: BlockGraph, options: MirrorOptions): void {
  const { source, target, granularity, replaces } = options
  if (!source.isRootNode) throw new BlockError('EINVAL', 'Need a root block node')
  if (granularity !== undefined) {
    if (granularity < GRANULARITY_MIN || granularity > GRANULARITY_MAX) {
      throw new BlockError(
        'EINVAL',
        "Parameter 'granularity' expects a value in range [512B, 64MB]",
      )
    }
    if (!Number.isInteger(Math.log2(granularity))) {
      throw new BlockError('EINVAL', "Parameter 'granularity' expects a power of 2")
    }
  }
  if (source === target) throw new BlockError('EINVAL', "Can't mirror node into itself")
  source.blockers.check('mirror-source', source.name)
  target.blockers.check('mirror-target', target.name)
  if (replaces !== undefined) checkReplaces(graph, source, replaces)
}

// What stands in for a node must show what it showed, so only those that show the source's content.
function checkReplaces(graph: BlockGraph, source: BlockNode, name: string): void {
  const node = graph.find(name)
  if (node === undefined) {
    throw new BlockError('EINVAL', `Failed to find node with node-name='${name}'`)
  }
  if (!showsSame(source, node)) {
    throw new BlockError(
      'EPERM',
      `Cannot replace '${name}' by a node mirrored from '${source.name}', because it cannot be ` +
        'guaranteed that doing so would not lead to an abrupt change of visible data',
      { node: name },
    )
  }
  if (node.length() !== source.length()) {
    throw new BlockError('EINVAL', 'cannot replace image with a mirror image of different size')
  }
}

function showsSame(source: BlockNode, node: BlockNode): boolean {
  if (source === node) return true
  const passes = source.definition.kind === 'filter' || source.definition.name === 'quorum'
  if (!passes) return false
  return [...source.children.values()].some((edge) => showsSame(edge.node, node))
}

async function scan(
  graph: BlockGraph,
  job: Job,
  options: MirrorOptions,
  base: BlockNode | undefined,
  dirty: DirtyBitmap,
): Promise<void> {
  const { source, target } = options
  if (source.length() !== target.length()) {
    throw new BlockError('EINVAL', 'Source and target image have different sizes')
  }
  if (options.sync === 'none') return
  if (options.sync === 'full') await giveUpContent(target, source)
  if (base === undefined && options.emptyTarget !== true) dirty.setAll()
  else await scanAllocated(graph, job, source, base, dirty)
}
