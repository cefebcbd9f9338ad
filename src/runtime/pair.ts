/**
 * A replicated disk without assembling graphs: one call for the primary, one for the secondary.
 *
 * Invariants:
 * - Each side is a runtime of its own, closed with it; what `create…` opened is closed when it fails.
 * - Only public parts of the runtime are used: whoever needs more takes `runtime` and goes on there.
 * - Both disks hold the same bytes when the primary is created; nothing here copies the first content.
 */
import type { BlockBackend } from '../block/backend.ts'
import type { BlockdevOptions } from '../block/driver.ts'
import type { ServerAddress } from '../qmp/services.ts'
import type { ReplicationStatus } from '../replication/registry.ts'
import { BlockError } from '../util/errors.ts'
import { type DiskSource, diskOptions } from './disk.ts'
import {
  hear,
  PRIMARY_EVENTS,
  type PrimaryEvents,
  SECONDARY_EVENTS,
  type SecondaryEvents,
} from './pair-events.ts'
import { Runtime, type RuntimeOptions } from './runtime.ts'

/** Name that the export has when none is given. */
const EXPORT_NAME = 'disk'
/** Seconds after which a connection that does not answer is lost. */
const REQUEST_TIMEOUT_S = 30

/** Options of both sides. */
interface SideOptions {
  /** The disk; its content must equal that of the other side's. */
  readonly disk: DiskSource
  /** Name of the export on the secondary; default `disk`. */
  readonly exportName?: string
  /** How the runtime of this side is made. */
  readonly runtime?: RuntimeOptions
}

/** How a primary is made. */
export interface PrimaryOptions extends SideOptions {
  /** Where the secondary listens. */
  readonly secondary: ServerAddress
  /** How long to try to reach the secondary at first, in seconds; default 0: once. */
  readonly openTimeout?: number
  /**
   * How long a write may wait for its reply before the connection counts as lost, in seconds; default
   * 30, 0 = for ever. The guest waits no longer than that for a secondary that hangs.
   */
  readonly requestTimeout?: number
  /**
   * How long a write waits for a lost connection to come back before it counts as not arrived, in
   * seconds; default 0. The connection is made again in any case.
   */
  readonly reconnectDelay?: number
}

/** How a secondary is made. */
export interface SecondaryOptions extends SideOptions {
  /** Where the primary's writes are taken. */
  readonly exportAt: ServerAddress
  /** Collects our own guest's writes; as long as the disk; default in memory. */
  readonly active?: DiskSource
  /** Collects what the primary overwrites; as long as the disk; default in memory. */
  readonly hidden?: DiskSource
  /** Bytes in the hidden disk at which `hidden-watermark` is told; default 0 = never. */
  readonly hiddenWatermark?: number
  /**
   * With a hidden disk in a file: whatever kills the process, the images show the last checkpoint.
   * Costs a flush of the hidden image for each write that needs old data saved; default false, when
   * they do as long as the primary flushed what it wrote.
   */
  readonly crashConsistent?: boolean
}

/** What a finished failover did. */
export interface FailoverResult {
  /** From the order to the moment when the primary was shut out, in milliseconds. */
  readonly takeoverMs: number
  /** From the order to the end of the merge, in milliseconds. */
  readonly totalMs: number
  /** Old data that were put back: what the primary had overwritten since the checkpoint, in bytes. */
  readonly restoredBytes: number
}

/** State of one side. */
export type PairStatus = Omit<ReplicationStatus, 'node'>

/** What both sides are made of. */
class Side implements AsyncDisposable {
  /** The runtime behind it, for everything that has no method here. */
  readonly runtime: Runtime
  /** The disk as the guest of this side sees it. */
  readonly backend: BlockBackend
  readonly #node: string

  protected constructor(runtime: Runtime, backend: BlockBackend, node: string) {
    this.runtime = runtime
    this.backend = backend
    this.#node = node
  }

  /** How replication is. */
  status(): PairStatus {
    const { node: _, ...status } = this.#status()
    return status
  }

