import { AioContext } from '../../../src/aio/aio-context.ts'
import { BlockBackend } from '../../../src/block/backend.ts'
import type { BlockdevOptions, DriverDefinition } from '../../../src/block/driver.ts'
import { PERM } from '../../../src/block/driver.ts'
import { BlockGraph } from '../../../src/block/graph.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { commitFilterDriver } from '../../../src/drivers/commit-filter.ts'
import { memoryDriver } from '../../../src/drivers/memory.ts'
import { jobRegistry } from '../../../src/job/host.ts'
import { WorkerPool } from '../../../src/job/pool.ts'
import type { JobRegistry } from '../../../src/job/registry.ts'

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
  const graph = new BlockGraph({ ctx, drivers: [memoryDriver, commitFilterDriver, ...more] })
  const registry = jobRegistry(graph)
  const pool = new WorkerPool()
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
