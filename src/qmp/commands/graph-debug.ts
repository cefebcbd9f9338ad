/**
 * `x-debug-query-block-graph`: every node, backend and job, and who uses whom with what permissions.
 *
 * Invariants:
 * - Ids are numbers from 1 in the order in which a walk meets them: backends, jobs, nodes, each the
 *   oldest first and with what it uses; they mean nothing beyond one answer.
 * - Everything is listed in the reverse order of the walk.
 */
import type { BlockChild, EdgeOwner } from '../../block/child.ts'
import { PERM } from '../../block/driver.ts'
import type { BlockGraph } from '../../block/graph.ts'
import type { BlockNode } from '../../block/node.ts'
import { type CommandTable, command } from '../command.ts'
import type { JsonObject } from '../json.ts'

const WORDS = [
  ['resize', PERM.RESIZE],
  ['write-unchanged', PERM.WRITE_UNCHANGED],
  ['write', PERM.WRITE],
  ['consistent-read', PERM.CONSISTENT_READ],
] as const

const TYPES = { backend: 'block-backend', job: 'block-job', node: 'block-driver' } as const

/** Filters of jobs stand on what a chain calls the backing image. */
const OVER_BACKING = ['mirror_top', 'commit_top']

/** The command. */
export function graphDebugCommands(graph: BlockGraph): CommandTable {
  return { 'x-debug-query-block-graph': command({}, () => describeGraph(graph)) }
}

function describeGraph(graph: BlockGraph): JsonObject {
  const walk = new Walk()
  const nodes = graph.nodes().reverse()
  for (const backend of graph.backends) {
    if (backend.attached) walk.visit(backend, backend.name, [backend.root])
  }
  for (const job of jobsOf(nodes)) {
    walk.visit(job, job.name, [...(job.edges?.() ?? [])].reverse())
  }
  for (const node of nodes) walk.visit(node, node.name, [...node.children.values()].reverse())
  return walk.answer()
}

function jobsOf(nodes: readonly BlockNode[]): Set<EdgeOwner> {
  const edges = nodes.flatMap((node) => [...node.parents])
  return new Set(edges.map((edge) => edge.owner).filter((owner) => owner.ownerKind === 'job'))
}

class Walk {
  readonly #ids = new Map<EdgeOwner, number>()
  readonly #nodes: JsonObject[] = []
  readonly #edges: JsonObject[] = []

  visit(owner: EdgeOwner, name: string, edges: readonly BlockChild[]): void {
    this.#nodes.push({ id: this.#id(owner), type: TYPES[owner.ownerKind], name })
    for (const edge of edges) {
      this.#edges.push({
        parent: this.#id(owner),
        child: this.#id(edge.node),
        name: nameOf(edge),
        perm: words(edge.perm),
        'shared-perm': words(edge.shared),
      })
    }
  }

  answer(): JsonObject {
    return { nodes: this.#nodes.reverse(), edges: this.#edges.reverse() }
  }

  #id(owner: EdgeOwner): number {
    const id = this.#ids.get(owner) ?? this.#ids.size + 1
    this.#ids.set(owner, id)
    return id
  }
}

function nameOf({ name, owner }: BlockChild): string {
  if (name !== 'file' || owner.ownerKind !== 'node') return name
  return OVER_BACKING.includes((owner as BlockNode).definition.name) ? 'backing' : name
}

function words(permissions: number): string[] {
  return WORDS.filter(([, bit]) => (permissions & bit) !== 0).map(([word]) => word)
}
