/**
 * `compress`: asks the format below to compress whatever is written.
 *
 * Invariants:
 * - Writes reach the format as whole clusters, as far as clusters of that size can be asked for.
 */
import type { BlockChild } from '../block/child.ts'
import type {
  BlockDriver,
  BlockdevRef,
  BlockLimits,
  DriverDefinition,
  PreparedReopen,
} from '../block/driver.ts'
import { FLAG, NO_LIMITS } from '../block/driver.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { BlockError } from '../util/errors.ts'

/** Largest alignment that the block layer keeps, in bytes. */
const ALIGNMENT_MAX = 65536

class CompressDriver implements BlockDriver {
  readonly limits: BlockLimits
  readonly writeFlags: number = FLAG.FUA | FLAG.WRITE_UNCHANGED
  readonly zeroesFlags: number = FLAG.FUA | FLAG.MAY_UNMAP | FLAG.WRITE_UNCHANGED
  readonly #file: BlockChild

  constructor(file: BlockChild) {
    const clusterBytes = file.node.driver?.limits.clusterSize ?? 0
    this.#file = file
    this.limits = {
      ...NO_LIMITS,
      requestAlignment: Math.max(1, Math.min(clusterBytes, ALIGNMENT_MAX)),
    }
  }

  length(): number {
    return this.#file.length()
  }

  pread(offset: number, buf: Uint8Array): Pending {
    return this.#file.pread(offset, buf)
  }

  pwrite(offset: number, buf: Uint8Array, flags: number): Pending {
    // The last cluster of the disk need not be whole.
    const inside = buf.subarray(0, Math.max(0, this.length() - offset))
    return this.#file.pwrite(offset, inside, flags | FLAG.WRITE_COMPRESSED)
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Pending {
    return this.#file.pwriteZeroes(offset, bytes, flags)
  }

  pdiscard(offset: number, bytes: number): Pending {
    return this.#file.pdiscard(offset, bytes)
  }

  reopenPrepare(): PreparedReopen {
    return { commit: () => undefined, abort: () => undefined }
  }

  close(): void {
    // The child belongs to the block layer.
  }
}

/** `compress`: option `file`, a format that can compress. */
export const compressDriver: DriverDefinition = {
  name: 'compress',
  kind: 'filter',
  async open(node, options, opener) {
    const file = await opener.open('file', options.file as BlockdevRef, 'filtered')
    const flags = file.node.driver?.writeFlags ?? 0
    if ((flags & FLAG.WRITE_COMPRESSED) !== 0) return new CompressDriver(file)
    throw new BlockError(
      'ENOTSUP',
      `Compression is not supported for underlying format: ${file.node.definition.name}`,
      { node: node.name },
    )
  },
}
