/**
 * Node names: what a user may choose and what we make up.
 *
 * Invariants:
 * - A made-up name is no well-formed user name, so the two can never meet.
 */
import { BlockError } from '../util/errors.ts'
import type { BlockGraph } from './graph.ts'

/** Longest node name in bytes. */
export const NODE_NAME_MAX = 31

const WELL_FORMED = /^[A-Za-z][A-Za-z0-9\-._]*$/

/** Throws EINVAL when a user may not give a node that name; undefined means "make one up". */
export function checkFreeName(graph: BlockGraph, name: string | undefined): void {
  if (name === undefined) return
  if (!WELL_FORMED.test(name)) throw new BlockError('EINVAL', `Invalid node-name: '${name}'`)
  if (Buffer.byteLength(name) > NODE_NAME_MAX) throw new BlockError('EINVAL', 'Node name too long')
  if (graph.reservedNames.has(name))
    throw new BlockError('EINVAL', `node-name=${name} is conflicting with a device id`)
  if (graph.find(name) !== undefined)
    throw new BlockError('EINVAL', `Duplicate nodes with node-name='${name}'`)
}

const counters = new WeakMap<BlockGraph, number>()

/** A name for a node whose user gave none. */
export function inventName(graph: BlockGraph): string {
  const next = (counters.get(graph) ?? 99) + 1
  counters.set(graph, next)
  return `#block${next}`
}
