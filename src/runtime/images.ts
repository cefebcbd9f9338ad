/**
 * Images for programs: opened by name, described, checked, made, without a runtime of one's own.
 *
 * Invariants:
 * - An image is named by the path of a file, an NBD URI, or `json:` and the options of a node; the
 *   format of the first two is looked up in their first bytes unless it is given.
 * - Nothing is written by what only looks, and nothing stays open after a function returned.
 */
import { existsSync, unlinkSync } from 'node:fs'
import { open as openFile } from 'node:fs/promises'
import { BlockBackend } from '../block/backend.ts'
import { type BlockdevOptions, PERM } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { type CheckResult, checkQcow2 } from '../drivers/qcow2/check.ts'
import type { Qcow2CreateOptions } from '../drivers/qcow2/create.ts'
import { repairQcow2 } from '../drivers/qcow2/driver.ts'
import { besideImage } from '../drivers/qcow2/options.ts'
import { parseNbdUri } from '../nbd/uri.ts'
import { blockdevOptions } from '../qmp/blockdev-schema.ts'
import { createCommands, createRawFile } from '../qmp/commands/create.ts'
import { nodeOptions } from '../qmp/commands/nodes.ts'
import { type JsonObject, toJson } from '../qmp/json.ts'
import { parseOption } from '../qmp/key-value.ts'
import { headerBacking } from '../qmp/node-filename.ts'
import { nodeInfo } from '../qmp/node-info.ts'
import { validate } from '../qmp/schema.ts'
import { asBlockError, assert, BlockError, codeWords } from '../util/errors.ts'
import { Runtime } from './runtime.ts'

/** A format that can be read and made. */
export type ImageFormat = 'raw' | 'qcow2'

/** How an image is opened. */
export interface ImageOptions {
  /** What is in it; default: found out from its first bytes. */
  readonly format?: ImageFormat
}

/** What an image says of itself. */
export interface ImageDescription {
  /** Path or URI by which it was opened. */
  readonly filename: string
  /** Its format. */
  readonly format: ImageFormat
  /** Length of the disk in bytes. */
  readonly virtualSize: number
  /** All of it, in the names and the nesting that monitors show. */
  readonly members: JsonObject
  /** Name of the backing image, seen from where this program runs; absent without one. */
  readonly backingFile?: string
}

/** What a check found, and what a repair did about it. */
export interface ImageCheck extends CheckResult {
  /** Corruptions that were repaired. */
  readonly corruptionsFixed: number
  /** Leaked clusters that were given back. */
  readonly leaksFixed: number
  /** What was found before the repair; the other members tell how it is now. */
  readonly before: CheckResult
}

/** What `checkImage` takes. */
export interface ImageCheckOptions extends ImageOptions {
  /** `leaks`: repair when nothing but leaks is found. `all`: repair whatever is found. */
  readonly repair?: 'leaks' | 'all'
}

/** What `createImage` takes beside the size. */
export interface ImageCreateOptions extends Partial<Qcow2CreateOptions> {
  /** Format of the new image. */
  readonly format: ImageFormat
  /** What gets its place at once; default `off`. A raw image knows `off`, `falloc` and `full`. */
  readonly preallocation?: 'off' | 'metadata' | 'falloc' | 'full'
  /** The backing image may be missing or broken; needs a size. Default false. */
  readonly uncheckedBacking?: boolean
}

const MAGIC = Buffer.from([0x51, 0x46, 0x49, 0xfb])

/** Whether a name is the address of an NBD export and not a path. */
export function isNbdUri(image: string): boolean {
  return /^nbd(\+unix|\+tcp)?:\/\//.test(image) || /^nbd:(unix:|[^/]+:\d+)/.test(image)
}

/** Options of the node below the format. Errors: EINVAL for a URI that cannot be read. */
function protocolOptions(image: string): BlockdevOptions {
  if (!isNbdUri(image)) return { driver: 'file', filename: image }
  const { address, exportName } = parseNbdUri(image)
  const server =
    address.type === 'unix'
      ? address
      : { type: 'inet', host: address.host, port: `${address.port}` }
  return { driver: 'nbd', server, ...(exportName === '' ? {} : { export: exportName }) }
}

