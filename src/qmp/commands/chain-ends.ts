/**
 * The ends of a chain as `block-commit` and `block-stream` name them: by node or by file.
 *
 * Invariants:
 * - A file is looked for below the image that the search starts from, never at it.
 * - A relative name is taken as the overlay of the image would take it.
 */
import { dirname, resolve } from 'node:path'
import type { BlockGraph } from '../../block/graph.ts'
import type { BlockNode } from '../../block/node.ts'
import { optionalText, refuse, textOf } from '../command.ts'
import type { JsonObject } from '../json.ts'
import { nodeFilename } from '../node-info.ts'

/** What a commit folds into what. */
export interface CommitEnds {
  readonly top: BlockNode
  readonly base: BlockNode
}

/** What a stream fills, and how far down it reaches. */
export interface StreamEnds {
  readonly top: BlockNode
  /** The lowest image that is copied from; undefined = the whole chain. */
  readonly bottom: BlockNode | undefined
  /** From the top to what stays, which is excluded. */
  readonly walked: readonly BlockNode[]
}

/** The nodes from `top` down to `last`, or to the end of the chain. */
export function chainOf(top: BlockNode, last?: BlockNode): BlockNode[] {
  const chain: BlockNode[] = []
  for (let at: BlockNode | undefined = top; at !== undefined; at = at.chainNext) {
    chain.push(at)
    if (at === last) break
  }
  return chain
}

/** The ends that the arguments of `block-commit` name. Errors: EINVAL. */
export function commitEnds(graph: BlockGraph, root: BlockNode, args: JsonObject): CommitEnds {
  for (const end of ['top', 'base']) {
    if (args[end] !== undefined && args[`${end}-node`] !== undefined) {
      refuse(`'${end}-node' and '${end}' are mutually exclusive`)
    }
  }
  const top = commitTop(graph, root, args)
  const base = commitBase(graph, root, top, args)
  if (top === base) refuse('cannot commit an image into itself')
  if (!chainOf(top).includes(base)) refuse(`'${base.name}' is not in this backing file chain`)
  return { top, base }
}

function commitTop(graph: BlockGraph, root: BlockNode, args: JsonObject): BlockNode {
  const file = optionalText(args, 'top')
  if (file !== undefined && nodeFilename(root) !== file) {
    return findBelow(root, file) ?? refuse(`Top image file ${file} not found`)
  }
  return byNode(graph, root, optionalText(args, 'top-node')) ?? root
}

function commitBase(
  graph: BlockGraph,
  root: BlockNode,
  top: BlockNode,
  args: JsonObject,
): BlockNode {
  const file = optionalText(args, 'base')
  if (file !== undefined) return belowByFile(top, file)
  return byNode(graph, root, optionalText(args, 'base-node')) ?? chainOf(top).at(-1) ?? top
}

function byNode(
  graph: BlockGraph,
  root: BlockNode,
  name: string | undefined,
): BlockNode | undefined {
  if (name === undefined) return undefined
  const node = graph.lookup(undefined, name)
  if (!chainOf(root).includes(node)) refuse(`'${name}' is not in this backing file chain`)
  return node
}

/** The ends that the arguments of `block-stream` name. Errors: EINVAL. */
export function streamEnds(graph: BlockGraph, args: JsonObject): StreamEnds {
  for (const [one, other] of [
    ['base', 'base-node'],
    ['base', 'bottom'],
    ['bottom', 'base-node'],
  ] as const) {
    if (args[one] !== undefined && args[other] !== undefined) {
      refuse(`'${one}' and '${other}' cannot be specified at the same time`)
    }
  }
  const device = textOf(args, 'device')
  const top = graph.lookup(device, device)
  const bottom = bottomByName(graph, top, optionalText(args, 'bottom'))
  if (bottom !== undefined) return { top, bottom, walked: chainOf(top, bottom) }
  const base = streamBase(graph, top, args)
  if (base === undefined) return { top, bottom: undefined, walked: chainOf(top) }
  const walked = chainOf(top, base).slice(0, -1)
  const layers = walked.filter((node) => node.definition.kind !== 'filter')
  return { top, bottom: layers.at(-1), walked }
}

function bottomByName(
  graph: BlockGraph,
  top: BlockNode,
  name: string | undefined,
): BlockNode | undefined {
  if (name === undefined) return undefined
  const node = graph.lookup(undefined, name)
  if (node.definition.kind === 'filter') {
    refuse(`Node '${name}' is a filter, use a non-filter node as 'bottom'`)
  }
  if (chainOf(top).includes(node)) return node
  return refuse(`Node '${name}' is not in a chain starting from '${top.name}'`)
}

function streamBase(graph: BlockGraph, top: BlockNode, args: JsonObject): BlockNode | undefined {
  const file = optionalText(args, 'base')
  if (file !== undefined) return belowByFile(top, file)
  const name = optionalText(args, 'base-node')
  if (name === undefined) return undefined
  const node = graph.lookup(undefined, name)
  if (node !== top && chainOf(top).includes(node)) return node
  return refuse(`Node '${name}' is not a backing image of '${top.name}'`)
}

/** The image below `top` whose file has that name. */
function belowByFile(top: BlockNode, file: string): BlockNode {
  return findBelow(top, file) ?? refuse(`Can't find '${file}' in the backing chain`)
}

function findBelow(top: BlockNode, file: string): BlockNode | undefined {
  let overlay = top
  for (const node of chainOf(top).slice(1)) {
    if (node.definition.kind === 'filter') continue
    if (isFileOf(node, overlay, file)) return node
    overlay = node
  }
  return undefined
}

function isFileOf(node: BlockNode, overlay: BlockNode, file: string): boolean {
  if (nodeFilename(node) === file) return true
  const [own, above] = [fileUnder(node), fileUnder(overlay)]
  if (own === file) return true
  if (!above.startsWith('/') || !own.startsWith('/')) return false
  return resolve(dirname(above), file) === resolve(own)
}

// A node that differs from what its header says has no plain name, but its file still has one.
function fileUnder(node: BlockNode): string {
  return node.child('file')?.node.driver?.filename?.() ?? nodeFilename(node)
}

/**
 * The name of an image as an overlay writes it down. What jobs do below is none of its business: an
 * image over their filters, or over a link that they are about to write down, has its plain name.
 */
export function imageName(node: BlockNode): string {
  if (chainOf(node).some(hasJob)) return fileUnder(node)
  const below = chainOf(node)
    .slice(1)
    .find((next) => next.definition.kind !== 'filter')
  const shown = below === undefined ? undefined : imageName(below)
  return node.driver?.backingFilename?.() === shown ? fileUnder(node) : nodeFilename(node)
}

function hasJob(node: BlockNode): boolean {
  return [...node.parents].some((edge) => edge.role === 'job')
}
