/**
 * Nodes as `query-named-block-nodes` shows them.
 *
 * Invariants:
 * - Members have the protocol's names; sizes are bytes.
 * - A filename is a path or URL where that alone would open the same node, else `json:{…}`.
 */
import type { BlockChild } from '../block/child.ts'
import type { ImageInfo } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { type JsonObject, type JsonValue, stringifyJson, toJson } from './json.ts'

/** One element of the answer; without `flat` the image shows its backing images inside. */
export async function nodeInfo(node: BlockNode, flat: boolean): Promise<JsonObject> {
  const filename = nodeFilename(node)
  const backing = backingOf(node)
  const { cache } = node.options
  const bitmaps = bitmapInfos(node)
  return {
    iops_rd: 0,
    detect_zeroes: node.options['detect-zeroes'] ?? 'off',
    image: await imageInfo(node, flat),
    iops_wr: 0,
    ro: node.readOnly,
    'node-name': node.name,
    backing_file_depth: flat ? 0 : backingDepth(node),
    drv: node.definition.name,
    iops: 0,
    bps_wr: 0,
    write_threshold: 0,
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

/** The dirty bitmaps of a node, newest first. */
function bitmapInfos(node: BlockNode): JsonValue[] {
  return node.bitmaps.list().map((bitmap) => ({
    name: bitmap.name,
    recording: bitmap.enabled,
    persistent: bitmap.persistent,
    busy: bitmap.busy,
    granularity: bitmap.granularity,
    count: bitmap.bits.dirtyBytes,
    ...(bitmap.inconsistent ? { inconsistent: true } : {}),
  }))
}

async function imageInfo(node: BlockNode, flat: boolean): Promise<JsonObject> {
  const driver = node.driver
  const info: ImageInfo = (await driver?.info?.()) ?? {}
  const backing = backingOf(node)
  const image: { [member: string]: JsonValue } = {
    'virtual-size': driver?.length() ?? 0,
    filename: nodeFilename(node),
    format: node.definition.name,
  }
  const actualSize = info.actualSize ?? (await childSize(node))
  if (actualSize !== undefined) image['actual-size'] = actualSize
  const clusterSize = driver?.limits.clusterSize ?? 0
  if (clusterSize > 0) image['cluster-size'] = clusterSize
  if (info.dirty !== undefined) image['dirty-flag'] = info.dirty
  const { formatSpecific, backingFilename, backingFormat } = info
  if (formatSpecific !== undefined) {
    image['format-specific'] = { type: formatSpecific.type, data: toJson(formatSpecific.data) }
  }
  const shown = backingFilename ?? (backing === undefined ? undefined : nodeFilename(backing))
  if (shown !== undefined) image['backing-filename'] = shown
  if (backing !== undefined) image['full-backing-filename'] = nodeFilename(backing)
  const format = backingFormat ?? backing?.definition.name
  if (shown !== undefined && format !== undefined) image['backing-filename-format'] = format
  if (!flat && backing !== undefined) image['backing-image'] = await imageInfo(backing, flat)
  return image
}

// A layer without storage of its own takes as much as the one it stands on.
async function childSize(node: BlockNode): Promise<number | undefined> {
  const child = primaryChild(node)
  if (child === undefined) return undefined
  return (await child.node.driver?.info?.())?.actualSize ?? childSize(child.node)
}

function primaryChild(node: BlockNode): BlockChild | undefined {
  for (const edge of node.children.values()) {
    if (edge.role === 'file' || edge.role === 'filtered') return edge
  }
  return undefined
}

/** The backing image of a node, seen through filters. */
function backingOf(node: BlockNode): BlockNode | undefined {
  for (let at: BlockNode | undefined = node; at !== undefined; at = at.chainNext) {
    for (const edge of at.children.values()) if (edge.role === 'backing') return edge.node
    if (at.definition.kind !== 'filter') return undefined
  }
  return undefined
}

function backingDepth(node: BlockNode): number {
  let depth = 0
  for (let at = backingOf(node); at !== undefined; at = backingOf(at)) depth += 1
  return depth
}

/** Options that do not decide what a node shows, so a plain path stands for the node all the same. */
const GENERIC = [
  ...['driver', 'node-name', 'read-only', 'auto-read-only', 'force-share', 'discard'],
  ...['detect-zeroes', 'cache'],
]

/** Path, URL or `json:{…}` of a node. */
export function nodeFilename(node: BlockNode): string {
  const own = node.driver?.filename?.()
  if (own !== undefined) return own
  const child = primaryChild(node)
  if (child !== undefined && node.children.size === impliedChildren(node)) {
    const below = nodeFilename(child.node)
    const extra = Object.keys(node.options).filter(
      (key) => !GENERIC.includes(key) && key !== child.name,
    )
    if (!below.startsWith('json:') && extra.length === 0) return below
  }
  return `json:${stringifyJson(describe(node))}`
}

// A backing image that the image's own header names is opened without being asked for.
function impliedChildren(node: BlockNode): number {
  return node.child('backing') !== undefined && !('backing' in node.options) ? 2 : 1
}

function describe(node: BlockNode): JsonObject {
  const out: { [member: string]: JsonValue } = { driver: node.definition.name }
  for (const [key, value] of Object.entries(node.options)) {
    if (GENERIC.includes(key) || node.children.has(key) || isChildList(node, key)) continue
    out[key] = toJson(value)
  }
  for (const [name, edge] of node.children) out[name] = describe(edge.node)
  return out
}

// `children` is shown expanded, as `children.0` and so on.
function isChildList(node: BlockNode, key: string): boolean {
  for (const name of node.children.keys()) if (name.startsWith(`${key}.`)) return true
  return false
}
