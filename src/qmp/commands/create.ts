/**
 * `blockdev-create` and `x-blockdev-amend`: make a new image, or change an open one, as a job.
 *
 * Invariants:
 * - What is wrong with the image ends the job; what is wrong with the command starts none.
 * - The job moves no guest's data, so the block jobs do not show it, and it is always dismissed by
 *   hand: its error would be lost otherwise.
 * - A file that a node has open is never written over.
 */
import { open as openFile } from 'node:fs/promises'
import { BlockBackend } from '../../block/backend.ts'
import { type BlockdevRef, PERM } from '../../block/driver.ts'
import type { BlockGraph } from '../../block/graph.ts'
import type { BlockNode } from '../../block/node.ts'
import { createQcow2, encodeNewImage, type Qcow2CreateOptions } from '../../drivers/qcow2/create.ts'
import type { Job } from '../../job/job.ts'
import type { JobRegistry } from '../../job/registry.ts'
import { asBlockError, BlockError, codeWords } from '../../util/errors.ts'
import { blockdevOptions, blockdevRef, driverNames } from '../blockdev-schema.ts'
import {
  type CommandTable,
  command,
  optionalNumber,
  optionalText,
  refuse,
  textOf,
} from '../command.ts'
import { isObject, type JsonObject, type JsonValue } from '../json.ts'
import { any, bool, int, type Members, oneOf, str, union } from '../schema.ts'
import { nodeOptions } from './nodes.ts'
import { checkUnused } from './snapshots.ts'

/** Bytes that are written at a time when a new image is filled. */
const PIECE = 1024 * 1024

const preallocations = oneOf('off', 'metadata', 'falloc', 'full')

const KINDS: Readonly<Record<string, Members>> = {
  file: {
    filename: str,
    size: int,
    'preallocation?': preallocations,
    'nocow?': bool,
    'extent-size-hint?': int,
  },
  qcow2: {
    file: blockdevRef,
    'data-file?': blockdevRef,
    'data-file-raw?': bool,
    'extended-l2?': bool,
    size: int,
    'version?': oneOf('v2', 'v3'),
    'backing-file?': str,
    'backing-fmt?': blockdevOptions.members.driver ?? str,
    'encrypt?': any,
    'cluster-size?': int,
    'preallocation?': preallocations,
    'lazy-refcounts?': bool,
    'refcount-bits?': int,
    'compression-type?': oneOf('zlib', 'zstd'),
  },
}

/** Kinds of images that other programs make; what they take is not looked at before the refusal. */
const FOREIGN = [
  ...['gluster', 'luks', 'nfs', 'parallels', 'qcow', 'qed', 'rbd', 'ssh', 'vdi', 'vhdx', 'vmdk'],
  'vpc',
]

// A driver that makes no images takes no member beside its name.
const creations = Object.fromEntries(
  driverNames
    .filter((name) => !FOREIGN.includes(name))
    .map((name): [string, Members] => [name, KINDS[name] ?? {}]),
)

/** The commands. */
export function createCommands(graph: BlockGraph, jobs: JobRegistry): CommandTable {
  const options = union('driver', { driver: oneOf(...driverNames) }, creations)
  return {
    'blockdev-create': command({ 'job-id': str, options }, (args) => {
      const wanted = args.options
      if (!isObject(wanted) || KINDS[textOf(wanted, 'driver')] === undefined) {
        return refuse('Driver does not support blockdev-create')
      }
      startJob(jobs, 'create', textOf(args, 'job-id'), (job) =>
        wanted.driver === 'file' ? createFile(graph, wanted, job) : createImage(graph, wanted, job),
      )
    }),
    'x-blockdev-amend': command(
      { 'job-id': str, 'node-name': str, options: amendments, 'force?': bool },
      (args) => amend(graph, jobs, args),
    ),
  }
}

/** Of an open image only the keys of its encryption can be amended, and no image here has any. */
const amendments = union(
  'driver',
  { driver: oneOf(...driverNames) },
  { qcow2: { 'encrypt?': any } },
)

function amend(graph: BlockGraph, jobs: JobRegistry, args: JsonObject): void {
  const node = graph.lookup(undefined, textOf(args, 'node-name'))
  const options = isObject(args.options) ? args.options : {}
  if (options.driver !== node.definition.name) {
    refuse("x-blockdev-amend doesn't support changing the block driver")
  }
  if (options.driver !== 'qcow2') refuse('Driver does not support x-blockdev-amend')
  startJob(jobs, 'amend', textOf(args, 'job-id'), async () => {
    if (options.encrypt !== undefined) refuse('Encryption is not supported')
  })
}

function startJob(
  jobs: JobRegistry,
  type: 'create' | 'amend',
  id: string,
  work: (job: Job) => Promise<void>,
): void {
  const run = async (job: Job): Promise<void> => {
    job.total = 1
    try {
      await work(job)
    } finally {
      job.current = 1
    }
  }
  jobs.create({ id, driver: { type, run }, autoDismiss: false }).start()
}

async function createFile(graph: BlockGraph, options: JsonObject, job: Job): Promise<void> {
  const filename = textOf(options, 'filename')
  const preallocation = optionalText(options, 'preallocation') ?? 'off'
  checkUnused(graph, filename)
  if (preallocation === 'metadata') refuse('Unsupported preallocation mode: metadata')
  const size = optionalNumber(options, 'size') ?? 0
  await createRawFile(filename, size, preallocation === 'off' ? undefined : job)
}