/** The options that a name of the form `json:{…}` is. Errors: EINVAL for options that make no sense. */
function wholeNode(image: string): BlockdevOptions | undefined {
  if (!image.startsWith('json:')) return undefined
  const options = parseOption(blockdevOptions, image.slice('json:'.length), 'driver')
  return nodeOptions(validate(blockdevOptions, options))
}

async function probe(runtime: Runtime, image: string): Promise<ImageFormat> {
  const start = await withProtocol(runtime, image, async (backend) => {
    const bytes = Buffer.alloc(MAGIC.length)
    if (backend.length() >= bytes.length) await backend.pread(0, bytes)
    return bytes
  })
  return start.equals(MAGIC) ? 'qcow2' : 'raw'
}

/** Runs `body` over the plain bytes of an image, which only reads. */
async function withProtocol<T>(
  runtime: Runtime,
  image: string,
  body: (backend: BlockBackend) => Promise<T>,
): Promise<T> {
  const { graph } = runtime
  const node = await graph.open({ ...protocolOptions(image), 'read-only': true })
  const backend = await BlockBackend.create(graph, node, {
    perm: PERM.CONSISTENT_READ,
    shared: PERM.ALL,
  })
  try {
    return await body(backend)
  } finally {
    await backend.close()
    graph.unref(node)
    await graph.settled()
  }
}

/** Opens an image in a runtime; it is closed with it. Errors: those of the driver. */
export async function openImage(
  runtime: Runtime,
  image: string,
  options: ImageOptions & { readonly writable?: boolean; readonly backing?: null } = {},
): Promise<BlockNode> {
  const common = {
    'node-name': `image${runtime.graph.nodes().length}`,
    'read-only': options.writable !== true,
  }
  const whole = wholeNode(image)
  if (whole !== undefined) return runtime.graph.add({ ...whole, ...common })
  const format = options.format ?? (await probe(runtime, image))
  return runtime.graph.add({
    driver: format,
    ...common,
    file: { ...protocolOptions(image), 'read-only': options.writable !== true },
    ...(options.backing === null && format === 'qcow2' ? { backing: null } : {}),
  })
}

/** Describes an image; the images below it are not opened. Errors: those of opening it. */
export async function inspectImage(
  image: string,
  options: ImageOptions = {},
): Promise<ImageDescription> {
  await using runtime = await Runtime.create()
  const node = await openImage(runtime, image, { ...options, backing: null })
  const { image: shown } = await nodeInfo(node, true)
  const backingFile = headerBacking(node)
  return {
    filename: image,
    format: node.definition.name === 'qcow2' ? 'qcow2' : 'raw',
    virtualSize: node.length(),
    members: { ...(toJson(shown) as JsonObject), filename: image },
    ...(backingFile === undefined ? {} : { backingFile }),
  }
}

/**
 * Checks an image that nobody writes meanwhile, and repairs it if asked to. Errors: ENOTSUP for a
 * format that has nothing to check, EIO when pointers themselves are damaged.
 */
export async function checkImage(
  image: string,
  options: ImageCheckOptions = {},
): Promise<ImageCheck> {
  await using runtime = await Runtime.create()
  const whole = image.startsWith('json:')
  if (whole || (options.format ?? (await probe(runtime, image))) !== 'qcow2') {
    throw new BlockError('ENOTSUP', 'This image format does not support checks', { path: image })
  }
  const check = (): Promise<CheckResult> =>
    withProtocol(runtime, image, (backend) => checkQcow2(backend.root))
  const before = await check()
  const { corruptions, leaks } = before
  const wanted = options.repair === 'all' || (options.repair === 'leaks' && corruptions === 0)
  if (!wanted || corruptions + leaks === 0)
    return { ...before, corruptionsFixed: 0, leaksFixed: 0, before }
  const node = await openImage(runtime, image, { format: 'qcow2', writable: true, backing: null })
  await repairQcow2(node)
  await runtime.removeNode(node.name)
  const after = await check()
  return {
    ...after,
    corruptionsFixed: Math.max(0, corruptions - after.corruptions),
    leaksFixed: Math.max(0, leaks - after.leaks),
    before,
  }
}

