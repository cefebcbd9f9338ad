/**
 * Active commit: folds an overlay down into the image below it and moves its users there.
 *
 * Invariants:
 * - Until the users move, the view from above is that of the overlay; afterwards it is the base,
 *   with the same content.
 * - A failed commit can be started again: what is allocated above the base is copied once more.
 */
import { BlockBackend } from '../block/backend.ts'
import { PERM } from '../block/driver.ts'
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import { chainContains } from '../block/replace.ts'
import { isAllocatedAbove } from '../block/status.ts'
import { nodeTruncate } from '../block/truncate.ts'
import { DirtyBitmap } from '../sync/dirty-bitmap.ts'
import { BlockError } from '../util/errors.ts'
import { JobEdges } from './host.ts'
import type { Job } from './job.ts'
import { MirrorDriver } from './mirror.ts'
import type { OnError } from './policy.ts'
import type { WorkerPool } from './pool.ts'
import type { JobRegistry } from './registry.ts'
import {
  insertCommitFilter,
  type JobNode,
  launchJob,
  type UndoSteps,
  undoing,
} from './start-job.ts'

/** Bounds of the granularity in bytes: a cluster of the target, within these. */
const GRANULARITY_MIN = 4096
const GRANULARITY_MAX = 65536
/** A layer above a base that changes shows nothing sensible of its own. */
const FOLDED = PERM.ALL & ~PERM.CONSISTENT_READ

/** An active commit. */
export interface CommitOptions {
  /** Id of the job; absent for an internal one. */
  readonly jobId?: string | undefined
  /** Invisible and silent. */
  readonly internal?: boolean | undefined
  /** The overlay: the one in use, or one between it and the base. */
  readonly top: BlockNode
  /** The disk that `top` belongs to, when that is another: nobody may change it meanwhile. */
  readonly device?: BlockNode | undefined
  /** The image that everything above it is written into. */
  readonly base: BlockNode
  /** Complete without being asked; default false. */
  readonly autoComplete?: boolean | undefined
  /** Show the status `ready` before completing; default true. An inactive layer's commit does not. */
  readonly showReady?: boolean | undefined
  /** Bytes a second; 0 = unlimited, the default. */
  readonly speed?: number | undefined
  /** What the overlays of `top` write down as their backing image; default: nothing is written. */
  readonly backingFile?: string | undefined
  /** Name of the filter that sits over `top` meanwhile. */
  readonly filterNodeName?: string | undefined
  /** What to do about an I/O error; default `report`. */
  readonly onError?: OnError | undefined
  /** See `JobOptions`. */
  readonly autoFinalize?: boolean | undefined
  /** See `JobOptions`. */
  readonly autoDismiss?: boolean | undefined
  /** Called once with the result, before the job is concluded. */
  readonly onDone?: ((error: BlockError | undefined) => void | Promise<void>) | undefined
}

/** The size of a dirty region for a target, in bytes. */
export function mirrorGranularity(target: BlockNode): number {
  const cluster = target.driver?.limits.clusterSize ?? 0
  const wanted = cluster === 0 ? GRANULARITY_MAX : cluster
  return Math.min(GRANULARITY_MAX, Math.max(GRANULARITY_MIN, wanted))
}

/** Creates and starts an active commit. Nothing stays changed when it throws. */
export async function startCommit(
  graph: BlockGraph,
  registry: JobRegistry,
  pool: WorkerPool,
  options: CommitOptions,
): Promise<Job> {
  const { top, base } = options
  registry.checkId(options.jobId, options.internal ?? false)
  if (top === base) throw new BlockError('EINVAL', "Can't mirror node into itself")
  if (!chainContains(top, base)) {
    throw new BlockError('EINVAL', `'${base.name}' is not in this backing file chain`)
  }
  const wasReadOnly = base.readOnly
  await graph.setReadOnly(base, false)
  return undoing(async (undo) => {
    undo.push(() => graph.setReadOnly(base, wasReadOnly))
    if (base.length() < top.length()) await grow(graph, base, top.length())
    return build(graph, registry, pool, options, wasReadOnly, undo)
  })
}

