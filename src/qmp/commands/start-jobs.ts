/**
 * Commands that start jobs.
 *
 * Invariants:
 * - Everything is checked before the graph changes; a refused command leaves no job behind.
 */
import type { BlockNode } from '../../block/node.ts'
import { type BackupOptions, createBackup } from '../../job/backup.ts'
import { startCommit } from '../../job/commit.ts'
import type { OnError } from '../../job/policy.ts'
import { startMirror } from '../../job/start-mirror.ts'
import { startStream } from '../../job/start-stream.ts'
import { withoutFilters } from '../../job/stream.ts'
import type { Transaction } from '../../job/transaction.ts'
import { BlockError } from '../../util/errors.ts'
import {
  type CommandTable,
  command,
  optionalNumber,
  optionalText,
  refuse,
  textOf,
} from '../command.ts'
import { isObject, type JsonObject } from '../json.ts'
import { bool, int, type Members, oneOf, type Schema, str, struct, uint32 } from '../schema.ts'
import type { MonitorServices } from '../services.ts'
import { chainOf, commitEnds, imageName, streamEnds } from './chain-ends.ts'
import { commandOf, type Deed, type DeedTable, deed, type Step } from './deed.ts'

/** What a job does about an error. */
export const onError: Schema = oneOf('report', 'ignore', 'enospc', 'stop', 'auto')
/** How much is copied. */
export const syncModes: Schema = oneOf('top', 'full', 'none', 'incremental', 'bitmap')
/** The most that a 32-bit number holds. */
const MOST_WORKERS = 2 ** 31 - 1
/** Whether a job waits for its user at its end. */
export const lifeMembers: Members = { 'auto-finalize?': bool, 'auto-dismiss?': bool }

/** The commands that start jobs. */
export function startJobCommands(services: MonitorServices): CommandTable {
  return {
    'block-commit': command(
      {
        'job-id?': str,
        device: str,
        'base-node?': str,
        'base?': str,
        'top-node?': str,
        'top?': str,
        'backing-file?': str,
        'speed?': int,
        'on-error?': onError,
        'filter-node-name?': str,
        ...lifeMembers,
      },
      (args) => blockCommit(services, args),
    ),
    'block-stream': command(
      {
        'job-id?': str,
        device: str,
        'base?': str,
        'base-node?': str,
        'backing-file?': str,
        'bottom?': str,
        'speed?': int,
        'on-error?': onError,
        'filter-node-name?': str,
        ...lifeMembers,
      },
      (args) => blockStream(services, args),
    ),
    'blockdev-backup': commandOf(blockdevBackupDeed(services)),
    'blockdev-mirror': command(
      {
        'job-id?': str,
        device: str,
        target: str,
        'replaces?': str,
        sync: syncModes,
        'speed?': int,
        'granularity?': uint32,
        'buf-size?': int,
        'on-source-error?': onError,
        'on-target-error?': onError,
        'filter-node-name?': str,
        'copy-mode?': oneOf('background', 'write-blocking'),
        ...lifeMembers,
      },
      (args) => blockdevMirror(services, args),
    ),
  }
}

/** The deeds that make jobs. */
export function backupDeeds(services: MonitorServices): DeedTable {
  return { 'blockdev-backup': blockdevBackupDeed(services) }
}

/** What backups by node and by file name take alike. */
export const backupMembers: Members = {
  'job-id?': str,
  device: str,
  sync: syncModes,
  'speed?': int,
  'bitmap?': str,
  'bitmap-mode?': oneOf('on-success', 'never', 'always'),
  'compress?': bool,
  'discard-source?': bool,
  'on-source-error?': onError,
  'on-target-error?': onError,
  ...lifeMembers,
  'filter-node-name?': str,
  'x-perf?': struct({ 'use-copy-range?': bool, 'max-workers?': int, 'max-chunk?': int }),
  target: str,
}

function blockdevBackupDeed(services: MonitorServices): Deed {
  return deed(backupMembers, (args, group) => blockdevBackup(services, args, group), true)
}

