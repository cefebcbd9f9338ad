/**
 * Nodes as `query-named-block-nodes` shows them.
 *
 * Invariants:
 * - Members have the protocol's names; sizes are bytes.
 * - Every filter is a link of a chain, also one that a job put in silently.
 */
import type { BlockChild } from '../block/child.ts'
import type { ImageInfo } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { type JsonObject, type JsonValue, toJson } from './json.ts'
import { headerBacking, nodeFilename } from './node-filename.ts'

import { writeThresholdOf } from './write-threshold.ts'

export { nodeFilename } from './node-filename.ts'

/** One element of the answer; without `flat` the image shows its backing images inside. */
export async function nodeInfo(node: BlockNode, flat: boolean): Promise<JsonObject> {
  const filename = nodeFilename(node)
  const backing = node.definition.kind === 'filter' ? undefined : backingChild(node)?.node
  const { cache } = node.options
  const bitmaps = bitmapInfos(node)
  return {
    iops_rd: 0,
    detect_zeroes: node.options['detect-zeroes'] ?? 'off',
    image: await imageInfo(node, flat),
    iops_wr: 0,
    ro: node.readOnly,
    'node-name': node.name,
    backing_file_depth: flat ? 0 : chainDepth(node),
    drv: node.definition.name,
    iops: 0,
    bps_wr: 0,
    write_threshold: writeThresholdOf(node),
    encrypted: false,
    bps: 0,
    bps_rd: 0,
    cache: {
      'no-flush': cache?.['no-flush'] ?? false,
      direct: cache?.direct ?? false,
      writeback: true,
    },
    file: filename,
    ...(backing === undefined ? {} : { backing_file: nodeFilename(backing) }),
    ...(bitmaps.length === 0 ? {} : { 'dirty-bitmaps': bitmaps }),
  }
}

/** The dirty bitmaps of a node, newest first; those of jobs have no name. */
function bitmapInfos(node: BlockNode): JsonValue[] {
  const working = node.bitmaps.working().map(({ bits, recording }) => ({
    recording,
    persistent: false,
    busy: false,
    granularity: bits.granularity,
    count: bits.dirtyBytes,
  }))
  const named = node.bitmaps.list().map((bitmap) => ({
    name: bitmap.name,
    recording: bitmap.enabled,
    persistent: bitmap.persistent,
    busy: bitmap.busy,
    granularity: bitmap.granularity,
    count: bitmap.bits.dirtyBytes,
    ...(bitmap.inconsistent ? { inconsistent: true } : {}),
  }))
  return [...working, ...named]
}

async function imageInfo(node: BlockNode, flat: boolean): Promise<JsonObject> {
  const driver = node.driver
  const info: ImageInfo = (await driver?.info?.()) ?? {}
  const below = flat ? undefined : linkBelow(node)
  const image: { [member: string]: JsonValue } = {
    'virtual-size': driver?.length() ?? 0,
    filename: nodeFilename(node),
    format: node.definition.name,
  }
  const actualSize = await actualSizeOf(node, info)
  if (actualSize !== undefined) image['actual-size'] = actualSize
  const shape = await shapeOf(node)
  if (shape.clusterSize > 0) image['cluster-size'] = shape.clusterSize
  if (shape.dirty !== undefined) image['dirty-flag'] = shape.dirty
  const { formatSpecific, backingFilename, backingFormat } = info
  const snapshots = info.snapshots ?? (await snapshotsBelow(node))
  if (snapshots !== undefined && snapshots.length > 0) image.snapshots = toJson(snapshots)
  if (formatSpecific !== undefined && node.definition.kind === 'format')
    image['format-specific'] = { type: formatSpecific.type, data: toJson(formatSpecific.data) }
  if (backingFilename !== undefined && node.definition.supportsBacking === true) {
    image['backing-filename'] = backingFilename
    image['full-backing-filename'] = headerBacking(node) ?? backingFilename
    if (backingFormat !== undefined) image['backing-filename-format'] = backingFormat
  }
  if (below !== undefined) image['backing-image'] = await imageInfo(below, flat)
  return image
}

/** A raw layer shows the snapshots of the image that it is a part of. */
async function snapshotsBelow(node: BlockNode): Promise<ImageInfo['snapshots']> {
  const below = node.definition.name === 'raw' ? node.child('file')?.node : undefined
  if (below === undefined) return undefined
  return (await below.driver?.info?.())?.snapshots ?? snapshotsBelow(below)
}

/** These are seen through, but what their child takes on the host is not theirs to tell. */
const UNSIZED = ['blkdebug', 'blkverify']

// A layer without storage of its own takes as much as what it stands on; a quorum as its children.
async function actualSizeOf(node: BlockNode, info: ImageInfo): Promise<number | undefined> {
  if (node.driver === undefined || UNSIZED.includes(node.definition.name)) return undefined
  if (node.definition.kind === 'protocol' && node.children.size === 0) return info.actualSize
  if (info.actualSize !== undefined) return info.actualSize
  let sum: number | undefined
  for (const { role, node: child } of node.children.values()) {
    if (role === 'backing' && node.definition.kind !== 'filter') continue
    const size = await actualSizeOf(child, (await child.driver?.info?.()) ?? {})
    if (size === undefined) return undefined
    sum = (sum ?? 0) + size
    if (node.definition.name !== 'quorum') break
  }
  return sum
}

/** Cluster size and dirty flag: an image's own, or those of the image that a filter stands on. */
async function shapeOf(
  node: BlockNode,
): Promise<{ readonly clusterSize: number; readonly dirty: boolean | undefined }> {
  const child = filteredChild(node) ?? (node.definition.name === 'raw' ? node.child('file') : null)
  if (child) return shapeOf(child.node)
  const info: ImageInfo = (await node.driver?.info?.()) ?? {}
  const told = node.definition.kind === 'protocol' ? 0 : node.driver?.limits.clusterSize
  return { clusterSize: told ?? 0, dirty: info.dirty }
}

function filteredChild(node: BlockNode): BlockChild | undefined {
  if (node.definition.kind !== 'filter') return undefined
  for (const edge of node.children.values()) {
    if (edge.role === 'filtered' || edge.role === 'backing') return edge
  }
  return undefined
}

/** The next link of the chain below a node. */
function linkBelow(node: BlockNode): BlockNode | undefined {
  return (filteredChild(node) ?? backingChild(node))?.node
}

function backingChild(node: BlockNode): BlockChild | undefined {
  for (const edge of node.children.values()) if (edge.role === 'backing') return edge
  return undefined
}

function chainDepth(node: BlockNode): number {
  let depth = 0
  for (let at = linkBelow(node); at !== undefined; at = linkBelow(at)) depth += 1
  return depth
}
