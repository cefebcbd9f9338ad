/**
 * Jobs on a block graph: where their events go, where they run, and their edges to nodes.
 *
 * Invariants:
 * - A job edge takes no permission; it exists so that a drain pauses the job. It shares all, except
 *   on nodes whose content the job makes meaningless or relies on.
 * - Every drained edge counts as one pause of the job.
 */
import type { BlockReason } from '../block/blockers.ts'
import type { BlockChild, EdgeOwner } from '../block/child.ts'
import { PERM } from '../block/driver.ts'
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import type { Coroutine } from '../coroutine/coroutine.ts'
import type { Job } from './job.ts'
import type { JobHost } from './job-types.ts'
import { JobRegistry } from './registry.ts'

async function* asCoroutine(work: () => Promise<void>): Coroutine<void> {
  yield work()
}

/** The surroundings of jobs on a graph. */
export function graphJobHost(graph: BlockGraph): JobHost {
  return {
    emit: (name, data) => graph.events.emit(name, { ...data }),
    spawn: (work, name) => graph.ctx.spawn(() => asCoroutine(work), { name }).join(),
    quiet: () => graph.drains.kick(),
  }
}

/** A registry for the jobs of a graph. */
export function jobRegistry(graph: BlockGraph): JobRegistry {
  return new JobRegistry(graphJobHost(graph))
}

/** The edges of one job. */
export class JobEdges {
  readonly #graph: BlockGraph
  readonly #owner: EdgeOwner
  readonly #edges: BlockChild[] = []
  readonly #reason: BlockReason

  /** `alsoBusy` answers whether there is work that a drain waits for after the job's own ended. */
  constructor(graph: BlockGraph, job: Job, alsoBusy: () => boolean = () => false) {
    this.#graph = graph
    this.#reason = { message: `block device is in use by block job: ${job.driver.type}` }
    const id = job.id === '' ? '' : ` '${job.id}'`
    this.#owner = {
      ownerKind: 'job',
      name: job.id,
      edges: () => this.#edges,
      ownerDescription: `${job.driver.type} job${id}`,
      drainedBegin: () => job.pause(),
      drainedPoll: () => job.drainedPoll() || alsoBusy(),
      drainedEnd: () => job.resume(),
    }
  }

  /**
   * Attaches the job to a node under a name, and keeps commands off it; `shared`: what others may
   * do with it. Error (EPERM): somebody does what is not shared.
   */
  async add(node: BlockNode, name: string, shared: number = PERM.ALL): Promise<void> {
    node.refs++
    this.#edges.push(await this.#graph.attach(this.#owner, node, name, 'job', { perm: 0, shared }))
    node.blockers.blockAll(this.#reason, ['dataplane'])
  }

  /** Cuts all edges, the newest first. */
  detachAll(): void {
    for (const edge of this.#edges.splice(0).reverse()) {
      edge.node.blockers.unblockAll(this.#reason)
      this.#graph.detach(edge)
    }
  }
}