async function blockCommit(services: MonitorServices, args: JsonObject): Promise<void> {
  const { graph, jobs, pool } = services
  const device = textOf(args, 'device')
  const root = graph.find(device)
  if (root === undefined) {
    throw new BlockError('DEVICE_NOT_FOUND', `Device '${device}' not found`)
  }
  if (!root.isRootNode) refuse('Need a root block node')
  root.blockers.check('commit-source', root.name)
  const { top, base } = commitEnds(graph, root, args)
  // A filter over the image in use changes nothing of what is committed.
  const active = withoutFilters(top) === withoutFilters(root)
  if (withoutFilters(top) === withoutFilters(base)) {
    refuse(
      active
        ? "Can't mirror node into itself"
        : 'Invalid files for merge: top and base are the same',
    )
  }
  const given = optionalText(args, 'backing-file')
  if (active && given !== undefined) {
    refuse("'backing-file' specified, but 'top' is the active layer")
  }
  for (const node of chainOf(top, base)) node.blockers.check('commit-target', node.name)
  await startCommit(graph, jobs, pool, {
    jobId: jobIdOf(args),
    device: active ? top : root,
    top,
    base,
    backingFile: given ?? imageName(base),
    autoComplete: !active,
    showReady: active,
    ...commonOptions(args),
    onError: policyOf(args, 'on-error'),
  })
}

async function blockStream(services: MonitorServices, args: JsonObject): Promise<void> {
  const { graph, jobs, pool } = services
  const ends = streamEnds(graph, args)
  const backingFile = optionalText(args, 'backing-file')
  for (const node of ends.walked) node.blockers.check('stream', node.name)
  if (ends.bottom === undefined && backingFile !== undefined) {
    refuse('backing file specified, but streaming the entire chain')
  }
  await startStream(graph, jobs, {
    pool,
    jobId: jobIdOf(args),
    top: ends.top,
    bottom: ends.bottom,
    above: ends.bottom === undefined ? undefined : ends.walked.at(-1),
    backingFile,
    nameOf: imageName,
    ...commonOptions(args),
    onError: policyOf(args, 'on-error'),
  })
}

function blockdevBackup(
  services: MonitorServices,
  args: JsonObject,
  group: Transaction | undefined,
): Promise<Step> {
  const { graph } = services
  const [device, name] = [textOf(args, 'device'), textOf(args, 'target')]
  const source = graph.lookup(device, device)
  const target = graph.lookup(name, name)
  return backupOnto(services, args, { source, target, group })
}

/** The disks of a backup, and what it completes with. */
export interface BackupEnds {
  readonly source: BlockNode
  readonly target: BlockNode
  readonly group: Transaction | undefined
}

/** Prepares a backup with the options of a command. Errors: those of the command. */
export async function backupOnto(
  services: MonitorServices,
  args: JsonObject,
  { source, target, group }: BackupEnds,
): Promise<Step> {
  const { graph, jobs, pool } = services
  checkPerformance(args, target)
  const { job } = await createBackup(graph, jobs, pool, {
    jobId: jobIdOf(args),
    transaction: group,
    source,
    target,
    ...backupSync(args, source),
    compress: args.compress === true,
    discardSource: args['discard-source'] === true,
    onSourceError: policyOf(args, 'on-source-error'),
    onTargetError: policyOf(args, 'on-target-error'),
    ...commonOptions(args),
  })
  return {
    commit: () => job.start(),
    undo: async () => {
      await job.cancelSync()
    },
  }
}

// The limits are checked and the copying follows its own: it is bounded by what it may keep in memory.
function checkPerformance(args: JsonObject, target: BlockNode): void {
  const limits = args['x-perf']
  if (!isObject(limits)) return
  const workers = optionalNumber(limits, 'max-workers') ?? 64
  const chunk = optionalNumber(limits, 'max-chunk') ?? 0
  if (workers < 1 || workers > MOST_WORKERS) {
    refuse(`max-workers must be between 1 and ${MOST_WORKERS}`)
  }
  if (chunk < 0) refuse('max-chunk must be zero (which means no limit) or positive')
  const cluster = Math.max(64 * 1024, target.driver?.limits.clusterSize ?? 0)
  if (chunk !== 0 && chunk < cluster) {
    refuse(`Required max-chunk (${chunk}) is less than backup cluster size (${cluster})`)
  }
}

type BackupSync = Pick<BackupOptions, 'sync' | 'bitmap'>

