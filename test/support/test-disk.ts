/** A protocol driver over a plain buffer, with limits, faults and latches that a test sets. */
import {
  type BlockDriver,
  type BlockLimits,
  type DriverDefinition,
  NO_LIMITS,
} from '../../src/block/driver.ts'
import { BlockError } from '../../src/util/errors.ts'
import type { Latch } from './graph.ts'

/** What a request to the disk looked like. */
export type Op = readonly [op: string, offset: number, bytes: number]

/** One disk; its definition opens it under the driver name `test`. */
export class TestDisk {
  readonly data: Uint8Array
  limits: BlockLimits
  readonly log: Op[] = []
  /** Fails the next request of that kind. */
  readonly failNext: Map<string, BlockError> = new Map()
  /** Requests of that kind wait here. */
  readonly hold: Map<string, Latch> = new Map()
  zeroes: 'none' | 'yes' | 'refuse' = 'none'
  readonly definition: DriverDefinition

  constructor(size: number, limits: Partial<BlockLimits> = {}) {
    this.data = new Uint8Array(size)
    this.limits = { ...NO_LIMITS, ...limits }
    this.definition = { name: 'test', kind: 'protocol', open: async () => this.#driver() }
  }

  async #step(op: string, offset: number, bytes: number): Promise<void> {
    this.log.push([op, offset, bytes])
    const failure = this.failNext.get(op)
    this.failNext.delete(op)
    await this.hold.get(op)?.promise
    if (failure !== undefined) throw failure
  }

  #driver(): BlockDriver {
    const limits = () => this.limits
    return {
      length: () => this.data.length,
      get limits() {
        return limits()
      },
      writeFlags: 0,
      zeroesFlags: 0,
      pread: async (offset, buf) => {
        await this.#step('read', offset, buf.length)
        buf.set(this.data.subarray(offset, offset + buf.length))
      },
      pwrite: async (offset, buf) => {
        await this.#step('write', offset, buf.length)
        this.data.set(buf, offset)
      },
      pwriteZeroes: async (offset, bytes) => {
        await this.#step('zeroes', offset, bytes)
        if (this.zeroes !== 'yes') throw new BlockError('ENOTSUP', 'no zero writes')
        this.data.fill(0, offset, offset + bytes)
      },
      pdiscard: (offset, bytes) => this.#step('discard', offset, bytes),
      flush: (toDisk) => this.#step(toDisk ? 'flush' : 'flush-os', 0, 0),
      close: () => undefined,
    }
  }
}