async function build(
  graph: BlockGraph,
  registry: JobRegistry,
  pool: WorkerPool,
  options: CommitOptions,
  wasReadOnly: boolean,
  undo: UndoSteps,
): Promise<Job> {
  const { top, base } = options
  const inactive = options.device !== undefined && options.device !== top
  const kind = inactive ? 'commit_top' : 'mirror_top'
  const filter = await insertCommitFilter(graph, top, options.filterNodeName, kind)
  undo.push(() => graph.removeFilter(filter))
  // It takes no permission: the layers below stop being consistent as they are folded down.
  const source = await openBackend(graph, top, 0, { readsForJob: !inactive })
  undo.push(() => source.close())
  const shared = inactive ? PERM.ALL & ~(PERM.WRITE | PERM.RESIZE) : PERM.ALL
  const target = await openBackend(graph, base, PERM.WRITE, { shared })
  undo.push(() => target.close())
  const dirty = DirtyBitmap.create(top.length(), mirrorGranularity(base))
  const driver = new MirrorDriver({
    type: 'commit',
    graph,
    pool,
    filter,
    top,
    base,
    source,
    target,
    dirty,
    scan: (job) => scanAllocated(graph, job, top, base, dirty),
    autoComplete: options.autoComplete ?? false,
    showReady: options.showReady,
    pivotTo: base,
    beforePivot: () => renameBacking(graph, filter, options),
    onSourceError: options.onError ?? 'report',
    onTargetError: options.onError ?? 'report',
    restore: async (pivoted) => {
      if (!pivoted || inactive) await graph.setReadOnly(base, wasReadOnly)
    },
  })
  undo.push(async () => driver.release())
  const job = registry.create({
    id: options.jobId,
    internal: options.internal,
    driver,
    autoFinalize: options.autoFinalize,
    autoDismiss: options.autoDismiss,
    speed: options.speed,
    onDone: options.onDone,
  })
  // From here on the job itself takes everything back when it ends.
  undo.length = 0
  await launch(graph, job, driver, [
    [filter, 'main node'],
    inactive ? [top, 'intermediate node', FOLDED] : [top, 'source'],
    [base, 'target'],
    ...devices(options),
    ...between(options),
  ])
  return job
}

function devices({ device, top }: CommitOptions): JobNode[] {
  return device === undefined || device === top ? [] : [[device, 'device']]
}

// Nobody may take a layer away that is being folded down; replication guards its own layers.
function between({ top, base, internal }: CommitOptions): JobNode[] {
  const nodes: JobNode[] = []
  if (internal === true) return nodes
  for (let at = top.chainNext; at !== undefined && at !== base; at = at.chainNext) {
    nodes.push([at, 'intermediate node', FOLDED])
  }
  return nodes
}

/** Makes room in a base that is shorter than what is committed into it. */
async function grow(graph: BlockGraph, base: BlockNode, length: number): Promise<void> {
  if (base.needDriver().truncate === undefined) {
    throw new BlockError('ENOTSUP', `The base '${base.name}' is too short and cannot grow`)
  }
  const backend = await openBackend(graph, base, PERM.WRITE | PERM.RESIZE)
  try {
    await graph.withDrained(base, async () => {
      await nodeTruncate(backend.root, length)
      for (const node of graph.nodes()) node.bitmaps.fitLength()
    })
  } finally {
    await backend.close()
  }
}

/** Lets every overlay of what goes away write down the image that is left. */
async function renameBacking(
  graph: BlockGraph,
  filter: BlockNode,
  options: CommitOptions,
): Promise<void> {
  const { base, backingFile } = options
  if (backingFile === undefined) return
  for (const edge of [...filter.parents]) {
    if (edge.role !== 'backing' || edge.owner.ownerKind !== 'node') continue
    const overlay = edge.owner as BlockNode
    const { readOnly } = overlay
    if (readOnly) await graph.setReadOnly(overlay, false)
    try {
      await overlay.driver?.changeBackingFile?.(backingFile, base.definition.name)
    } finally {
      if (readOnly) await graph.setReadOnly(overlay, true)
    }
  }
}

/** Ties a job to its nodes and starts it; a job that cannot be tied is ended. */
export async function launch(
  graph: BlockGraph,
  job: Job,
  driver: MirrorDriver,
  nodes: readonly JobNode[],
): Promise<void> {
  const edges = new JobEdges(graph, job, () => driver.drainedPoll())
  await launchJob(job, edges, (own) => driver.adopt(job, own), nodes)
}

/** A backend of a job: never queued, since a drain waits for the job instead. */
export function openBackend(
  graph: BlockGraph,
  node: BlockNode,
  perm: number,
  more: { readonly shared?: number; readonly readsForJob?: boolean } = {},
): Promise<BlockBackend> {
  const options = { perm, shared: PERM.ALL, disableQueuing: true, ...more }
  return BlockBackend.create(graph, node, options)
}

/** Marks everything that a layer above `base` holds; without a base, any layer. */
export async function scanAllocated(
  graph: BlockGraph,
  job: Job,
  top: BlockNode,
  base: BlockNode | undefined,
  dirty: DirtyBitmap,
): Promise<void> {
  const length = top.length()
  for (let at = 0; at < length && !job.forceCancelled; ) {
    const rest = job.pausePoint() ?? graph.ctx.breathe()
    if (rest !== undefined) await rest
    const answer = isAllocatedAbove(top, base, at, length - at)
    const run = answer instanceof Promise ? await answer : answer
    if (run.allocated) dirty.setRange(at, run.bytes)
    at += run.bytes
  }
}
