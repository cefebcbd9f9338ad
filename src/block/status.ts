/**
 * Block status: what holds a range, asked of one node or of a whole chain.
 *
 * Invariants:
 * - An answer covers at least one byte and never more than was asked.
 * - Filters are transparent, yet a filter that refuses requests refuses here too.
 * - Beyond the end of a short backing image everything is zero.
 */
import type { MaybePromise } from '../coroutine/coroutine.ts'
import { assert, ioError } from '../util/errors.ts'
import type { BlockStatus } from './driver.ts'
import { STATUS } from './driver.ts'
import type { BlockNode } from './node.ts'

/** What this one node says of the start of a range. Errors: those of the driver. */
export function nodeStatus(
  node: BlockNode,
  offset: number,
  bytes: number,
): MaybePromise<BlockStatus> {
  const driver = node.needDriver()
  const length = driver.length()
  if (offset >= length) return { flags: STATUS.EOF | STATUS.ZERO, bytes }
  const want = Math.min(bytes, length - offset)
  if (driver.blockStatus === undefined) return defaultStatus(node, offset, want)
  node.gate.begin()
  let answer: MaybePromise<BlockStatus>
  try {
    answer = driver.blockStatus(offset, want)
  } catch (error) {
    node.gate.end()
    throw error
  }
  if (answer instanceof Promise) return statusLater(node, answer, want)
  node.gate.end()
  return clip(answer, want)
}

async function statusLater(
  node: BlockNode,
  answer: Promise<BlockStatus>,
  want: number,
): Promise<BlockStatus> {
  try {
    return clip(await answer, want)
  } finally {
    node.gate.end()
  }
}

function defaultStatus(node: BlockNode, offset: number, bytes: number): BlockStatus {
  if (node.definition.kind === 'filter') {
    for (const edge of node.children.values())
      if (edge.role === 'filtered') return { flags: STATUS.RAW, bytes, map: offset, file: edge }
  }
  return { flags: STATUS.DATA | STATUS.ALLOCATED, bytes }
}

function clip(answer: BlockStatus, want: number): BlockStatus {
  assert(answer.bytes > 0, 'a block status covers at least one byte')
  return answer.bytes > want ? { ...answer, bytes: want } : answer
}

/** A run of a chain with one answer. */
export interface ChainStatus {
  /**
   * DATA, ZERO and ALLOCATED as the whole chain shows them. Neither DATA nor ZERO: only a read
   * tells, as through a `raw` node over an overlay.
   */
  readonly flags: number
  /** Bytes from the asked offset with that answer; above 0. */
  readonly bytes: number
  /** How many layers above the one that decides; 0 = the top, -1 = none does. */
  readonly depth: number
}

const RAW_DEPTH_LIMIT = 64

/**
 * Follows RAW answers down to whoever knows whether the range is data or zero. `undecided`: that is an
 * overlay which holds nothing there, and what shows is below it.
 */
async function resolveRaw(status: BlockStatus): Promise<BlockStatus & { undecided: boolean }> {
  let now = status
  let below: BlockNode | undefined
  let from = 0
  for (let i = 0; i < RAW_DEPTH_LIMIT && (now.flags & STATUS.RAW) !== 0; i++) {
    assert(now.file !== undefined && now.map !== undefined, 'a RAW status names file and map')
    below = now.file.node
    from = now.map
    const answer = await nodeStatus(below, from, now.bytes)
    const bytes = Math.min(now.bytes, answer.bytes)
    now = { ...answer, flags: answer.flags | STATUS.ALLOCATED, bytes }
  }
  const known = (now.flags & (STATUS.DATA | STATUS.ZERO)) !== 0
  const shown = below?.chainNext?.length() ?? 0
  return { ...now, undecided: !known && from < shown }
}

/**
 * Asks `top` and then the layers below it, down to `base` (excluded; absent: to the end), who
 * decides the content of the start of the range.
 */
export function chainStatus(
  top: BlockNode,
  base: BlockNode | undefined,
  offset: number,
  bytes: number,
): MaybePromise<ChainStatus> {
  let want = bytes
  let depth = 0
  for (let node: BlockNode | undefined = top; node !== undefined && node !== base; ) {
    const status = nodeStatus(node, offset, want)
    if (status instanceof Promise) return chainStatusLater(status, node, base, offset, want, depth)
    if ((status.flags & STATUS.RAW) !== 0 && node.definition.kind !== 'filter')
      return chainStatusLater(Promise.resolve(status), node, base, offset, want, depth)
    const found = decide(status, depth)
    if (found !== undefined) return found
    want = Math.min(want, status.bytes)
    if (node.definition.kind !== 'filter') depth++
    node = node.chainNext
  }
  return { flags: STATUS.ZERO, bytes: want, depth: -1 }
}

async function chainStatusLater(
  first: Promise<BlockStatus>,
  node: BlockNode,
  base: BlockNode | undefined,
  offset: number,
  bytes: number,
  depth: number,
): Promise<ChainStatus> {
  let status = await first
  let undecided = false
  const filter = node.definition.kind === 'filter'
  if (!filter && (status.flags & STATUS.RAW) !== 0) {
    const resolved = await resolveRaw(status)
    status = resolved
    undecided = resolved.undecided
  }
  const found = decide(status, depth)
  if (found !== undefined) return found
  const next = node.chainNext
  const want = Math.min(bytes, status.bytes)
  if (next === undefined || next === base)
    return { flags: undecided ? 0 : STATUS.ZERO, bytes: want, depth: -1 }
  const rest = await chainStatus(next, base, offset, want)
  const above = filter ? depth : depth + 1
  return rest.depth < 0 ? rest : { ...rest, depth: rest.depth + above }
}

function decide(status: BlockStatus, depth: number): ChainStatus | undefined {
  if ((status.flags & STATUS.RAW) !== 0) return undefined
  const known = status.flags & (STATUS.DATA | STATUS.ZERO)
  if (known === 0) return undefined
  const flags = known | (status.flags & STATUS.ALLOCATED)
  return { flags, bytes: status.bytes, depth }
}

/** Whether a layer from `top` down to `base` holds the start of the range itself. */
export interface Allocation {
  readonly allocated: boolean
  /** Bytes with the same answer; not necessarily as many as there are. */
  readonly bytes: number
}

/** Is the start of the range held above `base` (excluded)? */
export function isAllocatedAbove(
  top: BlockNode,
  base: BlockNode | undefined,
  offset: number,
  bytes: number,
): MaybePromise<Allocation> {
  if (offset >= top.length()) throw ioError('EINVAL', { node: top.name, offset, bytes })
  const status = chainStatus(top, base, offset, bytes)
  if (status instanceof Promise)
    return status.then((s) => ({ allocated: s.depth >= 0, bytes: s.bytes }))
  return { allocated: status.depth >= 0, bytes: status.bytes }
}