/** How much is copied, by which bitmap. Errors: EINVAL, and those of the bitmap. */
function backupSync(args: JsonObject, source: BlockNode): BackupSync {
  const sync = textOf(args, 'sync')
  const name = optionalText(args, 'bitmap')
  const given = optionalText(args, 'bitmap-mode')
  const byBitmap = sync === 'bitmap' || sync === 'incremental'
  if (name === undefined) {
    if (byBitmap) refuse(`must provide a valid bitmap name for '${sync}' sync mode`)
    if (given !== undefined) refuse('Cannot specify bitmap sync mode without a bitmap')
    return { sync: wholeSync(sync) }
  }
  const bitmap = source.bitmaps.get(name)
  if (bitmap === undefined) refuse(`Bitmap '${name}' could not be found`)
  const mode = given ?? (sync === 'incremental' ? 'on-success' : undefined)
  if (mode === undefined) refuse('Bitmap sync mode must be given when providing a bitmap')
  if (sync === 'incremental' && mode !== 'on-success') {
    refuse("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'")
  }
  if (sync === 'none') refuse("sync mode 'none' does not produce meaningful bitmap outputs")
  if (mode === 'never' && !byBitmap) {
    refuse(
      `Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '${sync}'`,
    )
  }
  bitmap.checkChangeable()
  return {
    sync: byBitmap ? 'bitmap' : wholeSync(sync),
    bitmap: { bitmap, mode: mode === 'never' || mode === 'always' ? mode : 'on-success' },
  }
}

function wholeSync(sync: string): 'full' | 'top' | 'none' {
  return sync === 'top' || sync === 'none' ? sync : 'full'
}

async function blockdevMirror(services: MonitorServices, args: JsonObject): Promise<void> {
  const { graph } = services
  const [device, target] = [textOf(args, 'device'), textOf(args, 'target')]
  const source = graph.lookup(device, device)
  await mirrorOnto(services, args, { source, target: graph.lookup(target, target) })
}

/** The disks of a mirror. */
export interface MirrorEnds {
  readonly source: BlockNode
  readonly target: BlockNode
  /** The target was just made, and shows nothing. */
  readonly emptyTarget?: boolean
}

/** Starts a mirror with the options of a command. Errors: those of the command. */
export async function mirrorOnto(
  services: MonitorServices,
  args: JsonObject,
  { source, target, emptyTarget }: MirrorEnds,
): Promise<void> {
  const { graph, jobs, pool } = services
  const sync = textOf(args, 'sync')
  if (sync === 'bitmap' || sync === 'incremental') refuse(`Sync mode '${sync}' not supported`)
  if ((optionalNumber(args, 'buf-size') ?? 0) < 0) refuse("Invalid parameter 'buf-size'")
  await startMirror(graph, jobs, pool, {
    jobId: jobIdOf(args),
    source,
    target,
    emptyTarget,
    sync: sync === 'top' || sync === 'none' ? sync : 'full',
    replaces: optionalText(args, 'replaces'),
    granularity: optionalNumber(args, 'granularity') || undefined,
    copyMode: args['copy-mode'] === 'write-blocking' ? 'write-blocking' : 'background',
    onSourceError: policyOf(args, 'on-source-error'),
    onTargetError: policyOf(args, 'on-target-error'),
    ...commonOptions(args),
  })
}

// Drives with names of their own could lend them to their jobs; nodes cannot.
function jobIdOf(args: JsonObject): string {
  return optionalText(args, 'job-id') ?? ''
}

function commonOptions(args: JsonObject): {
  readonly speed: number | undefined
  readonly filterNodeName: string | undefined
  readonly autoFinalize: boolean
  readonly autoDismiss: boolean
} {
  return {
    speed: optionalNumber(args, 'speed'),
    filterNodeName: optionalText(args, 'filter-node-name'),
    autoFinalize: args['auto-finalize'] !== false,
    autoDismiss: args['auto-dismiss'] !== false,
  }
}

function policyOf(args: JsonObject, name: string): OnError {
  const value = optionalText(args, name)
  switch (value) {
    case 'ignore':
    case 'enospc':
    case 'stop':
    case 'auto':
      return value
    default:
      return 'report'
  }
}
