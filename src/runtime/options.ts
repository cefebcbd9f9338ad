/**
 * Options of a storage daemon's command line, each turned into the monitor command that does it.
 *
 * Invariants:
 * - An option does what its command does, with the same refusals; only the spelling differs.
 * - Nothing of an option that failed stays.
 */

import { parseNbdUri } from '../nbd/uri.ts'
import { blockdevOptions, socketAddress } from '../qmp/blockdev-schema.ts'
import { type Command, type CommandTable, refuse } from '../qmp/command.ts'
import { isObject, type JsonObject, type JsonValue } from '../qmp/json.ts'
import { coerce, modernOptions, parseKeyValue, parseOption } from '../qmp/key-value.ts'
import { bool, oneOf, str, struct, uint32, validate } from '../qmp/schema.ts'
import { assert } from '../util/errors.ts'
import type { Chardevs } from './chardevs.ts'

/** The options, by the name that stands behind the dashes. */
export type StartupOption =
  | 'blockdev'
  | 'chardev'
  | 'drive'
  | 'export'
  | 'monitor'
  | 'nbd-server'
  | 'object'

/** Does what one option says. Errors: those of its command; EINVAL for text that cannot be read. */
export type OptionHandler = (text: string) => Promise<void>

const nbdServer = struct({
  addr: socketAddress,
  'tls-creds?': str,
  'tls-authz?': str,
  'max-connections?': uint32,
})

const monitorOptions = struct({
  chardev: str,
  'id?': str,
  'mode?': oneOf('readline', 'control'),
  'pretty?': bool,
})

// Nobody is connected while the command line is worked off.
const NOBODY = { negotiate: () => undefined, finish: () => undefined }

/** What each option does, over the commands of a monitor and the devices of the command line. */
export function optionHandlers(
  commands: CommandTable,
  chardevs: Chardevs,
): Readonly<Record<StartupOption, OptionHandler>> {
  const plain = (name: string, implied: string): OptionHandler => {
    const command = commandOf(commands, name)
    return async (text) => run(command, parseOption(command.schema, text, implied))
  }
  const add = commandOf(commands, 'blockdev-add')
  const object = commandOf(commands, 'object-add')
  const serve = commandOf(commands, 'nbd-server-start')
  return {
    blockdev: plain('blockdev-add', 'driver'),
    export: plain('block-export-add', 'type'),
    drive: async (text) => run(add, driveOptions(text)),
    object: async (text) => run(object, objectOptions(object, text)),
    'nbd-server': async (text) => {
      const args = validate(nbdServer, parseOption(nbdServer, text, ''))
      const { type, ...data } = isObject(args.addr) ? args.addr : {}
      await run(serve, { ...args, addr: { type: type ?? null, data } })
    },
    chardev: async (text) => chardevs.add(chardevOptions(text)),
    monitor: async (text) => {
      const args = validate(monitorOptions, parseOption(monitorOptions, text, 'chardev'))
      if (args.mode === 'readline') refuse('Only QMP is supported')
      chardevs.attach(String(args.chardev), args.pretty === true)
    },
  }
}

function commandOf(commands: CommandTable, name: string): Command {
  const command = commands[name]
  assert(command !== undefined, `there is a command ${name}`)
  return command
}

async function run(command: Command, args: JsonObject): Promise<void> {
  await command.run(validate(command.schema, args), NOBODY)
}

// The first word of a device is its kind; words like `server` and `nowait` mean on.
function chardevOptions(text: string): JsonObject {
  const options = parseKeyValue(text)
  const first = text.split(',')[0] ?? ''
  if (first === '' || first.includes('=')) return options
  const { [first]: _kind, ...rest } = options
  return { ...rest, backend: first }
}

// Limits of a group may be written one by one, as properties of it.
function objectOptions(command: Command, text: string): JsonObject {
  if (!text.startsWith('throttle-group') || !/,x-(bps|iops)-/.test(text))
    return parseOption(command.schema, text, 'qom-type')
  const spelled = text.replace(/,x-(?=(bps|iops)-)/g, ',limits.')
  return parseOption(command.schema, spelled, 'qom-type')
}

/** What a drive says to a machine that has none here, or about the host's own work. */
const OF_MACHINES = [
  ...[
    'if',
    'index',
    'bus',
    'unit',
    'media',
    'serial',
    'addr',
    'werror',
    'rerror',
    'aio',
    'snapshot',
  ],
]

/** How a drive's `cache` splits into the options of its node. */
const CACHES: Readonly<Record<string, JsonObject>> = {
  none: { cache: { direct: true } },
  writeback: {},
  unsafe: { cache: { 'no-flush': true } },
}

/** Options of the node that a drive is, named by its `node-name` or else its `id`. */
function driveOptions(text: string): JsonObject {
  const { id, 'node-name': name, file, format, readonly: ro, cache, ...rest } = parseKeyValue(text)
  const driver = rest.driver ?? format
  const options: { [member: string]: JsonValue } = {
    'node-name': name ?? id ?? refuse('A drive needs an id or a node-name'),
    ...(typeof cache === 'string' ? (CACHES[cache] ?? refuse('invalid cache option')) : {}),
    ...(isObject(cache) ? { cache } : {}),
    ...(ro === undefined ? {} : { 'read-only': ro }),
    ...Object.fromEntries(Object.entries(rest).filter(([key]) => !OF_MACHINES.includes(key))),
  }
  if (driver !== undefined) options.driver = driver
  if (typeof file === 'string') {
    options.file = fileOptions(file)
    options.driver ??= refuse(`The format of drive '${file}' must be given: format=raw or qcow2`)
  } else if (file !== undefined) options.file = file
  const coerced = coerce(blockdevOptions, modernOptions(options), '')
  return isObject(coerced) ? coerced : refuse('A drive needs options')
}

function fileOptions(file: string): JsonObject {
  if (!file.startsWith('nbd:') && !file.startsWith('nbd+'))
    return { driver: 'file', filename: file }
  const { address, exportName } = parseNbdUri(file)
  const server = { ...address, ...(address.type === 'inet' ? { port: String(address.port) } : {}) }
  return { driver: 'nbd', server, ...(exportName === '' ? {} : { export: exportName }) }
}
