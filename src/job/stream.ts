/**
 * Stream: copies what the images below a disk hold into the disk, until it needs them no more.
 *
 * Invariants:
 * - Copies go through a copy-on-read filter over the disk, so a guest's write is never undone.
 * - The links that are walked are frozen; what lies below the bottom may change meanwhile.
 * - The link is cut only after everything was copied; a failure leaves the chain as it was.
 */
import type { BlockBackend } from '../block/backend.ts'
import type { BlockChild } from '../block/child.ts'
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import { updatePermissions } from '../block/permissions.ts'
import type { WorkerBody } from './body.ts'
import { freezeChain, unfreezeChain } from './freeze.ts'
import type { JobEdges } from './host.ts'
import type { Job } from './job.ts'
import type { JobDriver } from './job-types.ts'
import type { OnError } from './policy.ts'
import type { WorkerPool } from './pool.ts'
import { type StreamCopier, streamAll, streamCopier } from './stream-copy.ts'
import type { StreamImages } from './stream-pieces.ts'

/** What a stream works on. */
export interface StreamPlan extends StreamImages {
  /** Threads that copy where they can reach every image; undefined = the filter copies. */
  readonly pool: WorkerPool | undefined
  /** Reads through the filter; closed by the job. */
  readonly reader: BlockBackend
  readonly onError: OnError
  /** What lies below it stays; the bottom, or a filter under it. */
  readonly above: BlockNode | undefined
  /** What is written down as the backing image; default: the name of the node that is left. */
  readonly backingFile: string | undefined
  /** How the file of a node is written down. */
  readonly nameOf: (node: BlockNode) => string
  /** Called last. */
  readonly restore: () => Promise<void>
}

/** The work of a stream job. */
export class StreamDriver implements JobDriver {
  readonly type = 'stream'
  readonly #plan: StreamPlan
  #edges: JobEdges | undefined
  #frozen: readonly BlockChild[] = []
  #copier: StreamCopier | undefined

  constructor(plan: StreamPlan) {
    this.#plan = plan
  }

  /** Ties the job to its nodes. Error (EPERM): another job holds a link of the chain. */
  adopt(edges: JobEdges): void {
    this.#edges = edges
    const { filter, layer, above } = this.#plan
    this.#frozen = freezeChain(filter, above ?? bottomOf(layer))
  }

  async run(job: Job): Promise<void> {
    const { layer, bottom, pool, reader } = this.#plan
    if (layer.chainNext === undefined || layer === bottom) return
    job.total = layer.length()
    this.#copier = await streamCopier(pool, this.#plan, { reader, speed: job.speed })
    await streamAll(job, { ...this.#plan, copier: this.#copier })
  }

  /** The threads' handles; none while the filter copies by itself. */
  get bodies(): readonly WorkerBody[] {
    return this.#copier?.bodies ?? []
  }

  async prepare(): Promise<void> {
    const { graph, layer } = this.#plan
    unfreezeChain(this.#frozen)
    this.#frozen = []
    await graph.withDrained(layer, () => this.#relink())
  }

  async clean(): Promise<void> {
    const { graph, filter, reader, restore } = this.#plan
    await this.#copier?.finish()
    unfreezeChain(this.#frozen)
    this.#edges?.detachAll()
    await reader.close()
    await graph.removeFilter(filter)
    await graph.settled()
    await restore()
  }

  /** Gives the image, which is drained, what is below the bottom as its backing image. */
  async #relink(): Promise<void> {
    const { graph, layer, above } = this.#plan
    const edge = layer.child('backing')
    if (edge === undefined) return
    for (let done = false; !done; ) {
      const base = await this.#holdBase()
      try {
        await this.#writeName(base)
        // The job of a neighbour may have taken its filter away meanwhile: then look again.
        done = above?.chainNext === base
        if (!done) continue
        if (base === undefined) graph.detach(edge)
        else if (base !== edge.node) moveLink(graph, layer, edge, base)
      } finally {
        if (base !== undefined) {
          graph.drainedEnd(base)
          graph.unref(base)
        }
      }
    }
  }

  /** Lets the image write down what will be below it. */
  async #writeName(base: BlockNode | undefined): Promise<void> {
    const { layer, backingFile, nameOf } = this.#plan
    const image = base === undefined ? undefined : withoutFilters(base)
    const name = image === undefined ? undefined : (backingFile ?? nameOf(image))
    // What stays below is named already, and may be opened in a way that no file could repeat.
    if (base === layer.child('backing')?.node && name?.startsWith('json:') === true) return
    await layer.driver?.changeBackingFile?.(name, image?.definition.name)
  }

  /** Drains what is below the bottom, which another job may replace while this one waits. */
  async #holdBase(): Promise<BlockNode | undefined> {
    const { graph, above } = this.#plan
    for (;;) {
      const base = above?.chainNext
      if (base === undefined) return undefined
      base.refs++
      await graph.drainedBegin(base)
      if (above?.chainNext === base) return base
      graph.drainedEnd(base)
      graph.unref(base)
    }
  }
}

function moveLink(graph: BlockGraph, layer: BlockNode, edge: BlockChild, to: BlockNode): void {
  const from = edge.node
  graph.moveEdgeNow(edge, to)
  try {
    updatePermissions([layer, from])
  } catch (error) {
    graph.moveEdgeNow(edge, from)
    updatePermissions([layer, to])
    graph.unref(to)
    graph.unref(from)
    throw error
  }
  graph.unref(from)
}

/** The image below the filters of a disk; the last filter when there is none. */
export function withoutFilters(node: BlockNode): BlockNode {
  let at = node
  while (at.definition.kind === 'filter' && at.chainNext !== undefined) at = at.chainNext
  return at
}

function bottomOf(top: BlockNode): BlockNode {
  let at = top
  for (let next = at.chainNext; next !== undefined; next = at.chainNext) at = next
  return at
}
