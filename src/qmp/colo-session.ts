/**
 * A COLO session of a program that has disks and no guest: who leads, when to checkpoint, how it ends.
 *
 * Invariants:
 * - The primary orders a start and every checkpoint; the secondary only obeys, and keeps its disks as
 *   they are when the primary falls silent, until somebody says who lives on.
 * - A session whose connection or checkpoint failed sends `COLO_EXIT` once and checkpoints no more.
 * - Only `lostHeartbeat` and the peer's `stop` leave the mode.
 */
import net from 'node:net'
import type { BlockEvents } from '../block/events.ts'
import type { Clock, TimerHandle } from '../util/clock.ts'
import { asBlockError, BlockError } from '../util/errors.ts'
import { ColoLink, type ColoLinkOwner, type ColoOrder } from './colo-link.ts'
import type { RunState } from './run-state.ts'
import type { ReplicationControl } from './services.ts'
import { dial, listenOn, type MonitorAddress, parseMonitorAddress } from './socket.ts'

/** Which side of a pair this program is. */
export type ColoMode = 'none' | 'primary' | 'secondary'

/** What managers read of a session. */
export interface ColoStatus {
  readonly mode: ColoMode
  readonly 'last-mode': ColoMode
  /** Why the last session ended. */
  readonly reason: 'none' | 'request' | 'error'
}

/** How far `migrate` or `migrate-incoming` came. */
export interface MigrationStatus {
  readonly status: 'setup' | 'colo' | 'completed' | 'failed'
  /** Why it failed. */
  readonly 'error-desc'?: string
}

/** What a session works with. */
export interface ColoOptions {
  readonly replication: ReplicationControl
  readonly events: BlockEvents
  readonly runState: RunState
  readonly clock: Clock
}

/** Milliseconds between checkpoints unless told otherwise. */
const DEFAULT_DELAY_MS = 20_000

/** The session of a program; at most one at a time. */
export class ColoSession implements ColoLinkOwner {
  /** Send `MIGRATION` events. */
  wantsEvents = false
  /** The capability `x-colo`: a migration starts a session. */
  enabled = false
  readonly #options: ColoOptions
  #delayMs = DEFAULT_DELAY_MS
  #mode: ColoMode = 'none'
  #lastMode: ColoMode = 'none'
  #reason: ColoStatus['reason'] = 'none'
  #migration: MigrationStatus | undefined
  #server: net.Server | undefined
  #link: ColoLink | undefined
  #timer: TimerHandle | undefined
  #closed = false

  constructor(options: ColoOptions) {
    this.#options = options
  }

