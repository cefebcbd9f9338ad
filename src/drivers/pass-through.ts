/**
 * What filters with one child share: every request goes to the child as it came.
 *
 * Invariants:
 * - A filter says only what it does otherwise; a request that it does not name is not changed.
 */
import type { BlockChild } from '../block/child.ts'
import type { BlockDriver, BlockLimits } from '../block/driver.ts'
import { FLAG, NO_LIMITS } from '../block/driver.ts'
import type { Pending } from '../coroutine/coroutine.ts'

/** The plain half of a filter. */
export class PassThrough implements BlockDriver {
  readonly limits: BlockLimits
  readonly writeFlags: number = FLAG.FUA | FLAG.WRITE_UNCHANGED
  readonly zeroesFlags: number = FLAG.FUA | FLAG.MAY_UNMAP | FLAG.WRITE_UNCHANGED
  /** The child that is filtered. */
  protected readonly file: BlockChild

  constructor(file: BlockChild, limits: BlockLimits = NO_LIMITS) {
    this.file = file
    this.limits = limits
  }

  length(): number {
    return this.file.length()
  }

  pread(offset: number, buf: Uint8Array): Pending {
    return this.file.pread(offset, buf)
  }

  pwrite(offset: number, buf: Uint8Array, flags: number): Pending {
    return this.file.pwrite(offset, buf, flags)
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Pending {
    return this.file.pwriteZeroes(offset, bytes, flags)
  }

  pdiscard(offset: number, bytes: number): Pending {
    return this.file.pdiscard(offset, bytes)
  }

  close(): void {
    // The child belongs to the block layer.
  }
}
