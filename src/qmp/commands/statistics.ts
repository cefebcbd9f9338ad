/**
 * `query-blockstats`, `block-latency-histogram-set` and `block-set-write-threshold`.
 *
 * Invariants:
 * - Without `query-nodes` the users of disks are listed: the exports, each by its id, with what its
 *   clients did. With it every node is listed, of which only the furthest write is known.
 * - A device of which a request failed or was refused has that counted, and its time.
 */
import type {
  BackendStatistics,
  LatencyHistogram,
  Operation,
  OperationStatistics,
} from '../../block/accounting.ts'
import type { BlockBackend } from '../../block/backend.ts'
import type { BlockGraph } from '../../block/graph.ts'
import type { BlockNode } from '../../block/node.ts'
import { BlockError } from '../../util/errors.ts'
import {
  type CommandTable,
  command,
  flagOf,
  listOf,
  optionalNumber,
  refuse,
  textOf,
} from '../command.ts'
import type { JsonObject, JsonValue } from '../json.ts'
import type { ObjectStore } from '../objects.ts'
import { bool, list, type Members, size, str } from '../schema.ts'
import type { ExportService } from '../services.ts'
import { setWriteThreshold } from '../write-threshold.ts'

const histogram: Members = {
  id: str,
  'boundaries?': list(size),
  'boundaries-read?': list(size),
  'boundaries-write?': list(size),
  'boundaries-flush?': list(size),
}
/** Kinds that can have a histogram, in the order in which they get it. */
const TIMED = ['read', 'write', 'flush'] as const
/** Protocols that tell what became of their discards. */
const TELLS_DISCARDS = ['file']

/** The commands. */
export function statisticsCommands(
  graph: BlockGraph,
  exports: ExportService,
  objects: ObjectStore,
): CommandTable {
  return {
    'query-blockstats': command({ 'query-nodes?': bool }, (args) =>
      flagOf(args, 'query-nodes')
        ? graph.nodes().reverse().map(nodeStatistics)
        : [...exports.backends()].map(([id, backend]) => deviceStatistics(id, backend)),
    ),
    'block-latency-histogram-set': command(histogram, (args) => {
      const id = textOf(args, 'id')
      const device = exports.backends().get(id) ?? noDevice(objects, id)
      setHistograms(device, id, args)
    }),
    'block-set-write-threshold': command({ 'node-name': str, 'write-threshold': size }, (args) => {
      const name = textOf(args, 'node-name')
      const node = graph.find(name)
      if (node === undefined) {
        throw new BlockError('EINVAL', `Device '${name}' not found`, { node: name })
      }
      setWriteThreshold(graph, node, optionalNumber(args, 'write-threshold') ?? 0)
    }),
  }
}

function noDevice(objects: ObjectStore, id: string): never {
  const isObject = id === '' || (id.startsWith('/') && objects.exists(id))
  if (isObject) refuse(`${id} is not a hotpluggable device`)
  throw new BlockError('DEVICE_NOT_FOUND', `Device '${id}' not found`)
}

// What comes before the one that is refused stays set. Without boundaries nothing is counted further.
function setHistograms(device: BlockBackend, id: string, args: JsonObject): void {
  const named = TIMED.some((kind) => args[`boundaries-${kind}`] !== undefined)
  if (args.boundaries === undefined && !named) {
    for (const kind of TIMED) device.setLatencyHistogram(kind, undefined)
    return
  }
  for (const kind of TIMED) {
    const own = `boundaries-${kind}`
    const name = args[own] === undefined ? 'boundaries' : own
    if (args[name] === undefined) continue
    try {
      device.setLatencyHistogram(kind, listOf(args, name).map(Number))
    } catch (error) {
      if (!(error instanceof BlockError)) throw error
      refuse(`Device '${id}' set ${kind} boundaries fail`)
    }
  }
}

function deviceStatistics(id: string, backend: BlockBackend): JsonObject {
  const { node } = backend
  return {
    device: id,
    ...chainStatistics(node),
    stats: { ...countersOf(backend.statistics()), wr_highest_offset: visible(node).writtenEnd },
  }
}

/** A node as the users of a device see it: its file as `parent`, and what it stands on. */
function chainStatistics(top: BlockNode): JsonObject {
  const node = visible(top)
  const below = storageOf(node)
  const backing = node.chainNext
  return {
    ...ownStatistics(node),
    ...(below === undefined ? {} : { parent: chainStatistics(below) }),
    ...(backing === undefined ? {} : { backing: chainStatistics(backing) }),
  }
}

function nodeStatistics(node: BlockNode): JsonObject {
  const below = storageOf(node)
  return {
    ...ownStatistics(node),
    ...(below === undefined ? {} : { parent: nodeStatistics(below) }),
  }
}

function ownStatistics(node: BlockNode): JsonObject {
  const driver = node.definition.name
  return {
    'node-name': node.name,
    stats: { ...NO_COUNTERS, wr_highest_offset: node.writtenEnd },
    ...(TELLS_DISCARDS.includes(driver) ? { 'driver-specific': discards(driver) } : {}),
  }
}

// The host offers no way to give up a range of a file, so none was tried.
function discards(driver: string): JsonObject {
  return { driver, 'discard-nb-ok': 0, 'discard-nb-failed': 0, 'discard-bytes-ok': 0 }
}

/** The node below what a job put in silently. */
function visible(node: BlockNode): BlockNode {
  let at = node
  while (at.implicit && at.chainNext !== undefined) at = at.chainNext
  return at
}

/** The child that holds the data: an external data file, the file, what a filter stands on. */
function storageOf(node: BlockNode): BlockNode | undefined {
  const external = node.child('data-file')
  if (external !== undefined) return external.node
  for (const edge of node.children.values()) {
    if (edge.role === 'file' || edge.role === 'filtered') return edge.node
  }
  return node.child('file')?.node
}

const SHORT: Readonly<Record<Operation, string>> = {
  read: 'rd',
  write: 'wr',
  flush: 'flush',
  unmap: 'unmap',
}

function countersOf({ idleTimeNs, ...kinds }: BackendStatistics): JsonObject {
  return {
    ...ofKind(SHORT.read, kinds.read),
    ...ofKind(SHORT.write, kinds.write),
    ...ofKind(SHORT.flush, kinds.flush),
    ...ofKind(SHORT.unmap, kinds.unmap),
    ...(idleTimeNs === undefined ? {} : { idle_time_ns: idleTimeNs }),
    account_invalid: true,
    account_failed: true,
    timed_stats: [],
  }
}

function ofKind(name: string, kind: OperationStatistics): JsonObject {
  const { histogram: bins } = kind
  return {
    [`${name}_operations`]: kind.operations,
    [`${name}_total_time_ns`]: kind.totalTimeNs,
    [`failed_${name}_operations`]: kind.failed,
    [`invalid_${name}_operations`]: kind.invalid,
    ...(name === SHORT.flush ? {} : { [`${name}_bytes`]: kind.bytes, [`${name}_merged`]: 0 }),
    ...(bins === undefined ? {} : { [`${name}_latency_histogram`]: histogramOf(bins) }),
  }
}

function histogramOf({ boundaries, bins }: LatencyHistogram): JsonValue {
  return { boundaries: [...boundaries], bins: [...bins] }
}

const NOTHING: OperationStatistics = {
  operations: 0,
  bytes: 0,
  failed: 0,
  invalid: 0,
  totalTimeNs: 0,
}

const NO_COUNTERS: JsonObject = {
  ...countersOf({ read: NOTHING, write: NOTHING, flush: NOTHING, unmap: NOTHING }),
  account_invalid: false,
  account_failed: false,
}