  /** The state of the session. */
  get status(): ColoStatus {
    return { mode: this.#mode, 'last-mode': this.#lastMode, reason: this.#reason }
  }

  /** The state of the last migration; undefined when there was none. */
  get migration(): MigrationStatus | undefined {
    return this.#migration
  }

  /** Milliseconds between checkpoints. */
  get delayMs(): number {
    return this.#delayMs
  }

  set delayMs(ms: number) {
    this.#delayMs = ms
    if (this.#timer !== undefined) this.#arm()
  }

  /** Becomes the primary of whoever listens there; goes on in the background. Errors: EINVAL, EBUSY. */
  migrate(uri: string): void {
    const address = controlAddress(uri)
    if (this.#server !== undefined)
      throw new BlockError('EBUSY', 'Guest is waiting for an incoming migration')
    if (this.#mode !== 'none' || this.#migration?.status === 'setup')
      throw new BlockError('EBUSY', "There's a migration process in progress")
    if (!this.enabled)
      throw new BlockError('ENOTSUP', "Without the capability 'x-colo' there is nothing to migrate")
    this.#migrationIs({ status: 'setup' })
    void this.#lead(address)
  }

  /** Waits for a primary at that address. Errors: EINVAL, EBUSY, those of the address. */
  async migrateIncoming(uri: string): Promise<void> {
    const address = controlAddress(uri)
    if (this.#server !== undefined || this.#mode !== 'none')
      throw new BlockError('EBUSY', 'The incoming migration has already been started')
    const server = net.createServer((socket) => this.#accepted(socket))
    this.#server = server
    try {
      await listenOn(server, address)
    } catch (error) {
      this.#server = undefined
      throw error
    }
    this.#options.runState.waiting = true
    this.#migrationIs({ status: 'setup' })
  }

  /** The peer is dead: this side lives on. Errors: EINVAL without a session, those of the stop. */
  async lostHeartbeat(): Promise<void> {
    const mode = this.#mode
    if (mode === 'none') throw new BlockError('EINVAL', "The feature 'colo' is not enabled")
    const { replication, runState } = this.#options
    this.#unlink()
    const running = runState.status === 'running'
    if (mode === 'secondary' && running) runState.stop()
    try {
      await replication.stopAll(mode === 'secondary')
    } finally {
      if (mode === 'secondary' && running) runState.cont()
    }
    if (this.#reason !== 'error') this.#exited(mode, 'request')
    this.#leave(mode, 'request')
    this.#migrationIs({ status: 'completed' })
  }

  /** Carries out what the primary orders. */
  async order(order: ColoOrder): Promise<void> {
    const { replication, runState } = this.#options
    if (order === 'start') {
      await replication.startAll('secondary')
      this.#mode = 'secondary'
      this.#reason = 'none'
      runState.waiting = false
      this.#stopListening()
      this.#migrationIs({ status: 'colo' })
      return
    }
    if (this.#mode !== 'secondary')
      throw new BlockError('EINVAL', "The feature 'colo' is not enabled")
    if (order === 'checkpoint') return replication.checkpointAll()
    await replication.stopAll(false)
    this.#leave('secondary', 'request')
    this.#migrationIs({ status: 'completed' })
  }

  /** The connection to the peer ended. */
  ended(error: BlockError): void {
    this.#unlink()
    this.#fail(error)
  }

  /** Ends what waits; disks stay as they are. */
  close(): void {
    this.#closed = true
    this.#unlink()
    this.#stopListening()
  }

  async #lead(address: MonitorAddress): Promise<void> {
    const { replication } = this.#options
    try {
      const socket = await dial(address)
      const link = new ColoLink(socket, this)
      if (this.#closed) return link.close()
      this.#link = link
      await link.ask('start')
      try {
        await replication.startAll('primary')
      } catch (error) {
        await link.ask('stop').catch(() => undefined)
        throw error
      }
      this.#mode = 'primary'
      this.#reason = 'none'
      this.#migrationIs({ status: 'colo' })
      if (this.#link === link) this.#arm()
      else this.#fail(new BlockError('ESHUTDOWN', 'The control connection ended'))
    } catch (error) {
      this.#unlink()
      this.#migrationIs({ status: 'failed', 'error-desc': asBlockError(error).message })
    }
  }

  #accepted(socket: net.Socket): void {
    if (this.#link === undefined) this.#link = new ColoLink(socket, this)
    else socket.destroy()
  }

  #arm(): void {
    this.#timer?.cancel()
    this.#timer = this.#options.clock.setTimer(this.#delayMs, () => void this.#checkpoint())
  }

  async #checkpoint(): Promise<void> {
    const link = this.#link
    if (link === undefined) return
    this.#timer = undefined
    try {
      await this.#options.replication.checkpointAll()
      await link.ask('checkpoint')
    } catch (error) {
      if (this.#link === link) this.ended(asBlockError(error))
      return
    }
    if (this.#link === link) this.#arm()
  }

  #fail(error: BlockError): void {
    if (this.#mode === 'none' || this.#reason === 'error') return
    this.#reason = 'error'
    this.#exited(this.#mode, 'error')
    this.#migrationIs({ status: 'failed', 'error-desc': error.message })
  }

  #exited(mode: ColoMode, reason: string): void {
    this.#options.events.emit('COLO_EXIT', { mode, reason })
  }

  #leave(mode: ColoMode, reason: ColoStatus['reason']): void {
    this.#lastMode = mode
    this.#mode = 'none'
    this.#reason = reason
  }

  #migrationIs(migration: MigrationStatus): void {
    this.#migration = migration
    if (this.wantsEvents) this.#options.events.emit('MIGRATION', { status: migration.status })
  }

  #unlink(): void {
    this.#timer?.cancel()
    this.#timer = undefined
    const link = this.#link
    this.#link = undefined
    link?.close()
  }

  #stopListening(): void {
    this.#server?.close()
    this.#server = undefined
  }
}

function controlAddress(uri: string): MonitorAddress {
  try {
    return parseMonitorAddress(uri)
  } catch (error) {
    const words = "Parameter 'uri' expects a valid migration protocol"
    throw new BlockError('EINVAL', words, {}, error)
  }
}
