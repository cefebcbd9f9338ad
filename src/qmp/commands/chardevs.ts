/**
 * Character devices, which replication scripts make for the network beside the disk: they are
 * checked, remembered, changed and removed. Ring buffers keep what is written to them; the others
 * carry nothing.
 *
 * Invariants:
 * - Ids are unique; a removed id is free again.
 * - A device that a multiplexer uses stays as it is.
 * - A change that is refused leaves the device as it was.
 */
import { BlockError } from '../../util/errors.ts'
import { socketAddressLegacy } from '../blockdev-schema.ts'
import {
  type CommandTable,
  command,
  optionalNumber,
  optionalText,
  refuse,
  textOf,
} from '../command.ts'
import { isObject, type JsonObject, type JsonValue } from '../json.ts'
import { decodeText, encodeText, RingBuffer } from '../ring-buffer.ts'
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

/** Kinds of character devices. */
export const CHARDEV_BACKENDS: readonly string[] = Object.keys(BACKENDS)

/** Size of a ring buffer whose size nobody gave, in bytes. */
const RING_BYTES = 65536
const RINGS = ['ringbuf', 'memory']
const format = oneOf('utf8', 'base64')

interface Chardev {
  readonly made: JsonObject
  readonly ring: RingBuffer | undefined
}

/** The commands. */
export function chardevCommands(): CommandTable {
  const devices = new Map<string, Chardev>()
  const backend = union('type', { type: oneOf(...CHARDEV_BACKENDS) }, BACKENDS)
  const ringOf = (id: string): RingBuffer => {
    const device = devices.get(id)
    if (device === undefined) refuse(`Device '${id}' not found`)
    return device.ring ?? refuse(`${id} is not a ringbuf device`)
  }
  return {
    'chardev-add': command({ id: str, backend }, (args) => {
      const id = textOf(args, 'id')
      if (devices.has(id)) refuse(`Chardev with id '${id}' already exists`)
      devices.set(id, make(devices, id, args.backend))
      return {}
    }),
    'chardev-change': command({ id: str, backend }, (args) => {
      const id = textOf(args, 'id')
      const old = devices.get(id)
      if (old === undefined) refuse(`Chardev '${id}' does not exist`)
      if (old.made.type === 'mux') refuse('Mux device hotswap not supported yet')
      if (usedBy(devices, id)) refuse('Chardev user does not support chardev hotswap')
      devices.set(id, make(devices, id, args.backend))
      return {}
    }),
    'chardev-remove': command({ id: str }, (args) => {
      const id = textOf(args, 'id')
      if (!devices.has(id)) refuse(`Chardev '${id}' not found`)
      if (usedBy(devices, id)) throw new BlockError('EBUSY', `Chardev '${id}' is busy`)
      devices.delete(id)
    }),
    'chardev-send-break': command({ id: str }, (args) => {
      const id = textOf(args, 'id')
      if (!devices.has(id)) refuse(`Chardev '${id}' not found`)
    }),
    'ringbuf-write': command({ device: str, data: str, 'format?': format }, (args) => {
      const ring = ringOf(textOf(args, 'device'))
      ring.write(bytesOf(textOf(args, 'data'), optionalText(args, 'format')))
    }),
    'ringbuf-read': command({ device: str, size: int, 'format?': format }, (args) => {
      const ring = ringOf(textOf(args, 'device'))
      const most = optionalNumber(args, 'size') ?? 0
      if (most <= 0) refuse('size must be greater than zero')
      const bytes = ring.read(most)
      return optionalText(args, 'format') === 'base64'
        ? bytes.toString('base64')
        : decodeText(bytes)
    }),
    'query-chardev': command({}, () =>
      [...devices].map(([id, { made }]) => shown(id, made)).sort(byLabel),
    ),
    'query-chardev-backends': command({}, () =>
      [...CHARDEV_BACKENDS].sort().map((name) => ({ name })),
    ),
  }
}

function make(
  devices: ReadonlyMap<string, Chardev>,
  id: string,
  backend: JsonValue | undefined,
): Chardev {
  const made = isObject(backend) ? backend : {}
  const data = isObject(made.data) ? made.data : {}
  const fail = (why: string): never => refuse(`Failed to add chardev '${id}': ${why}`)
  if (made.type === 'mux') {
    const below = textOf(data, 'chardev')
    if (!devices.has(below)) fail(`mux: base chardev ${below} not found`)
    if (usedBy(devices, below)) fail(`Device '${below}' is in use`)
  }
  if (!RINGS.some((type) => type === made.type)) return { made, ring: undefined }
  const bytes = optionalNumber(data, 'size') ?? RING_BYTES
  const isPower = Number.isInteger(Math.log2(bytes)) || bytes === 0
  if (!isPower) fail('size of ringbuf chardev must be power of two')
  return { made, ring: new RingBuffer(bytes) }
}

function usedBy(devices: ReadonlyMap<string, Chardev>, id: string): boolean {
  return [...devices.values()].some(
    ({ made }) => made.type === 'mux' && isObject(made.data) && made.data.chardev === id,
  )
}

function bytesOf(data: string, form: string | undefined): Buffer {
  if (form !== 'base64') return encodeText(data)
  if (/^[A-Za-z0-9+/=\s]*$/.test(data)) return Buffer.from(data, 'base64')
  return refuse('Base64 data contains invalid characters')
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
