/**
 * Commands about the NBD server and its exports.
 *
 * Invariants:
 * - `nbd-server-add NAME` makes an export whose id is its name.
 * - An export is gone, and `BLOCK_EXPORT_DELETED` sent, before the command that removed it answers.
 */
import type { BlockGraph } from '../../block/graph.ts'
import type { TlsServerOptions } from '../../nbd/tls.ts'
import { assert, BlockError } from '../../util/errors.ts'
import { socketAddressLegacy } from '../blockdev-schema.ts'
import {
  type CommandTable,
  command,
  flagOf,
  listOf,
  optionalNumber,
  optionalText,
  refuse,
  textOf,
} from '../command.ts'
import { isObject, type JsonObject, type JsonValue } from '../json.ts'
import type { ObjectStore } from '../objects.ts'
import { alternate, bool, list, oneOf, type Schema, str, uint32, union } from '../schema.ts'
import type { ExportService, ServerAddress } from '../services.ts'
import { bitmapRef } from './bitmaps.ts'

const mode: Schema = oneOf('safe', 'hard')

/** Members of `block-export-add`, by type of export. */
const exportAdd = union(
  'type',
  {
    type: oneOf('nbd', 'vhost-user-blk', 'fuse', 'vduse-blk'),
    id: str,
    'fixed-iothread?': bool,
    // Named by what the monitor says of anything that is neither.
    'iothread?': alternate('string', str, list(str)),
    'node-name': str,
    'writable?': bool,
    'writethrough?': bool,
  },
  {
    nbd: {
      'name?': str,
      'description?': str,
      'bitmaps?': list(bitmapRef),
      'allocation-depth?': bool,
      'x-exclusive?': bool,
    },
  },
)

/** The commands about exports. */
export function nbdCommands(
  graph: BlockGraph,
  exports: ExportService,
  objects: ObjectStore,
): CommandTable {
  return {
    'nbd-server-start': command(
      {
        addr: socketAddressLegacy,
        'tls-creds?': str,
        'tls-authz?': str,
        'max-connections?': uint32,
      },
      (args) => {
        // Said before anything of the credentials.
        if (exports.running) throw new BlockError('EBUSY', 'NBD server already running')
        const most = optionalNumber(args, 'max-connections')
        return exports.startServer(serverAddress(args), most, serverTls(objects, args))
      },
    ),
    'nbd-server-add': command(
      { 'name?': str, 'description?': str, device: str, 'writable?': bool, 'bitmap?': str },
      (args) => serverAdd(graph, exports, args),
    ),
    'nbd-server-remove': command({ name: str, 'mode?': mode }, (args) =>
      exports.remove(textOf(args, 'name'), modeOf(args)),
    ),
    'nbd-server-stop': command({}, () => exports.stopServer()),
    'block-export-add': command(exportAdd, (args) => exportAddCommand(exports, objects, args)),
    'block-export-del': command({ id: str, 'mode?': mode }, (args) =>
      exports.remove(textOf(args, 'id'), modeOf(args)),
    ),
    'query-block-exports': command({}, () => exports.list().map((info) => ({ ...info }))),
  }
}

function modeOf(args: JsonObject): 'safe' | 'hard' {
  return optionalText(args, 'mode') === 'hard' ? 'hard' : 'safe'
}

function serverTls(objects: ObjectStore, args: JsonObject): TlsServerOptions | undefined {
  const id = optionalText(args, 'tls-creds')
  if (id === undefined) return undefined
  const credentials = objects.credentials(id, 'server')
  const rules = optionalText(args, 'tls-authz')
  if (rules === undefined) return { credentials }
  return { credentials, authorize: (identity) => objects.authorizes(rules, identity) }
}

function serverAddress(args: JsonObject): ServerAddress {
  const { addr } = args
  if (!isObject(addr) || !isObject(addr.data)) refuse("Parameter 'addr.data' is missing")
  const data = addr.data
  switch (textOf(addr, 'type')) {
    case 'unix':
      return { type: 'unix', path: textOf(data, 'path') }
    case 'inet':
      return inetAddress(textOf(data, 'host'), textOf(data, 'port'), optionalNumber(data, 'to'))
    case 'fd':
      return { type: 'fd', fd: inheritedFd(textOf(data, 'str')) }
    default:
      return refuse('socket type vsock is not supported')
  }
}

/** A descriptor that the program was started with; no other way leads one in. */
function inheritedFd(text: string): number {
  if (!/^[0-9]{1,5}$/.test(text)) refuse(`File descriptor named '${text}' has not been found`)
  return Number(text)
}

function inetAddress(host: string, portText: string, to: number | undefined): ServerAddress {
  const port = /^[0-9]+$/.test(portText) ? Number(portText) : 65536
  if (port > 65535) {
    refuse(
      `address resolution failed for ${host}:${portText}: Servname not supported for ai_socktype`,
    )
  }
  return to === undefined ? { type: 'inet', host, port } : { type: 'inet', host, port, to }
}

async function serverAdd(
  graph: BlockGraph,
  exports: ExportService,
  args: JsonObject,
): Promise<void> {
  const device = textOf(args, 'device')
  const name = optionalText(args, 'name') ?? device
  const bitmap = optionalText(args, 'bitmap')
  await exports.add({
    id: name,
    nodeName: device,
    name,
    description: optionalText(args, 'description'),
    writable: flagOf(args, 'writable') && graph.find(device)?.readOnly !== true,
    bitmaps: bitmap === undefined ? [] : [{ node: device, name: bitmap }],
    device,
  })
}

async function exportAddCommand(
  exports: ExportService,
  objects: ObjectStore,
  args: JsonObject,
): Promise<void> {
  const type = textOf(args, 'type')
  if (type !== 'nbd') throw new BlockError('ENOTSUP', `No driver found for export type ${type}`)
  checkIothread(objects, args.iothread)
  const nodeName = textOf(args, 'node-name')
  await exports.add({
    id: textOf(args, 'id'),
    nodeName,
    name: optionalText(args, 'name'),
    description: optionalText(args, 'description'),
    writable: flagOf(args, 'writable'),
    writethrough: flagOf(args, 'writethrough'),
    allocationDepth: flagOf(args, 'allocation-depth'),
    exclusive: flagOf(args, 'x-exclusive'),
    bitmaps: listOf(args, 'bitmaps').map((bitmap) => bitmapName(nodeName, bitmap)),
  })
}

/** Every request runs on the main thread, so the name has only to be right, and there is one. */
function checkIothread(objects: ObjectStore, iothread: JsonValue | undefined): void {
  const named = (name: JsonValue): boolean => objects.has(String(name), 'iothread')
  if (Array.isArray(iothread)) {
    const list = "Invalid parameter type for 'iothread', expected: string"
    const stranger = iothread.find((name) => !named(name))
    if (stranger !== undefined) refuse(`${list}; iothread "${String(stranger)}" not found`)
    if (iothread.length === 0) refuse(`${list}, got an empty list`)
    if (iothread.length === 1) refuse(`${list}; an NBD export takes no list of iothreads`)
    refuse(`${list}; NBD exports do not support multiple iothreads`)
  } else if (iothread !== undefined && !named(iothread)) {
    refuse(`iothread "${String(iothread)}" not found`)
  }
}

function bitmapName(
  node: string,
  bitmap: unknown,
): { readonly node: string; readonly name: string } {
  if (typeof bitmap === 'string') return { node, name: bitmap }
  assert(isObject(bitmap), 'the schema demands a name or an object')
  return { node: textOf(bitmap, 'node'), name: textOf(bitmap, 'name') }
}
