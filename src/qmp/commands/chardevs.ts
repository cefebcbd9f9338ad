/**
 * `chardev-add`, `chardev-remove`, `query-chardev`: character devices, which replication scripts make
 * for the network beside the disk. They are checked, remembered and removed, and carry nothing.
 *
 * Invariants:
 * - Ids are unique; a removed id is free again.
 */
import { socketAddressLegacy } from '../blockdev-schema.ts'
import { type CommandTable, command, refuse, textOf } from '../command.ts'
import { isObject, type JsonObject, type JsonValue } from '../json.ts'
import { any, bool, int, type Members, oneOf, str, struct, union } from '../schema.ts'

const common: Members = { 'logfile?': str, 'logappend?': bool }
const path = struct({ device: str, ...common })
const plain = struct(common)

const BACKENDS: Readonly<Record<string, Members>> = {
  socket: {
    data: struct({
      addr: socketAddressLegacy,
      'tls-creds?': str,
      'tls-authz?': str,
      'server?': bool,
      'wait?': bool,
      'nodelay?': bool,
      'telnet?': bool,
      'tn3270?': bool,
      'websocket?': bool,
      'reconnect?': int,
      ...common,
    }),
  },
  udp: {
    data: struct({ remote: socketAddressLegacy, 'local?': socketAddressLegacy, ...common }),
  },
  file: { data: struct({ 'in?': str, out: str, 'append?': bool, ...common }) },
  serial: { data: path },
  parallel: { data: path },
  pipe: { data: path },
  ringbuf: { data: struct({ 'size?': int, ...common }) },
  memory: { data: struct({ 'size?': int, ...common }) },
  stdio: { data: struct({ 'signal?': bool, ...common }) },
  mux: { data: struct({ chardev: str, ...common }) },
  pty: { data: plain },
  null: { data: plain },
  testdev: { data: plain },
  vc: { data: any },
}

/** The commands. */
export function chardevCommands(): CommandTable {
  const devices = new Map<string, JsonObject>()
  const names = Object.keys(BACKENDS)
  const backend = union('type', { type: oneOf(...names) }, BACKENDS)
  return {
    'chardev-add': command({ id: str, backend }, (args) => {
      const id = textOf(args, 'id')
      if (devices.has(id)) refuse(`Chardev with id '${id}' already exists`)
      devices.set(id, isObject(args.backend) ? args.backend : {})
      return {}
    }),
    'chardev-remove': command({ id: str }, (args) => {
      const id = textOf(args, 'id')
      if (!devices.delete(id)) refuse(`Chardev '${id}' not found`)
    }),
    'query-chardev': command({}, () =>
      [...devices].map(([id, made]) => shown(id, made)).sort(byLabel),
    ),
    'query-chardev-backends': command({}, () => names.sort().map((name) => ({ name }))),
  }
}

function byLabel(one: JsonObject, other: JsonObject): number {
  return String(one.label) < String(other.label) ? -1 : 1
}

function shown(id: string, made: JsonObject): JsonObject {
  return { 'frontend-open': false, filename: filenameOf(made), label: id }
}

function filenameOf({ type, data }: JsonObject): JsonValue {
  if (type !== 'socket' || !isObject(data) || !isObject(data.addr)) return type ?? ''
  const address = isObject(data.addr.data) ? data.addr.data : {}
  const parts = [address.path, address.host, address.port].filter((part) => part !== undefined)
  const kind = data.addr.type === 'inet' ? 'tcp' : String(data.addr.type)
  const server = data.server === false ? '' : ',server=on'
  return `disconnected:${[kind, ...parts.map(String)].join(':')}${server}`
}
