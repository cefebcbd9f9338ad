/**
 * `query-blockstats` and `block-set-write-threshold`.
 *
 * Invariants:
 * - Statistics are of drives, and there are none without a machine: with `query-nodes` every node
 *   is listed, and its counters are zero, as they are for nodes that no drive uses.
 */
import type { BlockGraph } from '../../block/graph.ts'
import type { BlockNode } from '../../block/node.ts'
import { BlockError } from '../../util/errors.ts'
import { type CommandTable, command, flagOf, optionalNumber, textOf } from '../command.ts'
import type { JsonObject, JsonValue } from '../json.ts'
import { bool, size, str } from '../schema.ts'
import { setWriteThreshold } from '../write-threshold.ts'

const DEEDS = ['rd', 'wr', 'unmap', 'flush'] as const

/** The commands. */
export function statisticsCommands(graph: BlockGraph): CommandTable {
  return {
    'query-blockstats': command({ 'query-nodes?': bool }, (args) =>
      flagOf(args, 'query-nodes') ? [...graph.nodes()].map(statisticsOf) : [],
    ),
    'block-set-write-threshold': command({ 'node-name': str, 'write-threshold': size }, (args) => {
      const name = textOf(args, 'node-name')
      const node = graph.find(name)
      if (node === undefined) {
        throw new BlockError('EINVAL', `Device '${name}' not found`, { node: name })
      }
      setWriteThreshold(graph, node, optionalNumber(args, 'write-threshold') ?? 0)
    }),
  }
}

function statisticsOf(node: BlockNode): JsonObject {
  const below = node.child('file')?.node
  const backing = node.child('backing')?.node
  return {
    'node-name': node.name,
    stats: counters(),
    ...(below === undefined ? {} : { parent: statisticsOf(below) }),
    ...(backing === undefined ? {} : { backing: statisticsOf(backing) }),
  }
}

function counters(): JsonObject {
  const stats: { [name: string]: JsonValue } = {}
  for (const deed of DEEDS) {
    stats[`${deed}_operations`] = 0
    stats[`${deed}_total_time_ns`] = 0
    stats[`failed_${deed}_operations`] = 0
    stats[`invalid_${deed}_operations`] = 0
    if (deed === 'flush') continue
    stats[`${deed}_bytes`] = 0
    stats[`${deed}_merged`] = 0
  }
  return {
    ...stats,
    wr_highest_offset: 0,
    account_invalid: false,
    account_failed: false,
    timed_stats: [],
  }
}
