/**
 * Protocols `null-co` and `null-aio`: a disk of a given size that keeps nothing.
 *
 * Invariants:
 * - Writes vanish; reads give zeroes, or leave the buffer as it is when `read-zeroes` is off.
 * - With a latency every request takes that long; without, it finishes inline.
 */
import type {
  BlockDriver,
  BlockdevOptions,
  BlockLimits,
  BlockStatus,
  DiskDescription,
  DriverDefinition,
  ImageInfo,
  PreparedReopen,
} from '../block/driver.ts'
import { FLAG, NO_LIMITS, STATUS } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { BlockError, ioError } from '../util/errors.ts'

const DEFAULT_BYTES = 1024 * 1024 * 1024
const SECTOR_BYTES = 512
const NS_PER_MS = 1_000_000

class NullDriver implements BlockDriver {
  readonly limits: BlockLimits = NO_LIMITS
  readonly writeFlags = 0
  readonly zeroesFlags = FLAG.NO_FALLBACK
  readonly #node: BlockNode
  readonly #name: string
  readonly #size: number
  readonly #latencyMs: number
  readonly #zeroes: boolean

  constructor(node: BlockNode, options: BlockdevOptions) {
    this.#node = node
    this.#name = options.driver
    this.#size = Math.ceil(numberOf(options, 'size', DEFAULT_BYTES) / SECTOR_BYTES) * SECTOR_BYTES
    this.#latencyMs = numberOf(options, 'latency-ns', 0) / NS_PER_MS
    this.#zeroes = options['read-zeroes'] === true
  }

  length(): number {
    return this.#size
  }

  filename(): string {
    return `${this.#name}://`
  }

  info(): ImageInfo {
    return { actualSize: 0 }
  }

  pread(_offset: number, buf: Uint8Array): Pending {
    if (this.#zeroes) buf.fill(0)
    return this.#delay()
  }

  pwrite(): Pending {
    return this.#delay()
  }

  // Zeroes take as long as data here.
  pwriteZeroes(offset: number, bytes: number, flags: number): Pending {
    if ((flags & FLAG.NO_FALLBACK) !== 0)
      throw ioError('ENOTSUP', { node: this.#node.name, offset, bytes, op: 'write-zeroes' })
    return this.#delay()
  }

  flush(): Pending {
    return this.#delay()
  }

  blockStatus(offset: number, bytes: number): BlockStatus {
    const zero = this.#zeroes ? STATUS.ZERO : STATUS.DATA
    return { flags: zero | STATUS.ALLOCATED | STATUS.OFFSET_VALID, bytes, map: offset }
  }

  reopenPrepare(): PreparedReopen {
    return { commit: noop, abort: noop }
  }

  describe(): DiskDescription | undefined {
    if (this.#latencyMs > 0) return undefined
    return { kind: 'null', size: this.#size, readZeroes: this.#zeroes }
  }

  close(): void {}

  #delay(): Pending {
    if (this.#latencyMs === 0) return undefined
    return this.#node.graph.ctx.sleep(this.#latencyMs)
  }
}

function noop(): void {}

function numberOf(options: BlockdevOptions, name: string, byDefault: number): number {
  const value = options[name]
  if (value === undefined) return byDefault
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value
  throw new BlockError('EINVAL', `${name} is invalid`)
}

function definition(name: string): DriverDefinition {
  return {
    name,
    kind: 'protocol',
    async open(node: BlockNode, options: BlockdevOptions): Promise<BlockDriver> {
      return new NullDriver(node, options)
    },
  }
}

/** Driver `null-co`; options `size` (bytes, default 1 GiB), `latency-ns`, `read-zeroes`. */
export const nullCoDriver: DriverDefinition = definition('null-co')

/** Driver `null-aio`: the same under the name that older configurations use. */
export const nullAioDriver: DriverDefinition = definition('null-aio')
