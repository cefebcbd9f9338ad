/**
 * Drained sections: no request runs on a node, and none is accepted from above.
 *
 * Invariants:
 * - Everything is quiesced first; then there is one wait, at the outermost node.
 * - A section that began always ends: a failed wait takes its quiesce back.
 * - Nodes born inside a drain-all section are born quiesced.
 */
import type { BlockGraph } from './graph.ts'
import type { BlockNode } from './node.ts'

/** Drain state of one graph; used through `BlockGraph`. Main thread only. */
export class Drains {
  readonly #graph: BlockGraph
  readonly #waiters = new Set<() => void>()
  /** Nodes each open drain-all section holds; a closed node leaves all of them. */
  readonly #sections: Set<BlockNode>[] = []

  constructor(graph: BlockGraph) {
    this.#graph = graph
  }

  /** Something that a drain may be waiting for has changed. */
  kick(): void {
    if (this.#waiters.size === 0) return
    for (const look of [...this.#waiters]) look()
  }

  /** Waits until the node is quiet. */
  async untilQuiet(node: BlockNode): Promise<void> {
    await this.until(() => !node.busy(), [node])
  }

  /** Waits until `quiet()`, looking again whenever anything relevant changed. */
  until(quiet: () => boolean, roots: readonly BlockNode[]): Promise<void> {
    if (quiet()) return Promise.resolve()
    return new Promise((resolve) => {
      const watched = new Set<BlockNode>()
      const look = (): void => {
        // A worker may end its request, or back off from a closed gate, between two looks. Nobody
        // would tell then, so look again until there is somebody who will.
        for (;;) {
          if (quiet()) {
            this.#waiters.delete(look)
            resolve()
            return
          }
          let kicked = roots.length === 0
          for (const root of roots) if (this.#watch(root, watched, look)) kicked = true
          if (kicked || watched.size > 0) return
        }
      }
      this.#waiters.add(look)
      look()
    })
  }

  /**
   * Looks again when the requests in flight at `node`, or above it, have ended. Answers whether a
   * backend or a job above is busy, which kicks when it is done.
   */
  #watch(node: BlockNode, watched: Set<BlockNode>, look: () => void): boolean {
    let kicked = false
    if (node.gate.inFlight > 0 && !watched.has(node)) {
      watched.add(node)
      const idle = node.gate.whenIdle()
      const again = (): void => {
        watched.delete(node)
        if (this.#waiters.has(look)) look()
      }
      if (idle !== undefined) void idle.then(again)
      else watched.delete(node)
    }
    for (const edge of node.parents) {
      if (edge.owner.ownerKind !== 'node') kicked ||= edge.owner.drainedPoll(edge)
      else if (this.#watch(edge.owner as BlockNode, watched, look)) kicked = true
    }
    return kicked
  }

  /** Begins a section on one node. */
  async begin(node: BlockNode): Promise<void> {
    node.refs++
    node.quiesce()
    await this.untilQuiet(node)
  }

  /** Ends a section on one node. */
  end(node: BlockNode): void {
    node.unquiesce()
    this.#graph.unref(node)
  }

  /** Begins a section on every node there is, and on those that are born meanwhile. */
  async beginAll(): Promise<void> {
    // A node that is still opening joins when it is open.
    const section = new Set(this.#graph.nodes().filter((node) => node.driver !== undefined))
    this.#sections.push(section)
    for (const node of section) node.quiesce()
    await this.until(() => [...section].every((node) => !node.busy()), [...section])
  }

  /** Ends the section on every node. */
  endAll(): void {
    const section = this.#sections.pop()
    if (section !== undefined) for (const node of section) node.unquiesce()
  }

  /** A node was opened: it joins the open sections. */
  born(node: BlockNode): void {
    for (const section of this.#sections) {
      section.add(node)
      node.quiesce()
    }
  }

  /** A node closes: it leaves the open sections. */
  died(node: BlockNode): void {
    for (const section of this.#sections) if (section.delete(node)) node.unquiesce()
  }
}
