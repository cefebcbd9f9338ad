/**
 * How a job's disks reach its body: attached where every layer can be, else by proxy.
 *
 * Invariants:
 * - A filter or a layer without a description is never bypassed: its disk goes by proxy.
 * - Memory is written by a worker only in whole clusters, unless nothing is below it.
 */
import type { BlockBackend } from '../block/backend.ts'
import { type DiskDescription, STATUS } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { chainStatus } from '../block/status.ts'
import type { ViewDescription } from './body-task.ts'
import type { ProxyDisk } from './proxy-server.ts'
import type { ViewStatus } from './view.ts'

/** The layers from `top` down to `base` (excluded), or undefined when one must go by proxy. */
export function describeChain(
  top: BlockNode,
  base: BlockNode | undefined,
): DiskDescription[] | undefined {
  const layers: DiskDescription[] = []
  for (let node: BlockNode | undefined = top; node !== base; node = node.chainNext) {
    if (node === undefined) return layers
    const description = node.driver?.describe?.()
    if (description === undefined || node.definition.kind === 'filter') return undefined
    if (description.kind !== 'memory' && description.kind !== 'file') return undefined
    layers.push(description)
  }
  return layers
}

/** The layer that a worker may write, when pieces come in multiples of `unit` bytes. */
export function describeTarget(node: BlockNode, unit: number): DiskDescription | undefined {
  const description = node.driver?.describe?.()
  if (description === undefined || node.definition.kind === 'filter') return undefined
  if (description.kind === 'file') return description
  if (description.kind !== 'memory') return undefined
  const cluster = node.driver?.limits.clusterSize ?? 0
  const whole = cluster > 0 && unit % cluster === 0
  return whole || node.chainNext === undefined ? description : undefined
}

/**
 * Both disks of a copy that the main thread asks for range by range, or undefined when a worker
 * cannot reach one of them. `base` ends the source's chain; ranges are multiples of `unit`. The
 * target's own users hear of every range.
 */
export function describeCopy(
  source: BlockNode,
  target: BlockNode,
  { base, unit }: { readonly base?: BlockNode | undefined; readonly unit: number },
): Pick<DescribedDisks, 'source' | 'target'> | undefined {
  const layers = describeChain(source, base)
  const written = describeTarget(target, smallestCluster(source, base, unit))
  if (layers === undefined || written === undefined) return undefined
  // Whoever notes writes below the target would not hear of them.
  for (const edge of target.children.values())
    if ((edge.role === 'file' || edge.role === 'filtered') && isWatched(edge.node)) return undefined
  return {
    source: { kind: 'attached', layers },
    target: attachedTarget(target, written),
  }
}

/** A worker passes by the block layer, which would look for zeroes: it has to look itself. */
function attachedTarget(node: BlockNode, layer: DiskDescription): ViewDescription {
  const findZeroes = (node.options['detect-zeroes'] ?? 'off') !== 'off'
  return { kind: 'attached', layers: [layer], findZeroes }
}

/** Somebody notes the writes of the node, or of what holds its data, and a worker tells nobody. */
function isWatched(node: BlockNode): boolean {
  if (node.writeListeners.size > 0) return true
  for (const edge of node.children.values())
    if ((edge.role === 'file' || edge.role === 'filtered') && isWatched(edge.node)) return true
  return false
}

/** The smallest cluster of the layers, or `fallback` where a layer has none. */
export function smallestCluster(
  top: BlockNode,
  base: BlockNode | undefined,
  fallback: number,
): number {
  let smallest = fallback
  for (let node: BlockNode | undefined = top; node !== undefined && node !== base; ) {
    const cluster = node.driver?.limits.clusterSize ?? 0
    if (cluster > 0) smallest = Math.min(smallest, cluster)
    node = node.chainNext
  }
  return smallest
}

/** The two disks of a body, and what the main thread has to serve of them. */
export interface DescribedDisks {
  readonly source: ViewDescription
  readonly target: ViewDescription
  readonly proxies: readonly ProxyDisk[]
}

/** What `describeDisks` looks at. */
export interface DiskPair {
  readonly source: BlockBackend
  readonly target: BlockBackend
  /** Where the source's chain starts, below its filters. */
  readonly top: BlockNode
  /** Where it ends (excluded); undefined = at the bottom. */
  readonly base: BlockNode | undefined
  /** Pieces are multiples of this. */
  readonly unit: number
}

/** Decides for both disks of a job. */
export function describeDisks(pair: DiskPair): DescribedDisks {
  const { source, target, top, base, unit } = pair
  const layers = describeChain(top, base)
  const piece = smallestCluster(top, base, unit)
  const written = isWatched(target.node) ? undefined : describeTarget(target.node, piece)
  return {
    source:
      layers === undefined
        ? { kind: 'proxy', index: 0, length: top.length() }
        : { kind: 'attached', layers },
    target:
      written === undefined
        ? { kind: 'proxy', index: 1, length: target.length() }
        : attachedTarget(target.node, written),
    proxies: [proxySource(source, top, base), proxyTarget(target)],
  }
}

function proxySource(
  backend: BlockBackend,
  top: BlockNode,
  base: BlockNode | undefined,
): ProxyDisk {
  return {
    status: async (offset, bytes) => {
      const { flags, bytes: run, depth } = await chainStatus(top, base, offset, bytes)
      // Where only a read tells, there may be data.
      const nothing = depth < 0 && (base !== undefined || (flags & STATUS.ZERO) !== 0)
      return { kind: nothing ? 'unallocated' : kindOf(flags), bytes: run }
    },
    pread: (offset, buf) => backend.pread(offset, buf),
    pwrite: (offset, buf) => backend.pwrite(offset, buf),
    pwriteZeroes: (offset, bytes) => backend.pwriteZeroes(offset, bytes),
  }
}

function proxyTarget(backend: BlockBackend): ProxyDisk {
  return {
    status: (_offset, bytes) => ({ kind: 'data', bytes }),
    pread: (offset, buf) => backend.pread(offset, buf),
    pwrite: (offset, buf) => backend.pwrite(offset, buf),
    pwriteZeroes: (offset, bytes) => backend.pwriteZeroes(offset, bytes),
  }
}

function kindOf(flags: number): ViewStatus['kind'] {
  return (flags & STATUS.ZERO) !== 0 && (flags & STATUS.DATA) === 0 ? 'zero' : 'data'
}
