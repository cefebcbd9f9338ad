/** Fixtures for tests of the block layer: a graph with memory disks and gated test disks. */
import { AioContext } from '../../src/aio/aio-context.ts'
import { BlockBackend } from '../../src/block/backend.ts'
import type { BlockChild } from '../../src/block/child.ts'
import {
  type BlockDriver,
  type BlockdevRef,
  type DriverDefinition,
  NO_LIMITS,
  PERM,
} from '../../src/block/driver.ts'
import { BlockGraph } from '../../src/block/graph.ts'
import type { BlockNode } from '../../src/block/node.ts'
import { memoryDriver } from '../../src/drivers/memory.ts'

/** A promise and the function that fulfils it. */
export interface Latch {
  readonly promise: Promise<void>
  open(): void
}

/** Makes a latch. */
export function latch(): Latch {
  let open = (): void => undefined
  const promise = new Promise<void>((resolve) => {
    open = resolve
  })
  return { promise, open }
}

/** The edge of a test filter to the node that it filters. */
export function fileChild(node: BlockNode): BlockChild {
  const edge = node.children.get('file')
  if (edge === undefined) throw new Error('no file child')
  return edge
}

/** A filter whose requests wait at a latch, and which counts what reaches it. */
export class HeldDriver {
  readonly counts = { read: 0, write: 0, begin: 0, end: 0 }
  hold: Latch | undefined
  readonly definition: DriverDefinition = {
    name: 'held',
    kind: 'filter',
    open: async (node, options, opener) => {
      const edge = await opener.open('file', options.file as BlockdevRef, 'filtered')
      return this.#driver(node, () => edge.length())
    },
  }

  #driver(node: BlockNode, length: () => number): BlockDriver {
    const below = () => fileChild(node)
    return {
      length,
      limits: NO_LIMITS,
      writeFlags: 0,
      zeroesFlags: 0,
      pread: async (offset, buf) => {
        this.counts.read++
        await this.hold?.promise
        await below().pread(offset, buf)
      },
      pwrite: async (offset, buf, flags) => {
        this.counts.write++
        await this.hold?.promise
        await below().pwrite(offset, buf, flags)
      },
      drainBegin: () => {
        this.counts.begin++
      },
      drainEnd: () => {
        this.counts.end++
      },
      close: () => undefined,
    }
  }
}

/** A graph of memory disks and the given further drivers. */
export function memoryGraph(...more: DriverDefinition[]): BlockGraph {
  return new BlockGraph({ ctx: new AioContext(), drivers: [memoryDriver, ...more] })
}

/** A backend that reads and writes and lets others do the same. */
export function guest(graph: BlockGraph, node: BlockNode): Promise<BlockBackend> {
  return BlockBackend.create(graph, node, {
    perm: PERM.CONSISTENT_READ | PERM.WRITE,
    shared: PERM.CONSISTENT_READ | PERM.WRITE | PERM.WRITE_UNCHANGED,
  })
}

/** Writes a pattern. */
export async function fill(
  user: { pwrite(offset: number, buf: Uint8Array, flags?: number): unknown },
  pattern: number,
  offset: number,
  bytes: number,
): Promise<void> {
  await user.pwrite(offset, new Uint8Array(bytes).fill(pattern))
}

/** The one byte that fills a range, or -1 when there are several. */
export async function patternOf(
  user: { pread(offset: number, buf: Uint8Array): unknown },
  offset: number,
  bytes: number,
): Promise<number> {
  const buf = new Uint8Array(bytes).fill(0xee)
  await user.pread(offset, buf)
  const first = buf[0] ?? -1
  return buf.every((b) => b === first) ? first : -1
}
