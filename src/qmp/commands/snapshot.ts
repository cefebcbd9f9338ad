/**
 * `blockdev-snapshot`: puts an overlay over a node that is in use.
 *
 * Invariants:
 * - The users of the node move onto the overlay inside one drained section, or nothing changes.
 */
import type { BlockGraph } from '../../block/graph.ts'
import type { BlockNode } from '../../block/node.ts'
import { type CommandTable, command, refuse, textOf } from '../command.ts'
import { str } from '../schema.ts'

/** The commands about snapshots. */
export function snapshotCommands(graph: BlockGraph): CommandTable {
  return {
    'blockdev-snapshot': command({ node: str, overlay: str }, (args) => {
      const [name, over] = [textOf(args, 'node'), textOf(args, 'overlay')]
      return snapshot(graph, graph.lookup(name, name), graph.lookup(over, over))
    }),
  }
}

async function snapshot(graph: BlockGraph, node: BlockNode, overlay: BlockNode): Promise<void> {
  node.blockers.check('external-snapshot', node.name)
  if (overlay.parents.size > 0) refuse('The overlay is already in use')
  if (overlay.child('backing') !== undefined) refuse('The overlay already has a backing image')
  if (overlay.definition.supportsBacking !== true) {
    refuse('The overlay does not support backing images')
  }
  const plain = overlay.options
  await graph.withDrained(node, async () => {
    await graph.reopen([{ node: overlay, options: { ...plain, backing: node.name } }])
    try {
      await graph.replace(node, overlay)
    } catch (error) {
      await graph.reopen([{ node: overlay, options: { ...plain, backing: null } }])
      throw error
    }
  })
}
