/**
 * `block-stream`: makes a disk independent of the images below it, or of some of them.
 *
 * Invariants:
 * - All checks of the request come before the graph changes.
 */
import { PERM } from '../block/driver.ts'
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import { openBackend } from './commit.ts'
import { JobEdges } from './host.ts'
import type { Job } from './job.ts'
import type { OnError } from './policy.ts'
import type { WorkerPool } from './pool.ts'
import type { JobRegistry } from './registry.ts'
import { type JobNode, launchJob, makingNode, undoing } from './start-job.ts'
import { StreamDriver, withoutFilters } from './stream.ts'

const COPIED_FROM = PERM.CONSISTENT_READ | PERM.WRITE_UNCHANGED

/** A stream. */
export interface StreamOptions {
  /** Id of the job. */
  readonly jobId: string
  /** The disk that is streamed into. */
  readonly top: BlockNode
  /** The lowest image that is copied from; absent: the whole chain. No filter. */
  readonly bottom?: BlockNode | undefined
  /** What lies below it stays: a filter under the bottom; default the bottom. */
  readonly above?: BlockNode | undefined
  /** What is written down as the backing image; default: the name of the node that is left. */
  readonly backingFile?: string | undefined
  /** How the file of a node is written down. */
  readonly nameOf: (node: BlockNode) => string
  /** Threads that copy where they can reach every image; absent: the filter copies by itself. */
  readonly pool?: WorkerPool | undefined
  /** Bytes a second; 0 = unlimited, the default. */
  readonly speed?: number | undefined
  /** Name of the filter that sits over the disk meanwhile. */
  readonly filterNodeName?: string | undefined
  /** What to do about an I/O error; default `report`. */
  readonly onError?: OnError | undefined
  /** See `JobOptions`. */
  readonly autoFinalize?: boolean | undefined
  /** See `JobOptions`. */
  readonly autoDismiss?: boolean | undefined
}

/** Creates and starts a stream. Nothing stays changed when it throws. */
export async function startStream(
  graph: BlockGraph,
  registry: JobRegistry,
  options: StreamOptions,
): Promise<Job> {
  const { top, bottom, above = bottom } = options
  registry.checkId(options.jobId, false)
  const layer = withoutFilters(top)
  // In this order: a disk becomes writable before and read-only after it has the filter.
  const opened = [layer, top].filter((node, at, all) => node.readOnly && all.indexOf(node) === at)
  const restore = async (): Promise<void> => {
    for (const node of [...opened].reverse()) await graph.setReadOnly(node, true)
  }
  return undoing(async (undo) => {
    undo.push(restore)
    for (const node of opened) await graph.setReadOnly(node, false)
    const filter = await makingNode(() => insertCopyOnRead(graph, options))
    undo.push(() => graph.removeFilter(filter))
    const reader = await openBackend(graph, filter, PERM.CONSISTENT_READ)
    undo.push(() => reader.close())
    const { nameOf, backingFile, pool, onError = 'report' } = options
    const driver = new StreamDriver({
      graph,
      filter,
      layer,
      bottom,
      above,
      reader,
      pool,
      onError,
      backingFile,
      nameOf,
      restore,
    })
    const job = registry.create({
      id: options.jobId,
      driver,
      autoFinalize: options.autoFinalize,
      autoDismiss: options.autoDismiss,
      speed: options.speed,
    })
    // From here on the job itself takes everything back when it ends.
    undo.length = 0
    await launchJob(
      job,
      new JobEdges(graph, job),
      (edges) => driver.adopt(edges),
      nodesOf(filter, above),
    )
    return job
  })
}

function insertCopyOnRead(graph: BlockGraph, options: StreamOptions): Promise<BlockNode> {
  const { top, bottom, filterNodeName } = options
  return graph.insertFilter(
    {
      driver: 'copy-on-read',
      'holds-chain': false,
      file: top.name,
      'read-only': false,
      ...(bottom === undefined ? {} : { bottom: bottom.name }),
      ...(filterNodeName === undefined ? {} : { 'node-name': filterNodeName }),
    },
    top,
  )
}

/** Everything that is walked, the top first; what is copied from must not change. */
function nodesOf(filter: BlockNode, last: BlockNode | undefined): JobNode[] {
  const nodes: JobNode[] = []
  for (let at: BlockNode | undefined = filter; at !== undefined; at = at.chainNext) {
    if (nodes.length === 0) nodes.push([at, 'main node'])
    else if (nodes.length === 1) nodes.push([at, 'active node'])
    else nodes.push([at, 'intermediate node', COPIED_FROM])
    if (at === last) break
  }
  return nodes
}
