/**
 * Memory disks that are slow, fail, tear writes and run full, on a virtual clock and from a seed.
 *
 * Invariants:
 * - A write that failed is not applied later; a torn one applied a prefix of whole pages.
 * - There is no description of such a disk, so no thread is used for it.
 */
import type { BlockDriver, DriverDefinition } from '../../src/block/driver.ts'
import { memoryDriver } from '../../src/drivers/memory.ts'
import type { Clock } from '../../src/util/clock.ts'
import { BlockError, ioError } from '../../src/util/errors.ts'
import type { Random } from '../../src/util/random.ts'

/** Unit in which content is tracked, in bytes. */
export const PAGE = 4096

/** How likely what is. */
export interface Faults {
  readonly read: number
  readonly write: number
  /** The disk is full: every write fails. */
  readonly full: boolean
  /** Share of requests that hang for up to seconds. */
  readonly stall: number
  /** How likely the disk cannot be emptied. */
  readonly empty: number
}

/** No faults at all. */
export const SOUND: Faults = { read: 0, write: 0, full: false, stall: 0, empty: 0 }

/** Longest stall in milliseconds. */
const STALL_MS = 4000

/** What the disks of one history share. */
export interface DiskWorld {
  readonly clock: Clock
  readonly random: Random
  readonly trace: (line: string) => void
  /** Share of requests that finish inline. */
  readonly inline: number
  /** Longest delay in milliseconds. */
  readonly delayMs: number
}

/** One disk. */
export class SimDisk {
  readonly name: string
  faults: Faults = SOUND
  /** Acknowledges writes of this page without doing them. */
  lieAt = -1
  /** How many requests were failed. */
  injected = 0
  /** Called after bytes changed. */
  applied: (offset: number, bytes: number) => void = () => undefined
  readonly #world: DiskWorld
  #inner: BlockDriver | undefined

  constructor(name: string, world: DiskWorld) {
    this.name = name
    this.#world = world
  }

  /** The memory below, which neither delays nor fails. */
  get inner(): BlockDriver {
    if (this.#inner === undefined) throw new Error(`disk ${this.name} is not open`)
    return this.#inner
  }

  /** Whether this layer itself holds the page. */
  holds(page: number): boolean {
    const status = this.inner.blockStatus?.(page * PAGE, PAGE)
    if (status === undefined || status instanceof Promise) throw new Error('memory answers inline')
    return (status.flags & 0x10) !== 0
  }

  /** The first word of a page that this layer holds. */
  tagOf(page: number): number {
    const buf = new Uint8Array(PAGE)
    if (this.inner.pread(page * PAGE, buf) !== undefined) throw new Error('memory answers inline')
    return tagIn(buf, 0)
  }

  open(inner: BlockDriver): BlockDriver {
    this.#inner = inner
    const { writeFlags, zeroesFlags } = inner
    return {
      length: () => inner.length(),
      limits: inner.limits,
      writeFlags,
      zeroesFlags,
      pread: (offset, buf) => this.#run('read', offset, buf.length, () => inner.pread(offset, buf)),
      pwrite: (offset, buf, flags) => this.#write(offset, buf, flags),
      pwriteZeroes: (offset, bytes, flags) =>
        this.#run('write', offset, bytes, () => inner.pwriteZeroes?.(offset, bytes, flags)),
      pdiscard: (offset, bytes) =>
        this.#run('write', offset, bytes, () => inner.pdiscard?.(offset, bytes)),
      flush: (toDisk) => this.#run('flush', 0, 0, () => inner.flush?.(toDisk)),
      blockStatus: (offset, bytes) => inner.blockStatus?.(offset, bytes) ?? { flags: 1, bytes },
      makeEmpty: () => this.#empty(),
      reopenPrepare: (target) =>
        inner.reopenPrepare?.(target) ?? { commit: () => undefined, abort: () => undefined },
      close: () => inner.close(),
    }
  }

  #write(offset: number, buf: Uint8Array, flags: number): Promise<void> | undefined {
    const { inner } = this
    const whole = () => inner.pwrite(offset, buf, flags)
    if (this.lieAt >= 0 && Math.floor(offset / PAGE) === this.lieAt) {
      return this.#run('write', offset, buf.length, () => undefined)
    }
    const pages = Math.floor(buf.length / PAGE)
    const torn = () => {
      const keep = this.#world.random.int(pages + 1) * PAGE
      return keep === 0 ? undefined : inner.pwrite(offset, buf.subarray(0, keep), flags)
    }
    return this.#run('write', offset, buf.length, whole, torn)
  }

