/**
 * Closing a node after its last reference went.
 *
 * Invariants:
 * - The name is free before anything else happens.
 * - Nothing is in flight when the driver closes, and what was written has been flushed.
 * - Whoever edits the graph for a driver that closes never waits for that driver.
 */
import { assert } from '../util/errors.ts'
import { nodeFlush } from './flush.ts'
import type { BlockNode } from './node.ts'

interface Closing {
  /** Fulfilled when the node is gone. */
  readonly closed: Promise<void>
  /** Fulfilled when `settled` need not wait for it any more. */
  waited: Promise<void>
  /** Its driver ends something that works on the graph itself. */
  ending: boolean
  readonly leave: () => void
}

/** The nodes of a graph that nobody uses and that are on their way out. */
export class Closings {
  readonly #all = new Map<BlockNode, Closing>()

  /** Closes a node nobody uses. */
  add(node: BlockNode): void {
    let leave: () => void = () => undefined
    const aside = new Promise<void>((resolve) => {
      leave = resolve
    })
    const closed = closeNode(node).finally(() => this.#all.delete(node))
    const waited = Promise.race([closed, aside])
    this.#all.set(node, { closed, waited, ending: false, leave })
  }

  /** For the driver of a node that closes: does something that uses the graph, and its `settled`. */
  async aside(node: BlockNode, action: () => Promise<void>): Promise<void> {
    const closing = this.#all.get(node)
    if (closing === undefined) return action()
    closing.ending = true
    closing.leave()
    try {
      await action()
    } finally {
      closing.ending = false
      closing.waited = closing.closed
    }
  }

  /** Waits for all but those whose drivers use the graph to end what they run. */
  async settled(): Promise<void> {
    for (;;) {
      const rest = [...this.#all.values()].filter(({ ending }) => !ending)
      if (rest.length === 0) return
      await Promise.all(rest.map(({ waited }) => waited))
    }
  }

  /** Waits for all. Never from within what a closing driver does. */
  async gone(): Promise<void> {
    while (this.#all.size > 0) await Promise.all([...this.#all.values()].map((one) => one.closed))
  }
}

/** Flushes and closes a node nobody uses. Failures to flush are nobody's to hear any more. */
async function closeNode(node: BlockNode): Promise<void> {
  const { graph } = node
  assert(node.parents.size === 0, `node ${node.name} closes without users`)
  graph.unregister(node)
  node.quiesce()
  graph.drains.died(node)
  await graph.drains.untilQuiet(node)
  try {
    await nodeFlush(node)
  } catch {
    // The last user is gone; an image that must be stable was flushed by it.
  }
  await graph.drains.untilQuiet(node)
  const driver = node.driver
  await driver?.close()
  node.driver = undefined
  for (const edge of [...node.children.values()].reverse()) graph.detach(edge)
  node.unquiesce()
}
