/** A filter over any disk that can hold, slow down and fail requests by their kind, from outside. */
import {
  type BlockDriver,
  type BlockdevRef,
  type BlockStatus,
  type DriverDefinition,
  FLAG,
  NO_LIMITS,
  STATUS,
} from '../../src/block/driver.ts'
import type { BlockNode } from '../../src/block/node.ts'
import { type ErrorCode, ioError } from '../../src/util/errors.ts'
import { fileChild, type Latch, latch } from './graph.ts'

/** Kinds of requests that a tap tells apart. */
export type TapOp = 'read' | 'write' | 'zeroes' | 'discard' | 'flush'

/** One turn of the event loop. */
export const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

/** What is to happen to the requests of one node. */
export class Tap {
  /** Turns of the loop that every request takes longer. */
  slow = 0
  /** Requests that were failed. */
  failed = 0
  readonly #faults = new Map<TapOp, { readonly code: ErrorCode; times: number; skip: number }>()
  readonly #holds = new Map<TapOp, { readonly gate: Latch; readonly arrived: Latch }>()

  /** Fails the next so many requests of a kind. */
  fail(op: TapOp, code: ErrorCode, times = 1): void {
    this.#faults.set(op, { code, times, skip: 0 })
  }

  /** Fails one request of a kind: the nth from now on, which is 1 for the next. */
  failNth(op: TapOp, code: ErrorCode, nth: number): void {
    this.#faults.set(op, { code, times: 1, skip: nth - 1 })
  }

  /** From now on requests of the kind wait; settles when the first one does. */
  hold(op: TapOp): Promise<void> {
    const held = this.#holds.get(op) ?? { gate: latch(), arrived: latch() }
    this.#holds.set(op, held)
    return held.arrived.promise
  }

  /** Lets requests of the kind pass from now on; absent: all. */
  release(only?: TapOp): void {
    for (const [op, { gate }] of [...this.#holds]) {
      if (only !== undefined && only !== op) continue
      gate.open()
      this.#holds.delete(op)
    }
  }

  /** `release`, without faults and delays. */
  clear(): void {
    this.release()
    this.#faults.clear()
    this.slow = 0
  }

  #fault(op: TapOp): { readonly code: ErrorCode } | undefined {
    const fault = this.#faults.get(op)
    if (fault === undefined || --fault.skip >= 0) return undefined
    if (--fault.times <= 0) this.#faults.delete(op)
    return fault
  }

  /** A request arrives. */
  async pass(op: TapOp, node: string, offset: number, bytes: number): Promise<void> {
    const fault = this.#fault(op)
    const held = this.#holds.get(op)
    held?.arrived.open()
    await held?.gate.promise
    for (let n = 0; n < this.slow; n++) await turn()
    if (fault === undefined) return
    this.failed++
    throw ioError(fault.code, { node, offset, bytes, op })
  }
}

/** All taps of a test by the name of their node; one is made when it is first asked for. */
export class Taps {
  readonly #all = new Map<string, Tap>()
  /** Driver `tap`; option `file`. */
  readonly definition: DriverDefinition = {
    name: 'tap',
    kind: 'filter',
    open: async (node, options, opener) => {
      const edge = await opener.open('file', options.file as BlockdevRef, 'filtered')
      return tapDriver(node, this.of(node.name), () => edge.length())
    },
  }

  /** The tap of a node. */
  of(node: string): Tap {
    const found = this.#all.get(node) ?? new Tap()
    this.#all.set(node, found)
    return found
  }

  /** Every tap that was asked for. */
  all(): Tap[] {
    return [...this.#all.values()]
  }

  /** Requests that any of them failed. */
  get failed(): number {
    return this.all().reduce((sum, tap) => sum + tap.failed, 0)
  }
}

function tapDriver(node: BlockNode, tap: Tap, length: () => number): BlockDriver {
  const below = () => fileChild(node)
  return {
    length,
    limits: NO_LIMITS,
    writeFlags: FLAG.FUA | FLAG.WRITE_UNCHANGED,
    zeroesFlags: FLAG.FUA | FLAG.MAY_UNMAP | FLAG.WRITE_UNCHANGED,
    pread: async (offset, buf) => {
      await tap.pass('read', node.name, offset, buf.length)
      await below().pread(offset, buf)
    },
    pwrite: async (offset, buf, flags) => {
      await tap.pass('write', node.name, offset, buf.length)
      await below().pwrite(offset, buf, flags)
    },
    pwriteZeroes: async (offset, bytes, flags) => {
      await tap.pass('zeroes', node.name, offset, bytes)
      await below().pwriteZeroes(offset, bytes, flags)
    },
    pdiscard: async (offset, bytes) => {
      await tap.pass('discard', node.name, offset, bytes)
      await below().pdiscard(offset, bytes)
    },
    flush: () => tap.pass('flush', node.name, 0, 0),
    blockStatus: (offset, bytes): BlockStatus => ({
      flags: STATUS.RAW,
      bytes,
      map: offset,
      file: below(),
    }),
    reopenPrepare: () => ({ commit: () => undefined, abort: () => undefined }),
    close: () => undefined,
  }
}