  #run(
    op: 'read' | 'write' | 'flush',
    offset: number,
    bytes: number,
    act: () => Promise<void> | undefined,
    torn?: () => Promise<void> | undefined,
  ): Promise<void> | undefined {
    const { random, inline } = this.#world
    const failure = this.#failure(op, offset, bytes)
    const stalls = random.chance(this.faults.stall)
    if (failure === undefined && !stalls && random.chance(inline)) {
      const pending = act()
      if (pending !== undefined) return pending.then(() => this.#done(op, offset, bytes))
      this.#done(op, offset, bytes)
      return undefined
    }
    const ms = stalls ? random.next() * STALL_MS : random.next() ** 4 * this.#world.delayMs
    return this.#later(ms, op, offset, bytes, failure === undefined ? act : torn, failure)
  }

  async #later(
    ms: number,
    op: string,
    offset: number,
    bytes: number,
    act: (() => Promise<void> | undefined) | undefined,
    failure: BlockError | undefined,
  ): Promise<void> {
    const { clock, trace } = this.#world
    await new Promise<void>((resolve) => void clock.setTimer(ms, resolve))
    const pending = act?.()
    if (pending !== undefined) await pending
    this.#done(op, offset, bytes)
    if (failure === undefined) return
    trace(`disk ${this.name} ${op} ${offset}+${bytes} ${failure.code}`)
    throw failure
  }

  #done(op: string, offset: number, bytes: number): void {
    this.#world.trace(`disk ${this.name} ${op} ${offset}+${bytes}`)
    if (op === 'write') this.applied(offset, bytes)
  }

  #failure(op: string, offset: number, bytes: number): BlockError | undefined {
    const { faults } = this
    const { random } = this.#world
    const context = { node: this.name, offset, bytes, op }
    const full = faults.full && op === 'write'
    if (!full && !random.chance(op === 'read' ? faults.read : faults.write)) return undefined
    this.injected += 1
    return ioError(full ? 'ENOSPC' : 'EIO', context)
  }

  async #empty(): Promise<void> {
    const { clock, random, delayMs } = this.#world
    await new Promise<void>((resolve) => void clock.setTimer(random.next() * delayMs, resolve))
    if (random.chance(this.faults.empty)) {
      this.injected += 1
      this.#world.trace(`disk ${this.name} empty EIO`)
      throw ioError('EIO', { node: this.name, op: 'checkpoint' })
    }
    this.#world.trace(`disk ${this.name} empty`)
    await this.inner.makeEmpty?.()
  }
}

/** The driver of such disks, `sim-memory`; its nodes are found by name. */
export function simDriver(disks: ReadonlyMap<string, SimDisk>): DriverDefinition {
  return {
    name: 'sim-memory',
    kind: memoryDriver.kind,
    supportsBacking: true,
    async open(node, options, opener) {
      const disk = disks.get(node.name)
      if (disk === undefined) throw new BlockError('EINVAL', `No disk '${node.name}'`)
      return disk.open(await memoryDriver.open(node, { ...options, driver: 'memory' }, opener))
    },
  }
}

/** The word that a page is filled with; -1 when it is torn. */
export function tagIn(buf: Uint8Array, page: number): number {
  const words = new Uint32Array(buf.buffer, buf.byteOffset + page * PAGE, PAGE / 4)
  const tag = words[0] ?? -1
  return words.every((word) => word === tag) ? tag : -1
}

/** Pages filled with a word. */
export function pagesOf(tag: number, pages: number): Uint8Array {
  return new Uint8Array(new Uint32Array((pages * PAGE) / 4).fill(tag).buffer)
}
