/**
 * `yank` and `query-yank`: cutting connections that hang, out of band.
 *
 * Invariants:
 * - Either every named instance exists and is cut, or none is touched.
 */
import type { BlockGraph } from '../../block/graph.ts'
import { BlockError } from '../../util/errors.ts'
import { type CommandTable, command, listOf } from '../command.ts'
import { isObject } from '../json.ts'
import { list, oneOf, str, union } from '../schema.ts'

interface Yankable {
  yank(): void
}

const instance = union(
  'type',
  { type: oneOf('block-node', 'chardev', 'migration') },
  { 'block-node': { 'node-name': str }, chardev: { id: str }, migration: {} },
)

/** The commands about hanging connections. */
export function yankCommands(graph: BlockGraph): CommandTable {
  return {
    yank: command(
      { instances: list(instance) },
      (args) => {
        const targets = listOf(args, 'instances').map((one) => find(graph, one))
        for (const target of targets) target.yank()
      },
      true,
    ),
    'query-yank': command(
      {},
      () =>
        graph
          .nodes()
          .filter((node) => isYankable(node.driver))
          .map((node) => ({ 'node-name': node.name, type: 'block-node' })),
      true,
    ),
  }
}

function find(graph: BlockGraph, one: unknown): Yankable {
  const name = isObject(one) && one.type === 'block-node' ? String(one['node-name']) : undefined
  const driver = name === undefined ? undefined : graph.find(name)?.driver
  if (!isYankable(driver)) throw new BlockError('DEVICE_NOT_FOUND', 'Instance not found')
  return driver.client
}

// A driver whose requests go over a connection shows that connection.
function isYankable(driver: unknown): driver is { readonly client: Yankable } {
  if (typeof driver !== 'object' || driver === null || !('client' in driver)) return false
  const { client } = driver
  return (
    typeof client === 'object' &&
    client !== null &&
    'yank' in client &&
    typeof client.yank === 'function'
  )
}
