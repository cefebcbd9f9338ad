/**
 * The composition root: everything that makes one running block system, wired together.
 *
 * Invariants:
 * - This is the one file that knows every driver, the worker pool and the monitor.
 * - Closing goes from the users to the used: exports, replication, jobs, nodes, monitors.
 * - `quit` only asks; whoever made the runtime closes it.
 */
import type { Duplex } from 'node:stream'
import { AioContext } from '../aio/aio-context.ts'
import { type BackendOptions, BlockBackend } from '../block/backend.ts'
import { type BlockdevOptions, type DriverDefinition, PERM } from '../block/driver.ts'
import type { BlockEvents } from '../block/events.ts'
import { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import { makeNbdDriver } from '../drivers/nbd.ts'
import { makeThrottleDriver, ThrottleGroups } from '../drivers/throttle.ts'
import { jobRegistry } from '../job/host.ts'
import { WorkerPool } from '../job/pool.ts'
import type { JobRegistry } from '../job/registry.ts'
import type { TlsServerOptions } from '../nbd/tls.ts'
import { ColoSession } from '../qmp/colo-session.ts'
import { EventHub } from '../qmp/events.ts'
import { isObject, type JsonObject, toJson } from '../qmp/json.ts'
import { Monitor } from '../qmp/monitor.ts'
import { ObjectStore } from '../qmp/objects.ts'
import { RunState } from '../qmp/run-state.ts'
import type { ExportRequest, MonitorServices, ServerAddress } from '../qmp/services.ts'
import { type MonitorServer, parseMonitorAddress } from '../qmp/socket.ts'
import { makeReplicationDriver } from '../replication/driver.ts'
import { makeJobMachinery } from '../replication/job-machinery.ts'
import { ReplicationRegistry } from '../replication/registry.ts'
import { type Clock, HostClock } from '../util/clock.ts'
import { Chardevs } from './chardevs.ts'
import { builtinDrivers } from './drivers.ts'
import { Exports } from './exports.ts'
import { objectKinds } from './objects.ts'
import { type OptionHandler, optionHandlers, type StartupOption } from './options.ts'

/** How a runtime is made. */
export interface RuntimeOptions {
  /** Its time; default the host's. */
  readonly clock?: Clock
  /** Milliseconds since the epoch, for the time of events; default counts from the clock's start. */
  readonly epochMs?: () => number
  /** What a character device `stdio` of the command line talks over; default: there is none. */
  readonly stdio?: () => Duplex
  /** Drivers beside the built-in ones; one with the name of a built-in one replaces it. */
  readonly drivers?: readonly DriverDefinition[]
}

/** Why a program ends. */
export type QuitReason = 'host-qmp-quit' | 'host-signal'

/** One block system: nodes, jobs, replication, exports, monitors. Main thread only. */
export class Runtime implements AsyncDisposable {
  /** The event loop object. */
  readonly ctx: AioContext
  /** All nodes. */
  readonly graph: BlockGraph
  /** All jobs. */
  readonly jobs: JobRegistry
  /** The NBD server and its exports. */
  readonly exports: Exports
  /** Settles when somebody asked for the end: the command `quit` or a signal. */
  readonly quitRequested: Promise<QuitReason>
  /** Every replication node, and the orders that go to all of them. */
  readonly replication: ReplicationRegistry = new ReplicationRegistry()
  /** The threads that jobs copy in. */
  readonly pool: WorkerPool = new WorkerPool()
  readonly #groups: ThrottleGroups
  readonly #objects: ObjectStore
  readonly #backends = new Set<BlockBackend>()
  readonly #hub: EventHub
  readonly #monitor: Monitor
  readonly #runState: RunState
  readonly #colo: ColoSession
  readonly #chardevs: Chardevs
  readonly #options: Readonly<Record<StartupOption, OptionHandler>>
  #requestQuit!: (reason: QuitReason) => void
  #quitting = false
  #closing: Promise<void> | undefined

  /** Use `create`. */
  private constructor(options: RuntimeOptions) {
    const clock = options.clock ?? new HostClock()
    this.ctx = new AioContext({ clock })
    this.graph = new BlockGraph({ ctx: this.ctx, drivers: [] })
    this.jobs = jobRegistry(this.graph)
    this.#groups = new ThrottleGroups(this.ctx)
    this.#objects = new ObjectStore(objectKinds(this.#groups))
    this.exports = new Exports(this.graph)
    this.quitRequested = new Promise((resolve) => {
      this.#requestQuit = resolve
    })
    const epochMs = options.epochMs ?? (() => clock.nowMs())
    this.#hub = new EventHub({
      nowMicros: () => Math.floor(epochMs() * 1000),
      later: (ms, fn) => {
        const timer = clock.setTimer(ms, fn)
        return () => timer.cancel()
      },
    })
    this.graph.events.onAny((name, data) => this.#hub.publish(name, eventData(data)))
    const throttle = makeThrottleDriver(this.#groups)
    const machinery = makeJobMachinery(this.jobs, () => this.pool)
    const replication = makeReplicationDriver(this.replication, machinery)
    const nbd = makeNbdDriver((id) => this.#objects.credentials(id, 'client'))
    const own = [...builtinDrivers(), nbd, throttle, replication]
    for (const driver of [...own, ...(options.drivers ?? [])]) {
      this.graph.drivers.set(driver.name, driver)
    }
    this.#runState = new RunState(this.graph.events)
    this.#colo = new ColoSession({
      replication: this.replication,
      events: this.graph.events,
      runState: this.#runState,
      clock,
    })
    this.#monitor = new Monitor(this.#services(), this.#hub)
    this.#chardevs = this.#makeChardevs(clock, options.stdio)
    this.#options = optionHandlers(this.#monitor.commands, this.#chardevs)
  }

  /** Makes a runtime; it holds nothing open until it is told to. */
  static async create(options: RuntimeOptions = {}): Promise<Runtime> {
    return new Runtime(options)
  }

  /** What happens, under the names that monitors use. */
  get events(): BlockEvents {
    return this.graph.events
  }

  /** Opens a node, as `blockdev-add` does. Errors: EINVAL, EBUSY, those of the driver. */
  addNode(options: BlockdevOptions): Promise<BlockNode> {
    return this.graph.add(options)
  }

  /** Gives a node up, as `blockdev-del` does. Errors: EINVAL, EBUSY. */
  removeNode(name: string): Promise<void> {
    return this.graph.remove(name)
  }

  /**
   * Opens a node for reading and writing; take and share less by `options`. Closed with the runtime
   * at the latest. Errors: EINVAL, EPERM.
   */
  async openBackend(
    node: BlockNode | string,
    options: Partial<BackendOptions> = {},
  ): Promise<BlockBackend> {
    const root = typeof node === 'string' ? this.graph.lookup(undefined, node) : node
    const writable = root.readOnly ? 0 : PERM.WRITE
    const backend = await BlockBackend.create(this.graph, root, {
      perm: PERM.CONSISTENT_READ | writable,
      shared: PERM.ALL & ~PERM.RESIZE,
      ...options,
    })
    this.#backends.add(backend)
    return backend
  }

  /** Starts the NBD server; with `tls`, for clients over TLS only. Errors: EBUSY, EINVAL, EACCES. */
  startNbdServer(
    address: ServerAddress,
    maxConnections?: number,
    tls?: TlsServerOptions,
  ): Promise<void> {
    return this.exports.startServer(address, maxConnections, tls)
  }

  /** Exports a node. Errors: EINVAL, EEXIST, EPERM. */
  addExport(request: ExportRequest): Promise<void> {
    return this.exports.add(request)
  }

  /** Opens a monitor socket, `unix:PATH` or `tcp:HOST:PORT`. Errors: EINVAL, EBUSY, EEXIST. */
  async startMonitor(address: string): Promise<MonitorServer> {
    return this.#monitor.listen(parseMonitorAddress(address))
  }

  /**
   * Does what an option of a storage daemon's command line says: `blockdev` opens a node, `export`
   * shows one, and so on. `text` is the value: `key=value,…` or JSON. Errors: those of the command
   * that does the same, EINVAL for text that cannot be read.
   */
  applyOption(option: StartupOption, text: string): Promise<void> {
    return this.#options[option](text)
  }

  /** Asks for the end; once. */
  quit(reason: QuitReason): void {
    if (this.#quitting) return
    this.#quitting = true
    this.graph.events.emit('SHUTDOWN', { guest: false, reason })
    this.#requestQuit(reason)
  }

  /** Takes everything down in order; data that was acknowledged is on its disks afterwards. */
  close(): Promise<void> {
    this.#closing ??= this.#closeAll()
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #closeAll(): Promise<void> {
    this.#colo.close()
    this.#chardevs.close()
    await this.exports.close()
    for (const backend of this.#backends) await backend.close()
    await this.replication.shutdownAll()
    await this.jobs.cancelAll()
    await this.graph.close()
    await this.pool.close()
    this.#hub.close()
    await this.#monitor.close()
    await this.ctx.close()
  }

  #makeChardevs(clock: Clock, stdio: (() => Duplex) | undefined): Chardevs {
    const monitor = this.#monitor
    let offered = stdio
    return new Chardevs({
      clock,
      hold: () => monitor.hold(),
      record: (id, backend) => {
        void monitor.commands['chardev-add']?.run({ id, backend }, NOBODY)
      },
      stdio: () => {
        const once = offered
        offered = undefined
        return once?.()
      },
    })
  }

  #services(): MonitorServices {
    const { graph, jobs, exports } = this
    return {
      graph,
      jobs,
      pool: this.pool,
      exports,
      replication: this.replication,
      objects: this.#objects,
      runState: this.#runState,
      colo: this.#colo,
      quit: () => this.quit('host-qmp-quit'),
    }
  }
}

// A device of the command line is recorded before anybody is connected.
const NOBODY = { negotiate: () => undefined, finish: () => undefined }

// Events without members go without `data`.
function eventData(data: Readonly<Record<string, unknown>>): JsonObject | undefined {
  const json = toJson(data)
  return isObject(json) && Object.keys(json).length > 0 ? json : undefined
}
