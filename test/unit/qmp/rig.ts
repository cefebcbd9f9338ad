/**
 * Every monitor command over a graph of its own, without sockets.
 *
 * Invariants:
 * - `close` leaves nothing open, whatever a test did.
 */
import { AioContext } from '../../../src/aio/aio-context.ts'
import { BlockGraph } from '../../../src/block/graph.ts'
import { makeNbdDriver } from '../../../src/drivers/nbd.ts'
import { ThrottleGroups } from '../../../src/drivers/throttle.ts'
import { jobRegistry } from '../../../src/job/host.ts'
import { WorkerPool } from '../../../src/job/pool.ts'
import type { JobRegistry } from '../../../src/job/registry.ts'
import { ColoSession } from '../../../src/qmp/colo-session.ts'
import type { CommandTable } from '../../../src/qmp/command.ts'
import type { JsonObject, JsonValue } from '../../../src/qmp/json.ts'
import { allCommands } from '../../../src/qmp/monitor.ts'
import { ObjectStore } from '../../../src/qmp/objects.ts'
import { RunState } from '../../../src/qmp/run-state.ts'
import { validate } from '../../../src/qmp/schema.ts'
import type { ReplicationControl } from '../../../src/qmp/services.ts'
import type { ReplicationStatus } from '../../../src/replication/registry.ts'
import { builtinDrivers } from '../../../src/runtime/drivers.ts'
import { Exports } from '../../../src/runtime/exports.ts'
import { objectKinds } from '../../../src/runtime/objects.ts'
import { BlockError } from '../../../src/util/errors.ts'

const session = { negotiate: () => undefined, finish: () => undefined }

/** What a test drives. */
export class Rig {
  readonly graph: BlockGraph = new BlockGraph({ ctx: new AioContext(), drivers: builtinDrivers() })
  readonly exports: Exports = new Exports(this.graph)
  readonly jobs: JobRegistry = jobRegistry(this.graph)
  readonly pool: WorkerPool = new WorkerPool()
  readonly commands: CommandTable
  /** Orders that reached replication, `quit`, and every event as `NAME {data}`. */
  readonly calls: string[] = []
  /** What replication complains of. */
  broken: BlockError | undefined
  /** Orders that fail. */
  failing: Record<string, BlockError> = {}
  /** What replication says of its nodes. */
  statuses: ReplicationStatus[] = []

  readonly colo: ColoSession

  constructor() {
    const objects = new ObjectStore(objectKinds(new ThrottleGroups(this.graph.ctx)))
    const nbd = makeNbdDriver((id) => objects.credentials(id, 'client'))
    this.graph.drivers.set(nbd.name, nbd)
    const runState = new RunState(this.graph.events)
    const { clock } = this.graph.ctx
    const replication: ReplicationControl = {
      startAll: async (mode) => this.#order(`start ${mode}`),
      checkpointAll: async () => this.#order('checkpoint'),
      stopAll: async (failover) => this.#order(`stop ${failover}`),
      getErrorAll: () => {
        if (this.broken !== undefined) throw this.broken
      },
      list: () => this.statuses,
      resync: async (name, source) => this.#order(`resync ${name} from ${source.name}`),
      retryFailover: async (name) => this.#order(`retry ${name}`),
    }
    this.colo = new ColoSession({ replication, events: this.graph.events, runState, clock })
    this.commands = allCommands({
      graph: this.graph,
      jobs: this.jobs,
      pool: this.pool,
      exports: this.exports,
      replication,
      colo: this.colo,
      objects,
      runState,
      quit: () => void this.calls.push('quit'),
    })
    this.graph.events.onAny((name, data) => this.calls.push(`${name} ${JSON.stringify(data)}`))
  }

  #order(text: string): void {
    this.calls.push(text)
    const error = this.failing[text]
    if (error !== undefined) throw error
  }

  /** Runs a command; its result. */
  async run(name: string, args: JsonObject = {}): Promise<JsonValue> {
    const found = this.commands[name]
    if (found === undefined) throw new Error(`no command ${name}`)
    return (await found.run(validate(found.schema, args), session)) ?? {}
  }

  /** Runs a command that must be refused; the sentence, or `accepted`. */
  refused(name: string, args: JsonObject = {}): Promise<string> {
    return this.run(name, args).then(
      () => 'accepted',
      (error: unknown) =>
        error instanceof BlockError ? error.message : `not a BlockError: ${String(error)}`,
    )
  }

  async close(): Promise<void> {
    this.colo.close()
    await this.exports.close()
    await this.jobs.cancelAll()
    await this.graph.close()
    await this.pool.close()
    await this.graph.ctx.close()
  }
}

/** Options of a small memory disk. */
export const memory = (name: string): JsonObject => ({
  driver: 'memory',
  'node-name': name,
  size: 65536,
})
