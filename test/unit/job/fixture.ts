import { AioContext } from '../../../src/aio/aio-context.ts'
import { BlockBackend } from '../../../src/block/backend.ts'
import type { BlockdevOptions, DriverDefinition } from '../../../src/block/driver.ts'
import { NO_LIMITS, PERM } from '../../../src/block/driver.ts'
import { BlockGraph } from '../../../src/block/graph.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { commitFilterDriver, commitTopDriver } from '../../../src/drivers/commit-filter.ts'
import { memoryDriver } from '../../../src/drivers/memory.ts'
import { jobRegistry } from '../../../src/job/host.ts'
import { WorkerPool } from '../../../src/job/pool.ts'
import type { JobRegistry } from '../../../src/job/registry.ts'
import type { BlockError } from '../../../src/util/errors.ts'

/** A graph with jobs, and events as strings. */
export interface Bench extends AsyncDisposable {
  readonly graph: BlockGraph
  readonly registry: JobRegistry
  readonly pool: WorkerPool
  readonly events: string[]
  add(options: BlockdevOptions): Promise<BlockNode>
  guest(node: BlockNode): Promise<BlockBackend>
}

/** Builds one; everything is closed at the end of the scope. */
export function bench(...more: DriverDefinition[]): Bench {
  const ctx = new AioContext()
  const graph = new BlockGraph({
    ctx,
    drivers: [memoryDriver, commitFilterDriver, commitTopDriver, ...more],
  })
  const registry = jobRegistry(graph)
  const pool = new WorkerPool({ keep: 2 })
  const events: string[] = []
  const backends: BlockBackend[] = []
  graph.events.onAny((name, data) => {
    events.push(typeof data.status === 'string' ? data.status : name)
  })
  return {
    graph,
    registry,
    pool,
    events,
    add: (options) => graph.add(options),
    async guest(node) {
      const backend = await BlockBackend.create(graph, node, {
        perm: PERM.CONSISTENT_READ | (node.readOnly ? 0 : PERM.WRITE),
        shared: PERM.CONSISTENT_READ | PERM.WRITE | PERM.WRITE_UNCHANGED,
      })
      backends.push(backend)
      return backend
    },
    async [Symbol.asyncDispose]() {
      await registry.cancelAll()
      for (const backend of backends) await backend.close()
      await graph.close()
      await pool.close()
      await ctx.close()
    },
  }
}

/** Bytes of one value. */
export function pattern(value: number, bytes: number): Uint8Array {
  return new Uint8Array(bytes).fill(value)
}

/** Reads through anything that reads. */
export async function readAt(
  from: { pread(offset: number, buf: Uint8Array): Promise<void> | undefined },
  offset: number,
  bytes: number,
): Promise<Uint8Array> {
  const buf = new Uint8Array(bytes)
  await from.pread(offset, buf)
  return buf
}

/** Whether every byte has one value; cheap, unlike comparing arrays element by element. */
export function isAll(buf: Uint8Array, value: number): boolean {
  return Buffer.compare(buf, pattern(value, buf.length)) === 0
}

/** Lets the host loop turn once. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

/** Waits, turn by turn, until a condition holds. */
export async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await turn()
}

/** A disk in plain memory that no worker can attach; `fail` makes the next writes fail. */
export interface PlainDisk {
  readonly definition: DriverDefinition
  readonly data: Uint8Array
  readonly fail: BlockError[]
}

/** Makes one, under the driver name `plain`. */
export function plainDisk(size: number): PlainDisk {
  const data = new Uint8Array(size)
  const fail: BlockError[] = []
  const definition: DriverDefinition = {
    name: 'plain',
    kind: 'protocol',
    async open() {
      return {
        limits: NO_LIMITS,
        writeFlags: 0,
        zeroesFlags: 0,
        length: () => data.length,
        async pread(offset, buf) {
          await turn()
          buf.set(data.subarray(offset, offset + buf.length))
        },
        async pwrite(offset, buf) {
          await turn()
          const error = fail.shift()
          if (error !== undefined) throw error
          data.set(buf, offset)
        },
        reopenPrepare: () => ({ commit: () => undefined, abort: () => undefined }),
        close: () => undefined,
      }
    },
  }
  return { definition, data, fail }
}
