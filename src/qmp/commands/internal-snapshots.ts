/**
 * Snapshots inside an image: none of our drivers makes them, and the commands say so.
 *
 * Invariants:
 * - Existing snapshots of an image are kept; they are neither made nor deleted here.
 */
import type { BlockGraph } from '../../block/graph.ts'
import type { BlockNode } from '../../block/node.ts'
import { BlockError } from '../../util/errors.ts'
import { type CommandTable, command, textOf } from '../command.ts'
import type { JsonObject } from '../json.ts'
import { str } from '../schema.ts'
import { commandOf, type DeedTable, deed } from './deed.ts'

/** What can be part of a transaction. */
export function internalSnapshotDeeds(graph: BlockGraph): DeedTable {
  return {
    'blockdev-snapshot-internal-sync': deed({ device: str, name: str }, (args) => {
      const node = deviceOf(graph, args)
      node.blockers.check('internal-snapshot', node.name)
      const format = node.definition.name
      throw new BlockError(
        'ENOTSUP',
        `Block format '${format}' used by device '${node.name}' does not support internal snapshots`,
        { node: node.name },
      )
    }),
  }
}

/** The commands. */
export function internalSnapshotCommands(graph: BlockGraph): CommandTable {
  const deeds = Object.entries(internalSnapshotDeeds(graph))
  return {
    ...Object.fromEntries(deeds.map(([name, one]) => [name, commandOf(one)])),
    'blockdev-snapshot-delete-internal-sync': command(
      { device: str, 'id?': str, 'name?': str },
      (args) => {
        const node = deviceOf(graph, args)
        const named = args.id !== undefined || args.name !== undefined
        if (!named) throw new BlockError('EINVAL', 'Name or id must be provided')
        const words = 'Failed to get a snapshot list: Operation not supported'
        throw new BlockError('ENOTSUP', words, { node: node.name })
      },
    ),
  }
}

function deviceOf(graph: BlockGraph, args: JsonObject): BlockNode {
  const device = textOf(args, 'device')
  return graph.lookup(device, device)
}