/**
 * Makes an image in a file, which is made or emptied; nothing of a new file stays when that fails.
 * Without a size an overlay is as long as its backing image. Errors: EINVAL for options, those of
 * the host.
 */
export async function createImage(
  file: string,
  options: ImageCreateOptions,
): Promise<{ readonly size: number }> {
  await using runtime = await Runtime.create()
  const { format, preallocation = 'off', uncheckedBacking = false, ...rest } = options
  if (rest.backingFile !== undefined && rest.backingFormat === undefined) {
    throw new BlockError('EINVAL', 'Backing file specified without backing format', { path: file })
  }
  const looks = rest.backingFile !== undefined && !(uncheckedBacking && rest.size !== undefined)
  const below = looks ? await backingSize(runtime, file, rest) : undefined
  const wanted = rest.size ?? below
  if (wanted === undefined) {
    throw new BlockError('EINVAL', 'Image creation needs a size parameter', { path: file })
  }
  const size = Math.ceil(wanted / 512) * 512
  const isNew = !existsSync(file)
  try {
    if (format === 'raw') await makeRaw(runtime, file, size, preallocation)
    else {
      if (isNew) await createRawFile(file, 0)
      else await (await openFile(file, 'r+').catch((error: unknown) => cannot(file, error))).close()
      const { version, ...named } = rest
      const members = Object.entries(named).map(([key, value]) => [kebab(key), value])
      await runCreate(runtime, {
        ...(toJson(Object.fromEntries(members)) as JsonObject),
        ...(version === undefined ? {} : { version: `v${version}` }),
        ...(await dataFile(rest.dataFile)),
        driver: 'qcow2',
        file: { driver: 'file', filename: file },
        size,
        preallocation,
      })
    }
  } catch (error) {
    if (isNew && existsSync(file)) unlinkSync(file)
    throw error
  }
  return { size }
}

function cannot(file: string, thrown: unknown): never {
  const { code } = asBlockError(thrown)
  throw new BlockError(
    code,
    `Could not create '${file}': ${codeWords(code)}`,
    { path: file },
    thrown,
  )
}

async function dataFile(name: string | undefined): Promise<JsonObject> {
  if (name === undefined) return {}
  if (!existsSync(name)) await createRawFile(name, 0)
  return { 'data-file': { driver: 'file', filename: name } }
}

async function makeRaw(
  runtime: Runtime,
  file: string,
  size: number,
  preallocation: string,
): Promise<void> {
  await runCreate(runtime, { driver: 'file', filename: file, size, preallocation })
}

/** `clusterSize` as monitors write it, `cluster-size`; the two names that differ are spelled out. */
function kebab(name: string): string {
  if (name === 'backingFormat') return 'backing-fmt'
  if (name === 'extendedL2') return 'extended-l2'
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
}

async function backingSize(
  runtime: Runtime,
  file: string,
  options: Partial<Qcow2CreateOptions>,
): Promise<number> {
  const { backingFile = '', backingFormat } = options
  const place = isNbdUri(backingFile) ? backingFile : besideImage(file, backingFile)
  const known: ImageFormat | undefined =
    backingFormat === 'qcow2' || backingFormat === 'raw' ? backingFormat : undefined
  const format = known === undefined ? {} : { format: known }
  const node = await openImage(runtime, place, { ...format, backing: null })
  return node.length()
}

async function runCreate(runtime: Runtime, options: JsonObject): Promise<void> {
  const create = createCommands(runtime.graph, runtime.jobs)['blockdev-create']
  assert(create !== undefined, 'there is a command that makes images')
  const nobody = { negotiate: () => undefined, finish: () => undefined }
  const id = 'create'
  await create.run(validate(create.schema, { 'job-id': id, options }), nobody)
  const job = runtime.jobs.find(id)
  await job?.done
  if (job?.error !== undefined) throw job.error
}
