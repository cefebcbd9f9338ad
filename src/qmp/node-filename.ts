/**
 * The name under which a node is shown: a path or URL, or its options as `json:{…}`.
 *
 * Invariants:
 * - A path or URL alone opens a node with the same content; whatever else decides the content
 *   makes the name JSON.
 * - Options that only tune a node (caches, delays, locking) never show in its name.
 */
import type { BlockChild } from '../block/child.ts'
import type { BlockNode } from '../block/node.ts'
import { type JsonObject, type JsonValue, stringifyJson, toJson } from './json.ts'

const NULL_OPTIONS = ['size', 'read-zeroes']
const BLKDEBUG_OPTIONS = [
  ...['align', 'max-transfer', 'opt-write-zero', 'max-write-zero', 'opt-discard', 'max-discard'],
  ...['inject-error', 'set-state'],
]

/** The options of each driver that decide what a node shows; children are not among them. */
const TELLING: Readonly<Record<string, readonly string[]>> = {
  memory: ['size', 'cluster-size'],
  'null-co': NULL_OPTIONS,
  'null-aio': NULL_OPTIONS,
  file: ['filename'],
  raw: ['offset', 'size'],
  nbd: ['server', 'export', 'tls-creds', 'tls-hostname'],
  throttle: ['throttle-group'],
  quorum: ['vote-threshold', 'blkverify', 'rewrite-corrupted', 'read-pattern'],
  replication: ['mode', 'top-id'],
  blkdebug: ['config', ...BLKDEBUG_OPTIONS],
}

/** Filters that take the name of what they stand on, whatever that is. */
const NAMELESS = ['copy-before-write', 'snapshot-access', 'mirror_top', 'commit_top']

/** Drivers without storage of their own that can be the whole of a `file` child all the same. */
const PROTOCOL_LIKE = ['file', 'nbd', 'null-co', 'null-aio', 'blkdebug', 'blkverify']

/** Path, URL or `json:{…}` of a node. */
export function nodeFilename(node: BlockNode): string {
  const nameless = node.implicit || NAMELESS.includes(node.definition.name)
  const child = nameless ? firstChild(node) : undefined
  if (child !== undefined) return nodeFilename(child.node)
  return exactFilename(node) ?? `json:${stringifyJson(describe(node))}`
}

/** The image, or what stands for it, that an overlay opens by itself. */
export function headerBacking(node: BlockNode): string | undefined {
  return node.driver?.backingFilename?.()
}

function firstChild(node: BlockNode): BlockChild | undefined {
  return node.child('file') ?? [...node.children.values()][0]
}

function exactFilename(node: BlockNode): string | undefined {
  const { name } = node.definition
  switch (name) {
    case 'file':
    case 'nbd':
    case 'memory':
      return node.driver?.filename?.()
    case 'null-co':
    case 'null-aio':
      return told(node).length === 0 ? `${name}://` : undefined
    case 'blkdebug':
      return blkdebugName(node)
    case 'blkverify': {
      const [raw, test] = [exactChild(node, 'raw'), exactChild(node, 'test')]
      return raw === undefined || test === undefined ? undefined : `blkverify:${raw}:${test}`
    }
    default:
      return plainName(node)
  }
}

function blkdebugName(node: BlockNode): string | undefined {
  const image = exactChild(node, 'image')
  const { config } = node.options
  if (image === undefined || BLKDEBUG_OPTIONS.some((key) => key in node.options)) return undefined
  return `blkdebug:${typeof config === 'string' ? config : ''}:${image}`
}

// One image in one file, opened as its header says: the file's name says it all.
function plainName(node: BlockNode): string | undefined {
  const file = node.child('file')
  if (file === undefined || node.definition.kind === 'filter') return undefined
  if (told(node).length > 0 || ownBacking(node)) return undefined
  if (!PROTOCOL_LIKE.includes(file.node.definition.name)) return undefined
  // A data file that the header names needs no telling.
  const others = [...node.children.keys()].filter(
    (name) => !['file', 'backing'].includes(name) && name in node.options,
  )
  return others.length > 0 ? undefined : exactFilename(file.node)
}

function exactChild(node: BlockNode, name: string): string | undefined {
  const child = node.child(name)
  return child === undefined ? undefined : exactFilename(child.node)
}

/** The backing image is another than the image's own header names, or there is none. */
function ownBacking(node: BlockNode): boolean {
  if (node.definition.supportsBacking !== true) return false
  const backing = node.child('backing')
  const header = headerBacking(node)
  if (backing === undefined || header === undefined) return (backing ?? header) !== undefined
  return nodeFilename(backing.node) !== header
}

function told(node: BlockNode): string[] {
  const telling = TELLING[node.definition.name] ?? []
  return telling.filter((key) => node.options[key] !== undefined)
}

function describe(node: BlockNode): JsonObject {
  const out: { [member: string]: JsonValue } = {}
  const backing = node.child('backing')
  if (ownBacking(node)) out.backing = backing === undefined ? null : describe(backing.node)
  out.driver = node.definition.name
  for (const key of told(node)) flatten(out, key, toJson(node.options[key]))
  const list: JsonValue[] = []
  for (const [name, edge] of node.children) {
    if (name === 'backing' && node.definition.supportsBacking === true) continue
    if (name.startsWith('children.')) list.push(describe(edge.node))
    else out[name] = describe(edge.node)
  }
  if (list.length > 0) out.children = list
  return out
}

// What is nested in an option shows as dotted keys.
function flatten(out: { [member: string]: JsonValue }, key: string, value: JsonValue): void {
  if (typeof value !== 'object' || value === null) out[key] = value
  else for (const [part, inner] of Object.entries(value)) flatten(out, `${key}.${part}`, inner)
}
