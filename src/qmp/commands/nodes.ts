/**
 * Commands about nodes: add, delete, reopen, resize, list, children.
 *
 * Invariants:
 * - The graph decides and words the refusals; here only what a command itself promises is checked.
 */
import type { BlockdevOptions } from '../../block/driver.ts'
import type { BlockGraph } from '../../block/graph.ts'
import type { BlockNode } from '../../block/node.ts'
import { assert, BlockError } from '../../util/errors.ts'
import { blockdevOptions } from '../blockdev-schema.ts'
import {
  type CommandTable,
  command,
  flagOf,
  listOf,
  optionalNumber,
  optionalText,
  refuse,
  textOf,
} from '../command.ts'
import { isObject, type JsonObject } from '../json.ts'
import { nodeInfo } from '../node-info.ts'
import { bool, int, list, str } from '../schema.ts'
import { resizeNode } from './resize.ts'

/** The commands about nodes. */
export function nodeCommands(graph: BlockGraph): CommandTable {
  return {
    'blockdev-add': command(blockdevOptions, async (args) => {
      await graph.add(nodeOptions(args))
    }),
    'blockdev-del': command({ 'node-name': str }, (args) =>
      graph.remove(textOf(args, 'node-name')),
    ),
    'blockdev-reopen': command({ options: list(blockdevOptions) }, (args) =>
      graph.reopen(listOf(args, 'options').map((options) => reopenEntry(graph, options))),
    ),
    block_resize: command({ 'device?': str, 'node-name?': str, size: int }, (args) => {
      const node = graph.lookup(optionalText(args, 'device'), optionalText(args, 'node-name'))
      return resizeNode(graph, node, optionalNumber(args, 'size') ?? 0)
    }),
    'query-named-block-nodes': command({ 'flat?': bool }, (args) =>
      Promise.all(graph.nodes().map((node) => nodeInfo(node, flagOf(args, 'flat')))),
    ),
    'query-block': command({}, () => []),
    'x-blockdev-change': command({ parent: str, 'child?': str, 'node?': str }, (args) =>
      changeChild(graph, args),
    ),
  }
}

/** Checked arguments as options of a node. */
export function nodeOptions(args: JsonObject): BlockdevOptions {
  return { ...args, driver: textOf(args, 'driver') }
}

function reopenEntry(
  graph: BlockGraph,
  options: unknown,
): { readonly node: BlockNode; readonly options: BlockdevOptions } {
  assert(isObject(options), 'the schema demands objects')
  const name = optionalText(options, 'node-name')
  if (name === undefined) refuse('node-name not specified')
  const node = graph.find(name)
  if (node === undefined) {
    throw new BlockError('EINVAL', `Failed to find node with node-name='${name}'`, { node: name })
  }
  return { node, options: nodeOptions(options) }
}

async function changeChild(graph: BlockGraph, args: JsonObject): Promise<void> {
  const parentName = textOf(args, 'parent')
  const childName = optionalText(args, 'child')
  const nodeName = optionalText(args, 'node')
  const parent = graph.lookup(parentName, parentName)
  if (childName !== undefined && nodeName !== undefined) {
    refuse('The parameters child and node are in conflict')
  }
  if (childName !== undefined) await removeChild(parent, childName)
  else if (nodeName !== undefined) await addChild(graph, parent, nodeName)
  else refuse('Either child or node must be specified')
}

async function removeChild(parent: BlockNode, name: string): Promise<void> {
  const child = parent.child(name)
  if (child === undefined) refuse(`Node '${parent.name}' does not have child '${name}'`)
  const driver = parent.needDriver()
  if (driver.removeChild === undefined) {
    refuse(`The node ${parent.name} does not support removing a child`)
  }
  await driver.removeChild(child)
}

async function addChild(graph: BlockGraph, parent: BlockNode, name: string): Promise<void> {
  const node = graph.find(name)
  if (node === undefined) refuse(`Node '${name}' not found`)
  const driver = parent.needDriver()
  if (driver.addChild === undefined) {
    refuse(`The node ${parent.name} does not support adding a child`)
  }
  if (node.parents.size > 0) refuse(`The node ${name} already has a parent`)
  await driver.addChild(node)
}
