/**
 * What the start of every job shares: taking back what was done when it fails, and the job's edges.
 *
 * Invariants:
 * - Undo steps run the newest first, and only as long as the job does not own what they undo.
 * - A job whose edges cannot be made is cancelled before it ran.
 */
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import { BlockError } from '../util/errors.ts'
import type { JobEdges } from './host.ts'
import type { Job } from './job.ts'

/** Steps that take back what was done so far, the oldest first; emptied when a job owns it all. */
export type UndoSteps = (() => Promise<void>)[]

/** Runs `work`; when it throws, what it left in its list of steps is taken back. */
export async function undoing<T>(work: (undo: UndoSteps) => Promise<T>): Promise<T> {
  const undo: UndoSteps = []
  try {
    return await work(undo)
  } catch (thrown) {
    for (const step of undo.reverse()) await step()
    throw thrown
  }
}

/** Puts the filter of a copying job over its source; `name`: of the filter, if it is to have one. */
export function insertCommitFilter(
  graph: BlockGraph,
  source: BlockNode,
  name: string | undefined,
  driver: 'mirror_top' | 'commit_top' = 'mirror_top',
): Promise<BlockNode> {
  return graph.insertFilter(
    {
      driver,
      file: source.name,
      'read-only': source.readOnly,
      ...(name === undefined ? {} : { 'node-name': name }),
    },
    source,
  )
}

/** Makes a filter that a job cannot do without; a refusal says what could not be made. */
export async function makingNode<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (thrown) {
    if (!(thrown instanceof BlockError)) throw thrown
    const { code, context } = thrown
    throw new BlockError(code, `Could not create node: ${thrown.message}`, context, thrown)
  }
}

/** A node that a job is tied to, the name of its role, and what others may do with it (default all). */
export type JobNode = readonly [node: BlockNode, name: string, shared?: number]

/** Ties a new job to its nodes and starts it. */
export async function launchJob(
  job: Job,
  edges: JobEdges,
  adopt: (edges: JobEdges) => void,
  nodes: readonly JobNode[],
): Promise<void> {
  try {
    adopt(edges)
    for (const [node, name, shared] of nodes) await edges.add(node, name, shared)
  } catch (thrown) {
    await job.cancelSync()
    throw thrown
  }
  job.start()
}
