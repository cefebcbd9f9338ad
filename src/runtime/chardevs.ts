/**
 * Character devices of the command line: the connections that monitors of it talk over.
 *
 * Invariants:
 * - A device listens, or is connected, from the moment it is made; what a peer sends waits until a
 *   monitor is put on it.
 * - A device carries at most one monitor.
 */
import type { Duplex } from 'node:stream'
import { refuse } from '../qmp/command.ts'
import type { JsonObject, JsonValue } from '../qmp/json.ts'
import { dial, type MonitorAddress, type MonitorServer } from '../qmp/socket.ts'
import type { Clock } from '../util/clock.ts'
import { BlockError } from '../util/errors.ts'

/** What the devices need of the program around them. */
export interface ChardevHost {
  /** Time between two tries of a client that reconnects. */
  readonly clock: Clock
  /** Makes a monitor that greets nobody yet. */
  hold(): MonitorServer
  /** Lists the device among those that monitors show. Errors: EINVAL for an id that is taken. */
  record(id: string, backend: JsonObject): void
  /** Standard input and output as one connection; undefined where a program offers none. */
  stdio(): Duplex | undefined
}

interface Device {
  readonly monitor: MonitorServer | undefined
  used: boolean
}

const SOCKET_OPTIONS = [
  ...['path', 'host', 'port', 'server', 'wait', 'nodelay', 'reconnect', 'to', 'ipv4', 'ipv6'],
  ...['delay', 'nowait', 'abstract', 'tight'],
]
const KINDS: Readonly<Record<string, readonly string[]>> = {
  socket: SOCKET_OPTIONS,
  stdio: ['signal', 'mux'],
  null: [],
}
const ID = /^[A-Za-z][A-Za-z0-9._-]*$/

/** The devices, by id. */
export class Chardevs {
  readonly #host: ChardevHost
  readonly #devices = new Map<string, Device>()
  #closed = false

  constructor(host: ChardevHost) {
    this.#host = host
  }

  /** Makes a device from typed options; a server that is to wait does so here. Errors: EINVAL … */
  async add(options: JsonObject): Promise<void> {
    const id = textIn(options, 'id')
    if (id === undefined) return refuse('chardev: no id specified')
    if (!ID.test(id)) refuse("Parameter 'id' expects an identifier")
    const kind = textIn(options, 'backend')
    if (kind === undefined) return refuse(`chardev: "${id}" missing backend`)
    if (this.#devices.has(id)) {
      throw new BlockError(
        'EEXIST',
        `attempt to add duplicate property '${id}' to object (type 'container')`,
      )
    }
    const known = KINDS[kind] ?? refuse(`'${kind}' is not a valid char driver name`)
    for (const key of Object.keys(options)) {
      if (!['id', 'backend', ...known].includes(key)) refuse(`Invalid parameter '${key}'`)
    }
    this.#devices.set(id, { monitor: await this.#make(id, kind, options), used: false })
  }

  /** Puts a monitor on a device. Errors: EINVAL for none of that id, EBUSY for one that has one. */
  attach(id: string, pretty: boolean): void {
    const device = this.#devices.get(id)
    if (device === undefined) throw new BlockError('EINVAL', `chardev "${id}" not found`)
    if (device.used) throw new BlockError('EBUSY', `Device '${id}' is in use`)
    device.used = true
    device.monitor?.release(pretty)
  }

  /** No further tries to connect; the connections are closed by whoever closes the monitors. */
  close(): void {
    this.#closed = true
  }

  async #make(id: string, kind: string, options: JsonObject): Promise<MonitorServer | undefined> {
    if (kind === 'socket') return this.#socket(id, options)
    if (kind === 'null') {
      this.#host.record(id, { type: 'null', data: {} })
      return undefined
    }
    const stream = this.#host.stdio()
    if (stream === undefined) refuse('cannot use stdio by multiple character devices')
    const monitor = this.#host.hold()
    monitor.accept(stream)
    this.#host.record(id, { type: 'stdio', data: {} })
    return monitor
  }

  async #socket(id: string, options: JsonObject): Promise<MonitorServer> {
    const server = onOff(options, 'server') ?? false
    const wait = waitOption(options)
    const reconnect = numberOption(options, 'reconnect')
    if (!server && wait !== undefined)
      refuse("'wait' option is incompatible with socket in client connect mode")
    if (server && reconnect > 0)
      refuse("'reconnect' option is incompatible with socket in server listen mode")
    const address = addressOf(options)
    this.#host.record(id, { type: 'socket', data: recorded(address, server) })
    const monitor = this.#host.hold()
    if (server) {
      await monitor.listen(address)
      if (wait ?? true) await monitor.firstClient()
      return monitor
    }
    await this.#dial(monitor, address, reconnect * 1000).catch((error: unknown) => {
      if (reconnect === 0) throw error
      this.#later(monitor, address, reconnect * 1000)
    })
    return monitor
  }

  async #dial(monitor: MonitorServer, address: MonitorAddress, retryMs: number): Promise<void> {
    const socket = await dial(address, { allowHalfOpen: true })
    socket.pause()
    if (retryMs > 0) socket.once('close', () => this.#later(monitor, address, retryMs))
    monitor.accept(socket)
  }

  #later(monitor: MonitorServer, address: MonitorAddress, retryMs: number): void {
    if (this.#closed) return
    const again = (): void => {
      if (this.#closed) return
      this.#dial(monitor, address, retryMs).catch(() => this.#later(monitor, address, retryMs))
    }
    this.#host.clock.setTimer(retryMs, again)
  }
}

function addressOf(options: JsonObject): MonitorAddress {
  const path = textIn(options, 'path')
  if (path !== undefined) return { type: 'unix', path }
  const host = textIn(options, 'host') ?? ''
  const port = textIn(options, 'port') ?? refuse('chardev: socket: no port given')
  if (!/^[0-9]+$/.test(port) || Number(port) > 65535)
    refuse(`address resolution failed for ${host}:${port}: Servname not supported for ai_socktype`)
  return { type: 'tcp', host: host === '' ? '0.0.0.0' : host, port: Number(port) }
}

function recorded(address: MonitorAddress, server: boolean): JsonObject {
  const addr =
    address.type === 'unix'
      ? { type: 'unix', data: { path: address.path } }
      : { type: 'inet', data: { host: address.host, port: String(address.port) } }
  return { addr, server, ...(server ? { wait: false } : {}) }
}

// `nowait` is the older word for `wait=off`.
function waitOption(options: JsonObject): boolean | undefined {
  const nowait = onOff(options, 'nowait')
  return nowait === undefined ? onOff(options, 'wait') : !nowait
}

function textIn(options: JsonObject, key: string): string | undefined {
  const value: JsonValue | undefined = options[key]
  return typeof value === 'string' ? value : undefined
}

function onOff(options: JsonObject, key: string): boolean | undefined {
  const text = textIn(options, key)
  if (text === undefined) return undefined
  if (text === 'on' || text === 'yes' || text === 'true') return true
  if (text === 'off' || text === 'no' || text === 'false') return false
  return refuse(`Parameter '${key}' expects 'on' or 'off'`)
}

function numberOption(options: JsonObject, key: string): number {
  const text = textIn(options, key) ?? '0'
  return /^[0-9]{1,9}$/.test(text) ? Number(text) : refuse(`Parameter '${key}' expects a number`)
}
