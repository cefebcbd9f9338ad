/**
 * Filter `throttle`: requests of all members of a group share the group's limits.
 *
 * Invariants:
 * - Within a group and a direction requests pass in the order in which they came.
 * - While a member is drained nothing of it waits.
 * - Without a limit that applies a request passes inline.
 */
import type { AioContext } from '../aio/aio-context.ts'
import type { AioTimer } from '../aio/timer.ts'
import type { BlockChild } from '../block/child.ts'
import type {
  BlockDriver,
  BlockdevOptions,
  BlockdevRef,
  BlockLimits,
  ChildOpener,
  DriverDefinition,
  ImageInfo,
  PreparedReopen,
  ReopenTarget,
} from '../block/driver.ts'
import { FLAG, NO_LIMITS } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import type { MaybePromise, Pending } from '../coroutine/coroutine.ts'
import { BlockError } from '../util/errors.ts'
import type { LimitName, ThrottleLimits } from './throttle-limits.ts'
import { checkLimits, LeakyBucket, LIMIT_NAMES } from './throttle-limits.ts'

const PASSED_FLAGS = FLAG.FUA | FLAG.WRITE_UNCHANGED | FLAG.SERIALISING | FLAG.WRITE_COMPRESSED

type Direction = 'read' | 'write'

interface Waiter {
  readonly member: object
  readonly bytes: number
  readonly pass: () => void
}

/** A group: limits, buckets and who waits. */
export class ThrottleGroup {
  /** Its name. */
  readonly name: string
  /** Nodes that use it. */
  readonly members: Set<object> = new Set()
  readonly #ctx: AioContext
  readonly #queues: Record<Direction, Waiter[]> = { read: [], write: [] }
  readonly #timers: Record<Direction, AioTimer>
  readonly #buckets = new Map<LimitName, LeakyBucket>()
  #limits: Readonly<Record<string, number>>
  #lastMs: number

  /** Errors: EINVAL for limits that make no sense. */
  constructor(ctx: AioContext, name: string, limits: ThrottleLimits) {
    this.#ctx = ctx
    this.name = name
    this.#limits = checkLimits(limits)
    this.#timers = { read: this.#timer('read'), write: this.#timer('write') }
    this.#lastMs = ctx.clock.nowMs()
    this.#fillBuckets()
  }

  /** All limits by name, defaults included. */
  get limits(): Readonly<Record<string, number>> {
    return this.#limits
  }

  /** Changes the limits given and leaves the others; who waits is looked at anew. Errors: EINVAL. */
  setLimits(limits: ThrottleLimits): void {
    this.#limits = checkLimits({ ...this.#limits, ...limits })
    this.#fillBuckets()
    this.#pump('read')
    this.#pump('write')
  }

  /** Requests that wait. */
  get waiting(): number {
    return this.#queues.read.length + this.#queues.write.length
  }

  /** Lets a request of a member pass, at once (undefined) or later. */
  admit(member: object, direction: Direction, bytes: number): Pending {
    if (this.#queues[direction].length === 0 && this.#waitMs(direction) === 0) {
      this.#account(direction, bytes)
      return undefined
    }
    return new Promise((resolve) => {
      this.#queues[direction].push({ member, bytes, pass: resolve })
      this.#arm(direction)
    })
  }

  /** Lets everything of a member pass now. */
  releaseAll(member: object): void {
    for (const direction of ['read', 'write'] as const) {
      const queue = this.#queues[direction]
      this.#queues[direction] = queue.filter((waiter) => waiter.member !== member)
      for (const waiter of queue) {
        if (waiter.member !== member) continue
        this.#account(direction, waiter.bytes)
        waiter.pass()
      }
      this.#arm(direction)
    }
  }

  /** Counts a request that passed without asking. */
  account(direction: Direction, bytes: number): void {
    this.#account(direction, bytes)
  }