  /**
   * Offers the disk over NBD as the guest of this side sees it, under a name of its own. `at` is where
   * to listen on a primary, which has no server yet; a secondary listens where its export is.
   * Errors: EINVAL without a place to listen, EBUSY with two, EEXIST for a name in use.
   */
  async serve(name: string, at?: ServerAddress): Promise<void> {
    if (at !== undefined) await this.runtime.startNbdServer(at)
    const nodeName = this.backend.node.name
    await this.runtime.addExport({ id: `guest-${name}`, nodeName, name, writable: true })
  }

  /** Closes the disk; a secondary that was not promoted discards what it buffered. */
  close(): Promise<void> {
    return this.runtime.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #status(): ReplicationStatus {
    const found = this.runtime.replication.list().find((one) => one.node === this.#node)
    if (found === undefined) throw new BlockError('ESHUTDOWN', 'The replicated disk is closed')
    return found
  }
}

/** The side whose guest writes are replicated. */
export class Primary extends Side {
  /** Use `createPrimary`. */
  static async create(options: PrimaryOptions): Promise<Primary> {
    const runtime = await Runtime.create(options.runtime)
    return orClose(runtime, async () => {
      await runtime.addNode(diskOptions(options.disk, 'local'))
      const quorum = { driver: 'quorum', 'vote-threshold': 1, 'read-pattern': 'fifo' }
      const file = linkOptions(options)
      const role = { driver: 'replication', 'node-name': 'replica', mode: 'primary', file }
      await runtime.addNode({ ...quorum, 'node-name': 'disk', children: ['local', role] })
      await runtime.replication.startAll('primary')
      return new Primary(runtime, await runtime.openBackend('disk'), 'replica')
    })
  }

  /**
   * Confirms that everything written so far is on the secondary; the secondary's own checkpoint
   * comes after it, with no write in between. Errors: EIO when a write did not arrive.
   */
  checkpoint(): Promise<void> {
    return this.runtime.replication.checkpointAll()
  }

  /**
   * Sends again what did not arrive; then checkpoints are accepted again. Errors: EINVAL after
   * `stop`, EBUSY while another one runs, EIO when something still does not arrive.
   */
  async resync(): Promise<void> {
    const { graph, replication } = this.runtime
    await replication.resync('replica', graph.lookup(undefined, 'local'))
  }

  /** Ends forwarding for good; the disk itself goes on. Errors: EIO is told by `status`. */
  async stop(): Promise<void> {
    const { graph, replication } = this.runtime
    const quorum = this.backend.node
    await replication.stopAll(false)
    const edge = [...quorum.children.values()].find((each) => each.node.name === 'replica')
    if (edge !== undefined)
      await graph.withDrained(quorum, () => quorum.driver?.removeChild?.(edge))
  }

  /** Hears events until the answer is called. */
  on<K extends keyof PrimaryEvents>(name: K, heard: (data: PrimaryEvents[K]) => void): () => void {
    return hear(this.runtime.events, PRIMARY_EVENTS, name, heard)
  }
}

/** The side that stands by. */
export class Secondary extends Side {
  /** Use `createSecondary`. */
  static async create(options: SecondaryOptions): Promise<Secondary> {
    const runtime = await Runtime.create(options.runtime)
    return orClose(runtime, async () => {
      const disk = await runtime.addNode(diskOptions(options.disk, 'local'))
      const buffer = { memory: disk.length() }
      const hidden = diskOptions(options.hidden ?? buffer, 'hidden', 'local')
      const active = diskOptions(options.active ?? buffer, 'active', hidden)
      const role = { driver: 'replication', mode: 'secondary', 'top-id': 'top', file: active }
      const wishes = {
        'hidden-watermark': options.hiddenWatermark ?? 0,
        'crash-consistent': options.crashConsistent === true,
      }
      await runtime.addNode({ ...role, ...wishes, 'node-name': 'top' })
      await runtime.startNbdServer(options.exportAt)
      const name = options.exportName ?? EXPORT_NAME
      // A write that hangs on a lost connection cannot land after one of the primary's next.
      const exported = { id: 'replica', nodeName: 'local', name, writable: true, exclusive: true }
      await runtime.addExport(exported)
      const backend = await runtime.openBackend('top')
      await runtime.replication.startAll('secondary')
      return new Secondary(runtime, backend, 'top')
    })
  }

