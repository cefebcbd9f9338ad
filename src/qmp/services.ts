/**
 * What monitor commands need of the program they run in.
 *
 * Invariants:
 * - The monitor owns none of it: every service lives as long as the runtime, not the connection.
 */
import type { BlockBackend } from '../block/backend.ts'
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import type { WorkerPool } from '../job/pool.ts'
import type { JobRegistry } from '../job/registry.ts'
import type { TlsServerOptions } from '../nbd/tls.ts'
import type { ReplicationStatus } from '../replication/registry.ts'
import type { ColoSession } from './colo-session.ts'
import type { ObjectStore } from './objects.ts'
import type { RunState } from './run-state.ts'

/** A disk to be exported. */
export interface ExportRequest {
  /** Identity for later commands. */
  readonly id: string
  /** Node to export. */
  readonly nodeName: string
  /** Name that clients ask for; the node's when absent. */
  readonly name?: string | undefined
  /** Text that clients are shown. */
  readonly description?: string | undefined
  /** Let clients write; a read-only node is exported read-only all the same. */
  readonly writable?: boolean | undefined
  /** Every write is stable before it is acknowledged. */
  readonly writethrough?: boolean | undefined
  /** One writer at a time, the newest; see `NbdExport.exclusive`. */
  readonly exclusive?: boolean | undefined
  /** Offer the allocation depth. */
  readonly allocationDepth?: boolean | undefined
  /** Dirty bitmaps to offer. */
  readonly bitmaps?: readonly { readonly node: string; readonly name: string }[] | undefined
  /** The name by which the command called the disk, for its refusals. */
  readonly device?: string | undefined
}

/** An export as `query-block-exports` shows it. */
export interface ExportInfo {
  /** What it was added under. */
  readonly id: string
  /** How it is served. */
  readonly type: 'nbd'
  /** The node that it shows. */
  readonly 'node-name': string
  /** It was told to go and waits for its last client. */
  readonly 'shutting-down': boolean
}

/** Where an NBD server listens. */
export type ServerAddress =
  | { readonly type: 'unix'; readonly path: string }
  | { readonly type: 'inet'; readonly host: string; readonly port: number; readonly to?: number }
  | { readonly type: 'fd'; readonly fd: number }

/** The NBD server and what it exports. */
export interface ExportService {
  /** The server runs. */
  readonly running: boolean
  /** Starts to listen. Errors: EBUSY when it runs, those of the address. */
  startServer(
    address: ServerAddress,
    maxConnections?: number,
    tls?: TlsServerOptions,
  ): Promise<void>
  /** Removes every export, cuts every client, stops listening. Errors: EINVAL when it does not run. */
  stopServer(): Promise<void>
  /** Adds an export. Errors: EINVAL, EEXIST, EPERM. */
  add(request: ExportRequest): Promise<void>
  /** Removes one. Errors: ENOENT; EBUSY in `safe` mode while clients are connected. */
  remove(id: string, mode: 'safe' | 'hard'): Promise<void>
  /** The backends of exports by their ids, the oldest first. */
  backends(): ReadonlyMap<string, BlockBackend>
  /** Every export, newest first. */
  list(): ExportInfo[]
}

/** All replication nodes together. */
export interface ReplicationControl {
  /** Starts every one. Errors: EINVAL, EBUSY …; then none is started. */
  startAll(mode: 'primary' | 'secondary'): Promise<void>
  /** Moves every secondary to this point in time. */
  checkpointAll(): Promise<void>
  /** Ends replication; with `failover` the secondary keeps what its guest wrote. */
  stopAll(failover: boolean): Promise<void>
  /** Throws what replication has to complain of. */
  getErrorAll(): void
  /** Every replication node, newest first. */
  list(): ReplicationStatus[]
  /** Sends a primary's missing ranges again, read from `source`. Errors: EINVAL, those of the copy. */
  resync(nodeName: string, source: BlockNode): Promise<void>
  /** Tries the failed merge of a secondary again. Errors: EINVAL when none has failed. */
  retryFailover(nodeName: string): Promise<void>
}

/** Everything that commands reach. */
export interface MonitorServices {
  readonly graph: BlockGraph
  readonly jobs: JobRegistry
  /** The threads that run the bodies of jobs. */
  readonly pool: WorkerPool
  readonly exports: ExportService
  readonly replication: ReplicationControl
  readonly colo: ColoSession
  readonly objects: ObjectStore
  readonly runState: RunState
  /** Asks for an orderly end of the program; returns at once. */
  quit(): void
}
