/**
 * Commands about named dirty bitmaps.
 *
 * Invariants:
 * - A change of a bitmap that a transaction takes back loses no write that came meanwhile.
 */
import { createHash } from 'node:crypto'
import type { BlockGraph } from '../../block/graph.ts'
import type { NamedBitmap } from '../../block/named-bitmap.ts'
import type { BlockNode } from '../../block/node.ts'
import { assert, BlockError } from '../../util/errors.ts'
import {
  type CommandTable,
  command,
  flagOf,
  listOf,
  optionalNumber,
  refuse,
  textOf,
} from '../command.ts'
import { isObject, type JsonObject } from '../json.ts'
import { alternate, bool, list, type Members, type Schema, str, struct, uint32 } from '../schema.ts'
import { commandOf, type DeedTable, deed, type Step } from './deed.ts'

const which: Members = { node: str, name: str }
/** A bitmap of the node at hand by name, or of any node. */
export const bitmapRef: Schema = alternate('BlockDirtyBitmapOrStr', struct(which), str)

/** What can be done about bitmaps in a transaction. */
export function bitmapDeeds(graph: BlockGraph): DeedTable {
  const find = (args: JsonObject): NamedBitmap => bitmapOf(graph, args, 'name')
  return {
    'block-dirty-bitmap-add': deed(
      { ...which, 'granularity?': uint32, 'persistent?': bool, 'disabled?': bool },
      (args) => add(graph, args),
    ),
    'block-dirty-bitmap-remove': deed(which, (args) => remove(find(args))),
    'block-dirty-bitmap-clear': deed(which, (args) => ({ undo: find(args).clear() })),
    'block-dirty-bitmap-enable': deed(which, (args) => record(find(args), true)),
    'block-dirty-bitmap-disable': deed(which, (args) => record(find(args), false)),
    'block-dirty-bitmap-merge': deed({ node: str, target: str, bitmaps: list(bitmapRef) }, (args) =>
      merge(graph, args),
    ),
  }
}

/** The commands about bitmaps. */
export function bitmapCommands(graph: BlockGraph): CommandTable {
  const table: { [name: string]: CommandTable[string] } = {}
  for (const [name, one] of Object.entries(bitmapDeeds(graph))) table[name] = commandOf(one)
  table['x-debug-block-dirty-bitmap-sha256'] = command(which, (args) => {
    const bytes = bitmapOf(graph, args, 'name').bits.toBytes()
    return { sha256: createHash('sha256').update(bytes).digest('hex') }
  })
  return table
}

function nodeOf(graph: BlockGraph, name: string): BlockNode {
  const node = graph.find(name)
  if (node !== undefined) return node
  throw new BlockError('EINVAL', `Node '${name}' not found`, { node: name })
}

function bitmapOf(graph: BlockGraph, args: JsonObject, member: string): NamedBitmap {
  return nodeOf(graph, textOf(args, 'node')).bitmaps.need(textOf(args, member))
}

function add(graph: BlockGraph, args: JsonObject): Step {
  const [nodeName, name] = [textOf(args, 'node'), textOf(args, 'name')]
  if (name === '') throw new BlockError('EINVAL', 'Bitmap name cannot be empty')
  const node = graph.lookup(nodeName, nodeName)
  const granularity = optionalNumber(args, 'granularity')
  node.bitmaps.add({
    name,
    persistent: flagOf(args, 'persistent'),
    disabled: flagOf(args, 'disabled'),
    ...(granularity === undefined ? {} : { granularity }),
  })
  return { undo: () => void node.bitmaps.remove(name) }
}

// Until the end of a transaction it is in use: its name is not free, and it records what is written.
function remove(bitmap: NamedBitmap): Step {
  const { name, node } = bitmap
  bitmap.checkFree()
  bitmap.checkWritable()
  const release = bitmap.use()
  return {
    commit: () => {
      release()
      node.bitmaps.remove(name)
    },
    undo: release,
  }
}

function record(bitmap: NamedBitmap, on: boolean): Step {
  bitmap.checkUsable()
  const before = bitmap.enabled
  const set = (enabled: boolean): void => (enabled ? bitmap.enable() : bitmap.disable())
  set(on)
  return { undo: () => set(before) }
}

function merge(graph: BlockGraph, args: JsonObject): Step {
  const node = textOf(args, 'node')
  const target = bitmapOf(graph, args, 'target')
  target.checkChangeable()
  const others = listOf(args, 'bitmaps').map((one) => {
    if (typeof one === 'string') return bitmapOf(graph, { node, name: one }, 'name')
    assert(isObject(one), 'the schema demands a name or an object')
    return bitmapOf(graph, one, 'name')
  })
  if (others.length === 0) refuse("Parameter 'bitmaps' expects at least one bitmap")
  return { undo: target.merge(others) }
}