  #timer(direction: Direction): AioTimer {
    return this.#ctx.timer(() => this.#pump(direction))
  }

  #fillBuckets(): void {
    this.#buckets.clear()
    for (const name of LIMIT_NAMES) {
      const average = this.#limits[name] ?? 0
      if (average === 0) continue
      const max = this.#limits[`${name}-max`] ?? 0
      const seconds = this.#limits[`${name}-max-length`] ?? 1
      this.#buckets.set(name, new LeakyBucket(average, max, seconds))
    }
  }

  #applying(direction: Direction): LimitName[] {
    return ['bps-total', `bps-${direction}`, 'iops-total', `iops-${direction}`]
  }

  #waitMs(direction: Direction): number {
    if (this.#buckets.size === 0) return 0
    const now = this.#ctx.clock.nowMs()
    const passed = Math.max(0, now - this.#lastMs)
    this.#lastMs = now
    for (const bucket of this.#buckets.values()) bucket.leak(passed)
    let wait = 0
    for (const name of this.#applying(direction))
      wait = Math.max(wait, this.#buckets.get(name)?.waitMs() ?? 0)
    return wait
  }

  #account(direction: Direction, bytes: number): void {
    if (this.#buckets.size === 0) return
    const size = this.#limits['iops-size'] ?? 0
    const operations = size > 0 && bytes > size ? bytes / size : 1
    for (const name of this.#applying(direction))
      this.#buckets.get(name)?.add(name.startsWith('bps') ? bytes : operations)
  }

  #pump(direction: Direction): void {
    const queue = this.#queues[direction]
    while (queue.length > 0 && this.#waitMs(direction) === 0) {
      const waiter = queue.shift()
      if (waiter === undefined) break
      this.#account(direction, waiter.bytes)
      waiter.pass()
    }
    this.#arm(direction)
  }

  #arm(direction: Direction): void {
    const timer = this.#timers[direction]
    if (this.#queues[direction].length === 0) timer.del()
    else if (timer.deadlineMs === undefined || this.#waitMs(direction) === 0)
      timer.mod(this.#ctx.clock.nowMs() + Math.max(1, this.#waitMs(direction)))
  }
}

/** The groups of a runtime, by name. */
export class ThrottleGroups {
  readonly #ctx: AioContext
  readonly #groups = new Map<string, ThrottleGroup>()

  constructor(ctx: AioContext) {
    this.#ctx = ctx
  }

  /** The names, oldest first. */
  get names(): string[] {
    return [...this.#groups.keys()]
  }

  /** Makes a group. Errors: EEXIST, EINVAL. */
  add(name: string, limits: ThrottleLimits = {}): ThrottleGroup {
    if (this.#groups.has(name)) {
      const words = `attempt to add duplicate property '${name}' to object (type 'container')`
      throw new BlockError('EEXIST', words)
    }
    const group = new ThrottleGroup(this.#ctx, name, limits)
    this.#groups.set(name, group)
    return group
  }

  /** The group of that name, if there is one. */
  find(name: string): ThrottleGroup | undefined {
    return this.#groups.get(name)
  }

  /** The group of that name. Error: ENOENT. */
  get(name: string): ThrottleGroup {
    const group = this.#groups.get(name)
    if (group !== undefined) return group
    throw new BlockError('ENOENT', `Throttle group '${name}' does not exist`)
  }

  /** Deletes a group. Errors: ENOENT, EBUSY while a node uses it. */
  remove(name: string): void {
    const group = this.#groups.get(name)
    if (group === undefined) throw new BlockError('ENOENT', `object '${name}' not found`)
    if (group.members.size > 0)
      throw new BlockError('EBUSY', `object '${name}' is in use, can not be deleted`)
    this.#groups.delete(name)
  }
}

class ThrottleDriver implements BlockDriver {
  readonly limits: BlockLimits = NO_LIMITS
  readonly writeFlags = PASSED_FLAGS
  readonly zeroesFlags = PASSED_FLAGS | FLAG.MAY_UNMAP
  readonly #groups: ThrottleGroups
  readonly #file: BlockChild
  #group: ThrottleGroup
  #drained = 0

  constructor(groups: ThrottleGroups, group: ThrottleGroup, file: BlockChild) {
    this.#groups = groups
    this.#group = group
    this.#file = file
    group.members.add(this)
  }

  length(): number {
    return this.#file.length()
  }

  filename(): string {
    return this.#file.node.driver?.filename?.() ?? ''
  }

  pread(offset: number, buf: Uint8Array): Pending {
    const wait = this.#admit('read', buf.length)
    if (wait === undefined) return this.#file.pread(offset, buf)
    return wait.then(() => this.#file.pread(offset, buf))
  }

  pwrite(offset: number, buf: Uint8Array, flags: number): Pending {
    const wait = this.#admit('write', buf.length)
    if (wait === undefined) return this.#file.pwrite(offset, buf, flags)
    return wait.then(() => this.#file.pwrite(offset, buf, flags))
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Pending {
    const wait = this.#admit('write', bytes)
    if (wait === undefined) return this.#file.pwriteZeroes(offset, bytes, flags)
    return wait.then(() => this.#file.pwriteZeroes(offset, bytes, flags))
  }

  pdiscard(offset: number, bytes: number): Pending {
    const wait = this.#admit('write', bytes)
    if (wait === undefined) return this.#file.pdiscard(offset, bytes)
    return wait.then(() => this.#file.pdiscard(offset, bytes))
  }

  truncate(size: number): MaybePromise<void> {
    return this.#file.node.driver?.truncate?.(size)
  }

  drainBegin(): void {
    if (this.#drained++ === 0) this.#group.releaseAll(this)
  }

  drainEnd(): void {
    this.#drained--
  }

  reopenPrepare(target: ReopenTarget): PreparedReopen {
    const next = this.#groups.get(String(target.options['throttle-group']))
    // Kept alive until it is known which of the two stays.
    next.members.add(this)
    const before = this.#group
    return {
      commit: () => {
        if (before !== next) before.members.delete(this)
        this.#group = next
      },
      abort: () => {
        if (before !== next) next.members.delete(this)
      },
    }
  }

  info(): MaybePromise<ImageInfo> {
    return this.#file.node.driver?.info?.() ?? {}
  }

  close(): void {
    this.#group.releaseAll(this)
    this.#group.members.delete(this)
  }

  #admit(direction: Direction, bytes: number): Pending {
    if (this.#drained === 0) return this.#group.admit(this, direction, bytes)
    this.#group.account(direction, bytes)
    return undefined
  }
}

/** Driver `throttle` over the groups of one runtime; options `file`, `throttle-group`. */
export function makeThrottleDriver(groups: ThrottleGroups): DriverDefinition {
  return {
    name: 'throttle',
    kind: 'filter',
    changeable: ['throttle-group'],
    required: ['throttle-group'],
    async open(
      _node: BlockNode,
      options: BlockdevOptions,
      opener: ChildOpener,
    ): Promise<BlockDriver> {
      const name = options['throttle-group']
      if (typeof name !== 'string')
        throw new BlockError('EINVAL', "Parameter 'throttle-group' is missing")
      const group = groups.get(name)
      const file = await opener.open('file', options.file as BlockdevRef, 'filtered')
      return new ThrottleDriver(groups, group, file)
    },
  }
}