  /** Where the export listens, with the real port. */
  get address(): ServerAddress {
    const address = this.runtime.exports.server?.address
    if (address === undefined) throw new BlockError('ESHUTDOWN', 'The export is closed')
    if (address.type === 'unix') return { type: 'unix', path: address.path }
    return { type: 'inet', host: address.host, port: Number(address.port) }
  }

  /**
   * Moves the view to what the primary has written by now and discards our own guest's writes. The
   * primary has to be at rest. Errors: EINVAL when replication does not run, EIO when it cannot; then
   * `status().stage` is `running` and nothing has changed, or it is `interrupted`, and a second
   * call, a failover or a stop completes what this one began.
   */
  checkpoint(): Promise<void> {
    return this.runtime.replication.checkpointAll()
  }

  /**
   * Takes over with the last checkpoint and our own guest's writes. The primary is shut out at
   * once and guest I/O goes on; settles when everything is merged into the disk. Errors: EINVAL when
   * replication does not run, EIO when the merge failed (`retryFailover`).
   */
  async failover(): Promise<FailoverResult> {
    const { clock } = this.runtime.ctx
    const { stage, copiedBytes } = this.status()
    if (stage !== 'running' && stage !== 'interrupted') throw notRunning()
    const begin = clock.nowMs()
    await this.runtime.replication.stopAll(true)
    const takeoverMs = clock.nowMs() - begin
    await this.#merged()
    return { takeoverMs, totalMs: clock.nowMs() - begin, restoredBytes: copiedBytes }
  }

  /** Merges again after a failover whose merge failed. Errors: EINVAL, EIO. */
  async retryFailover(): Promise<void> {
    const one = this.runtime.replication.find('top')
    if (one?.mode !== 'secondary') throw notRunning()
    await one.retryFailover()
    await this.#merged()
  }

  /** Ends replication with the primary's present content; both buffers are discarded. */
  async stop(): Promise<void> {
    await this.runtime.replication.stopAll(false)
  }

  /** Hears events until the answer is called. */
  on<K extends keyof SecondaryEvents>(
    name: K,
    heard: (data: SecondaryEvents[K]) => void,
  ): () => void {
    return hear(this.runtime.events, SECONDARY_EVENTS, name, heard)
  }

  async #merged(): Promise<void> {
    await this.runtime.replication.settled()
    const { stage, error } = this.status()
    if (stage === 'done') return
    throw new BlockError('EIO', error ?? 'The merge failed', { op: 'failover' })
  }
}

/** A primary, replicating. Errors: those of the disk, and of the connection to the secondary. */
export function createPrimary(options: PrimaryOptions): Promise<Primary> {
  return Primary.create(options)
}

/** A secondary, running and listening. Errors: those of the disks and of the address. */
export function createSecondary(options: SecondaryOptions): Promise<Secondary> {
  return Secondary.create(options)
}

function linkOptions(options: PrimaryOptions): BlockdevOptions {
  const { secondary, openTimeout, requestTimeout, reconnectDelay } = options
  return {
    driver: 'nbd',
    'node-name': 'link',
    server: secondary,
    export: options.exportName ?? EXPORT_NAME,
    ...(openTimeout === undefined ? {} : { 'open-timeout': openTimeout }),
    'request-timeout': requestTimeout ?? REQUEST_TIMEOUT_S,
    ...(reconnectDelay === undefined ? {} : { 'reconnect-delay': reconnectDelay }),
  }
}

function notRunning(): BlockError {
  return new BlockError('EINVAL', 'Block replication is not running', { op: 'failover' })
}

async function orClose<T>(runtime: Runtime, build: () => Promise<T>): Promise<T> {
  try {
    return await build()
  } catch (error) {
    await runtime.close()
    throw error
  }
}