/**
 * Makes or empties a file and gives it a length in bytes. With a job its blocks are written, not
 * only promised, and the job's cancel ends that. Errors: `Could not create '…'` and the host's.
 */
export async function createRawFile(filename: string, size: number, job?: Job): Promise<void> {
  const failed = (what: string, thrown: unknown): never => {
    const { code } = asBlockError(thrown)
    throw new BlockError(code, `${what}: ${codeWords(code)}`, { path: filename }, thrown)
  }
  const file = await openFile(filename, 'w').catch((thrown: unknown) =>
    failed(`Could not create '${filename}'`, thrown),
  )
  try {
    if (size < 0) refuse('Could not resize file: Invalid argument')
    if (job === undefined) await file.truncate(size)
    else await fill(job, size, async (at, buf) => void (await file.write(buf, 0, buf.length, at)))
  } catch (thrown) {
    if (thrown instanceof BlockError) throw thrown
    failed('Could not resize file', thrown)
  } finally {
    await file.close()
  }
}

/** Writes zeroes all over; stops when the job is cancelled. */
async function fill(
  job: Job,
  size: number,
  write: (at: number, buf: Uint8Array) => Promise<void>,
): Promise<void> {
  const zeroes = new Uint8Array(Math.min(PIECE, size))
  for (let at = 0; at < size; at += PIECE) {
    await job.pausePoint()
    job.checkCancelled()
    await write(at, zeroes.subarray(0, Math.min(PIECE, size - at)))
  }
}

async function createImage(graph: BlockGraph, options: JsonObject, job: Job): Promise<void> {
  const node = await take(graph, options.file)
  try {
    const image = await imageOptions(graph, options)
    await writeHeader(graph, node, image)
    if ((optionalText(options, 'preallocation') ?? 'off') !== 'off') {
      await allocate(graph, node, image.size, job)
    }
  } finally {
    graph.unref(node)
    await graph.settled()
  }
}

function take(graph: BlockGraph, ref: JsonValue | undefined): Promise<BlockNode> {
  const options: BlockdevRef = isObject(ref) ? nodeOptions(ref) : String(ref)
  return graph.take(options, {})
}

async function imageOptions(graph: BlockGraph, args: JsonObject): Promise<Qcow2CreateOptions> {
  const backingFile = optionalText(args, 'backing-file')
  const format = optionalText(args, 'backing-fmt')
  if (args.encrypt !== undefined) refuse('Encryption is not supported')
  if (format !== undefined && backingFile === undefined) {
    refuse('Backing format cannot be used without backing file')
  }
  const preallocated = (optionalText(args, 'preallocation') ?? 'off') !== 'off'
  if (backingFile !== undefined && preallocated && args['extended-l2'] !== true) {
    refuse('Backing file and preallocation can only be used at the same time if extended_l2 is on')
  }
  const dataFile = await dataFileName(graph, args['data-file'])
  const given = {
    clusterSize: optionalNumber(args, 'cluster-size'),
    refcountBits: optionalNumber(args, 'refcount-bits'),
    backingFile,
    // A guess is as good as none, but an image must say what its backing image is.
    backingFormat: format ?? (backingFile === undefined ? undefined : 'qcow2'),
    dataFile,
  }
  const known = Object.entries(given).filter(([, value]) => value !== undefined)
  return {
    size: optionalNumber(args, 'size') ?? 0,
    version: args.version === 'v2' ? 2 : 3,
    lazyRefcounts: args['lazy-refcounts'] === true,
    extendedL2: args['extended-l2'] === true,
    dataFileRaw: args['data-file-raw'] === true,
    compressionType: args['compression-type'] === 'zstd' ? 'zstd' : 'zlib',
    ...Object.fromEntries(known),
  }
}

async function dataFileName(
  graph: BlockGraph,
  ref: JsonValue | undefined,
): Promise<string | undefined> {
  if (ref === undefined) return undefined
  const node = await take(graph, ref)
  const name = node.driver?.filename?.()
  graph.unref(node)
  await graph.settled()
  return name ?? refuse('The data file has no name that an image could hold')
}

async function writeHeader(
  graph: BlockGraph,
  node: BlockNode,
  image: Qcow2CreateOptions,
): Promise<void> {
  // Options that make no sense are refused while the old content is still there.
  encodeNewImage(image)
  const backend = await BlockBackend.create(graph, node, {
    perm: PERM.WRITE | PERM.RESIZE,
    shared: PERM.ALL,
    description: 'an unnamed block device',
  })
  try {
    const { truncate } = node.needDriver()
    await graph.withDrained(node, () => truncate?.call(node.driver, 0))
    await createQcow2(backend.root, image)
  } finally {
    await backend.close()
  }
}

/** Gives every cluster of a new image its place, by writing it. */
async function allocate(graph: BlockGraph, file: BlockNode, size: number, job: Job): Promise<void> {
  const node = await graph.open({ driver: 'qcow2', file: file.name, backing: null })
  const backend = await BlockBackend.create(graph, node, { perm: PERM.WRITE, shared: PERM.ALL })
  try {
    await fill(job, size, async (at, buf) => {
      await backend.pwrite(at, buf)
    })
    await backend.flush()
  } finally {
    await backend.close()
    graph.unref(node)
    await graph.settled()
  }
}
