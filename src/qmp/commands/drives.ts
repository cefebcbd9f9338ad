/**
 * `drive-mirror` and `drive-backup`: the jobs that make or open their target by file name.
 *
 * Invariants:
 * - The target belongs to the job alone: it closes when nobody uses it any more, at the latest when
 *   the job ends.
 * - A refused command leaves no node behind; a file that was made for it stays.
 */
import { open as openFile } from 'node:fs/promises'
import type { BlockdevOptions } from '../../block/driver.ts'
import type { BlockGraph } from '../../block/graph.ts'
import type { BlockNode } from '../../block/node.ts'
import { createQcow2 } from '../../drivers/qcow2/create.ts'
import type { Transaction } from '../../job/transaction.ts'
import { parseNbdUri } from '../../nbd/uri.ts'
import { BlockError } from '../../util/errors.ts'
import { type CommandTable, command, optionalText, refuse, textOf } from '../command.ts'
import { isObject, type JsonObject } from '../json.ts'
import { nodeFilename } from '../node-info.ts'
import { bool, int, type Members, oneOf, str, uint32 } from '../schema.ts'
import type { MonitorServices } from '../services.ts'
import { createRawFile } from './create.ts'
import { commandOf, type Deed, type DeedTable, deed, type Step } from './deed.ts'
import { checkUnused } from './snapshots.ts'
import {
  backupMembers,
  backupOnto,
  lifeMembers,
  mirrorOnto,
  onError,
  syncModes,
} from './start-jobs.ts'

const QCOW2_MAGIC = 'QFI\u{fb}'
const modes = oneOf('existing', 'absolute-paths')

const mirrorMembers: Members = {
  'job-id?': str,
  device: str,
  target: str,
  'format?': str,
  'node-name?': str,
  'replaces?': str,
  sync: syncModes,
  'mode?': modes,
  'speed?': int,
  'granularity?': uint32,
  'buf-size?': int,
  'on-source-error?': onError,
  'on-target-error?': onError,
  'unmap?': bool,
  'copy-mode?': oneOf('background', 'write-blocking'),
  ...lifeMembers,
}

/** The commands. */
export function driveCommands(services: MonitorServices): CommandTable {
  return {
    'drive-mirror': command(mirrorMembers, (args) => driveMirror(services, args)),
    'drive-backup': commandOf(driveBackupDeed(services)),
  }
}

/** What can be part of a transaction. */
export function driveDeeds(services: MonitorServices): DeedTable {
  return { 'drive-backup': driveBackupDeed(services) }
}

function driveBackupDeed(services: MonitorServices): Deed {
  return deed(
    { ...backupMembers, 'format?': str, 'mode?': modes },
    (args, group) => driveBackup(services, args, group),
    true,
  )
}

async function driveMirror(services: MonitorServices, args: JsonObject): Promise<void> {
  const { graph } = services
  const source = graph.lookup(textOf(args, 'device'), textOf(args, 'device'))
  if (args.replaces !== undefined && args['node-name'] === undefined) {
    refuse('a node-name must be provided when replacing a named node of the graph')
  }
  if (!source.isRootNode) refuse('Need a root block node')
  await withTarget(graph, source, args, (target) =>
    mirrorOnto(services, args, { source, target, emptyTarget: args.mode !== 'existing' }),
  )
}

async function driveBackup(
  services: MonitorServices,
  args: JsonObject,
  group: Transaction | undefined,
): Promise<Step> {
  const { graph } = services
  const source = graph.lookup(textOf(args, 'device'), textOf(args, 'device'))
  source.blockers.check('backup-source', source.name)
  return withTarget(graph, source, args, (target) =>
    backupOnto(services, args, { source, target, group }),
  )
}

/** Starts a job on a target of its own; from then on only the job holds it. */
async function withTarget<T>(
  graph: BlockGraph,
  source: BlockNode,
  args: JsonObject,
  start: (target: BlockNode) => Promise<T>,
): Promise<T> {
  const target = await openTarget(graph, source, args)
  try {
    return await start(target)
  } finally {
    graph.unref(target)
    await graph.settled()
  }
}

