/**
 * Format `raw`: the bytes of the file child, or a window into them.
 *
 * Invariants:
 * - Byte n of the disk is byte `offset + n` of the child.
 * - A window never reaches beyond the child as it was when the window was set.
 */
import type { BlockChild } from '../block/child.ts'
import type {
  BlockDriver,
  BlockdevOptions,
  BlockdevRef,
  BlockLimits,
  BlockStatus,
  ChildOpener,
  DiskDescription,
  DriverDefinition,
  ImageInfo,
  Permissions,
  PreparedReopen,
  ReopenTarget,
} from '../block/driver.ts'
import { FLAG, NO_LIMITS, PERM, STATUS } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { hasJobAbove } from '../block/replace.ts'
import { nodeTruncate } from '../block/truncate.ts'
import type { MaybePromise, Pending } from '../coroutine/coroutine.ts'
import { BlockError, ioError } from '../util/errors.ts'
import { raiseDebugEvent } from './debug-event.ts'

const SECTOR_BYTES = 512
const PASSED_FLAGS = FLAG.WRITE_UNCHANGED | FLAG.FUA | FLAG.SERIALISING

interface Window {
  readonly offset: number
  /** Undefined: as long as the child. */
  readonly size: number | undefined
}

function byteOption(options: BlockdevOptions, name: string): number | undefined {
  const value = options[name]
  if (value === undefined) return undefined
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value
  throw new BlockError('EINVAL', `Parameter '${name}' expects a non-negative number below 2^64`)
}

function windowOf(options: BlockdevOptions, available: number): Window {
  const offset = byteOption(options, 'offset') ?? 0
  const size = byteOption(options, 'size')
  if (offset > available)
    throw new BlockError(
      'EINVAL',
      `Offset (${offset}) cannot be greater than size of the containing file (${available})`,
    )
  if (size !== undefined && offset + size > available)
    throw new BlockError(
      'EINVAL',
      `The sum of offset (${offset}) and size (${size}) has to be smaller or equal to the ` +
        ` actual size of the containing file (${available})`,
    )
  if (size !== undefined && size % SECTOR_BYTES !== 0)
    throw new BlockError('EINVAL', 'Specified size is not multiple of 512')
  return { offset, size }
}

class RawDriver implements BlockDriver {
  readonly limits: BlockLimits = NO_LIMITS
  readonly writeFlags = PASSED_FLAGS
  readonly zeroesFlags = PASSED_FLAGS | FLAG.MAY_UNMAP | FLAG.NO_FALLBACK
  readonly #node: BlockNode
  readonly #file: BlockChild
  #window: Window

  constructor(node: BlockNode, file: BlockChild, window: Window) {
    this.#node = node
    this.#file = file
    this.#window = window
  }

  length(): number {
    const { offset, size } = this.#window
    if (size !== undefined) return size
    return Math.max(0, Math.ceil((this.#file.length() - offset) / SECTOR_BYTES) * SECTOR_BYTES)
  }

  filename(): string {
    return this.#file.node.driver?.filename?.() ?? ''
  }

  pread(offset: number, buf: Uint8Array): Pending {
    raiseDebugEvent(this.#file, 'read_aio')
    return this.#file.pread(this.#window.offset + offset, buf)
  }

  pwrite(offset: number, buf: Uint8Array, flags: number): Pending {
    this.#checkEnd(offset, buf.length)
    raiseDebugEvent(this.#file, 'write_aio')
    return this.#file.pwrite(this.#window.offset + offset, buf, flags)
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Pending {
    this.#checkEnd(offset, bytes)
    return this.#file.pwriteZeroes(this.#window.offset + offset, bytes, flags)
  }

  pdiscard(offset: number, bytes: number): Pending {
    return this.#file.pdiscard(this.#window.offset + offset, bytes)
  }

  blockStatus(offset: number, bytes: number): BlockStatus {
    const map = this.#window.offset + offset
    return { flags: STATUS.RAW | STATUS.OFFSET_VALID, bytes, map, file: this.#file }
  }

  truncate(size: number): MaybePromise<void> {
    if (this.#window.size !== undefined)
      throw new BlockError('ENOTSUP', 'Cannot resize fixed-size raw disks')
    return nodeTruncate(this.#file, this.#window.offset + size)
  }

  reopenPrepare(target: ReopenTarget): PreparedReopen {
    const next = windowOf(target.options, this.#file.length())
    const { offset, size } = this.#window
    const moves = next.offset !== offset || next.size !== size
    if (moves && hasJobAbove(this.#node))
      throw new BlockError('EBUSY', `Cannot move the window of '${this.#node.name}' under a job`)
    return {
      commit: () => {
        this.#window = next
      },
      abort: noop,
    }
  }

  describe(): DiskDescription | undefined {
    const below = this.#file.node.driver?.describe?.()
    if (below === undefined) return undefined
    if (this.#window.offset === 0 && this.#window.size === undefined) return below
    if (below.kind !== 'file') return undefined
    const start = typeof below.offset === 'number' ? below.offset : 0
    return { ...below, offset: start + this.#window.offset, size: this.length() }
  }

  async info(): Promise<ImageInfo> {
    const below = await this.#file.node.driver?.info?.()
    return below?.actualSize === undefined ? {} : { actualSize: below.actualSize }
  }

  close(): void {}

  #checkEnd(offset: number, bytes: number): void {
    const { size } = this.#window
    if (size !== undefined && offset + bytes > size) throw ioError('ENOSPC', { offset, bytes })
  }
}

function noop(): void {}

/** Driver `raw`; options `file`, `offset` and `size` (bytes) of the window. */
export const rawDriver: DriverDefinition = {
  name: 'raw',
  kind: 'format',
  changeable: ['offset', 'size'],
  async open(node: BlockNode, options: BlockdevOptions, opener: ChildOpener): Promise<BlockDriver> {
    const file = await opener.open('file', options.file as BlockdevRef, 'file')
    return new RawDriver(node, file, windowOf(options, file.length()))
  },
  // Nothing of its own lies in the file: it takes and shares what its users do.
  childPermissions(node, _child, above): Permissions {
    // A file that gets another length would move or cut what a window shows.
    const { offset, size } = node.options
    const fixed = size !== undefined || (typeof offset === 'number' && offset > 0)
    const shared = fixed ? above.shared & ~PERM.RESIZE : above.shared
    return { perm: above.perm, shared: shared | PERM.WRITE_UNCHANGED }
  },
}
