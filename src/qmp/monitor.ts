/**
 * The monitor as a whole: every command, every socket, every event.
 *
 * Invariants:
 * - Each connection has a negotiation of its own; events reach every negotiated one.
 * - A command is known by one name in one table; two families never share a name.
 */
import type { AioContext } from '../aio/aio-context.ts'
import { assert } from '../util/errors.ts'
import type { CommandTable } from './command.ts'
import { bitmapCommands, bitmapDeeds } from './commands/bitmaps.ts'
import { chardevCommands } from './commands/chardevs.ts'
import { coloCommands } from './commands/colo.ts'
import { createCommands } from './commands/create.ts'
import { driveCommands, driveDeeds } from './commands/drives.ts'
import { graphDebugCommands } from './commands/graph-debug.ts'
import { humanCommands } from './commands/human.ts'
import { internalSnapshotCommands, internalSnapshotDeeds } from './commands/internal-snapshots.ts'
import { jobCommands } from './commands/jobs.ts'
import { machineCommands } from './commands/machine.ts'
import { nbdCommands } from './commands/nbd.ts'
import { nodeCommands } from './commands/nodes.ts'
import { objectCommands } from './commands/objects.ts'
import { qomTypeCommands } from './commands/qom-types.ts'
import { replicationCommands } from './commands/replication.ts'
import { runStateCommands } from './commands/run-state.ts'
import { sessionCommands } from './commands/session.ts'
import { snapshotCommands, snapshotDeeds } from './commands/snapshots.ts'
import { backupDeeds, startJobCommands } from './commands/start-jobs.ts'
import { statisticsCommands } from './commands/statistics.ts'
import { transactionCommands } from './commands/transaction.ts'
import { yankCommands } from './commands/yank.ts'
import { EVENT_SCHEMAS } from './event-schema.ts'
import type { EventHub } from './events.ts'
import { introspect } from './introspect.ts'
import type { MonitorServices } from './services.ts'
import { type MonitorAddress, MonitorServer } from './socket.ts'

/** Every command of a program. */
export function allCommands(services: MonitorServices): CommandTable {
  const { graph, jobs, exports, colo, objects, replication, runState } = services
  const families: CommandTable[] = [
    sessionCommands({
      names: () => Object.keys(table),
      schema: () => introspect(table, EVENT_SCHEMAS),
      quit: () => services.quit(),
    }),
    runStateCommands(runState),
    nodeCommands(graph),
    jobCommands(jobs, graph.ctx),
    startJobCommands(services),
    createCommands(graph, jobs),
    driveCommands(services),
    bitmapCommands(graph),
    snapshotCommands(graph),
    transactionCommands(graph, {
      ...bitmapDeeds(graph),
      ...snapshotDeeds(graph),
      ...backupDeeds(services),
      ...driveDeeds(services),
      ...internalSnapshotDeeds(graph),
    }),
    nbdCommands(graph, exports, objects),
    replicationCommands(replication, graph),
    coloCommands(colo),
    objectCommands(objects, graph),
    yankCommands(graph),
    humanCommands(graph, jobs),
    statisticsCommands(graph, exports, objects),
    graphDebugCommands(graph),
    qomTypeCommands(),
    internalSnapshotCommands(graph),
    machineCommands(objects),
    chardevCommands(),
  ]
  const table: { [name: string]: CommandTable[string] } = {}
  for (const family of families) {
    for (const [name, command] of Object.entries(family)) {
      assert(!Object.hasOwn(table, name), `command ${name} is defined once`)
      table[name] = command
    }
  }
  return table
}

/** All monitor sockets of a program. */
export class Monitor {
  readonly #commands: CommandTable
  readonly #ctx: AioContext
  readonly #events: EventHub
  readonly #servers: MonitorServer[] = []

  constructor(services: MonitorServices, events: EventHub) {
    this.#commands = allCommands(services)
    this.#ctx = services.graph.ctx
    this.#events = events
  }

  /** What every monitor understands. */
  get commands(): CommandTable {
    return this.#commands
  }

  /** A monitor that listens nowhere yet and greets nobody before it is released. */
  hold(): MonitorServer {
    const server = new MonitorServer(this.#commands, this.#events, this.#ctx, true)
    this.#servers.push(server)
    return server
  }

  /** Opens one more socket. Errors: EBUSY, EEXIST, EINVAL, EACCES. */
  async listen(address: MonitorAddress): Promise<MonitorServer> {
    const server = new MonitorServer(this.#commands, this.#events, this.#ctx)
    await server.listen(address)
    this.#servers.push(server)
    return server
  }

  /** Closes every socket, what was sent before still arrives. */
  async close(): Promise<void> {
    await Promise.all(this.#servers.splice(0).map((server) => server.close()))
  }
}