async function openTarget(
  graph: BlockGraph,
  source: BlockNode,
  args: JsonObject,
): Promise<BlockNode> {
  const file = protocolOf(textOf(args, 'target'))
  const existing = args.mode === 'existing'
  const given = optionalText(args, 'format')
  if (given !== undefined && graph.drivers.get(given)?.kind !== 'format') {
    refuse(`Unknown file format '${given}'`)
  }
  const format = given ?? (existing ? await probe(file) : formatOf(source))
  const sync = textOf(args, 'sync')
  const below = sync === 'top' ? backingOf(source) : undefined
  if (!existing && typeof file.filename === 'string') {
    checkUnused(graph, file.filename)
    await make(file.filename, format, source, sync === 'none' ? source : below)
  }
  return graph.open({
    driver: format,
    file,
    ...backingOption(existing, format, sync, below),
    ...nameOf(args),
  })
}

// A target that was made for the job shows what its source shows below the copied layer. One that
// begins with nothing has nothing to show: the job never reads what it did not write.
function backingOption(
  existing: boolean,
  format: string,
  sync: string,
  below: BlockNode | undefined,
): Partial<BlockdevOptions> {
  if (format !== 'qcow2' || (existing && sync !== 'none')) return {}
  return { backing: below?.name ?? null }
}

function nameOf(args: JsonObject): Partial<BlockdevOptions> {
  const name = optionalText(args, 'node-name')
  return name === undefined ? {} : { 'node-name': name }
}

function backingOf(source: BlockNode): BlockNode | undefined {
  const top = withoutFilters(source)
  return top.child('backing')?.node
}

function formatOf(source: BlockNode): string {
  const { kind, name } = withoutFilters(source).definition
  return kind === 'format' ? name : 'raw'
}

function withoutFilters(node: BlockNode): BlockNode {
  let at = node
  while (at.definition.kind === 'filter' && at.chainNext !== undefined) at = at.chainNext
  return at
}

/** The options of what a name stands for: a file, an export, or options as JSON. */
function protocolOf(name: string): BlockdevOptions {
  if (name.startsWith('json:')) return jsonOptions(name.slice('json:'.length))
  if (/^nbd(\+\w+)?:/.test(name)) {
    const { address, exportName } = parseNbdUri(name)
    const server =
      address.type === 'unix'
        ? { type: 'unix', path: address.path }
        : { type: 'inet', host: address.host, port: String(address.port) }
    return { driver: 'nbd', server, export: exportName }
  }
  const protocol = /^([A-Za-z0-9+.-]+):/.exec(name)?.[1]
  if (protocol === undefined || protocol === 'file') {
    return { driver: 'file', filename: name.replace(/^file:/, '') }
  }
  return refuse(`Unknown protocol '${protocol}'`)
}

function jsonOptions(text: string): BlockdevOptions {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    return refuse('Could not parse the JSON options')
  }
  const options = value as JsonObject
  if (!isObject(options)) refuse('Invalid JSON object given')
  return { ...options, driver: textOf(options, 'driver') }
}

async function probe(file: BlockdevOptions): Promise<string> {
  if (typeof file.filename !== 'string') return 'raw'
  try {
    await using handle = await openFile(file.filename, 'r')
    const { buffer } = await handle.read(Buffer.alloc(4), 0, 4, 0)
    return buffer.toString('latin1') === QCOW2_MAGIC ? 'qcow2' : 'raw'
  } catch {
    // Opening it says what is wrong.
    return 'raw'
  }
}

async function make(
  filename: string,
  format: string,
  source: BlockNode,
  backing: BlockNode | undefined,
): Promise<void> {
  const size = Math.ceil(source.length() / 512) * 512
  if (format === 'raw') return createRawFile(filename, size)
  if (format !== 'qcow2') {
    throw new BlockError('ENOTSUP', `Format driver '${format}' does not support image creation`)
  }
  const below =
    backing === undefined
      ? {}
      : { backingFile: nodeFilename(backing), backingFormat: backing.definition.name }
  await createQcow2(filename, { size, ...below })
}
