/**
 * `compress`: asks the format below to compress whatever is written.
 *
 * Invariants:
 * - Writes reach the format as whole clusters, as far as clusters of that size can be asked for.
 */
import type { BlockChild } from '../block/child.ts'
import type { BlockdevRef, DriverDefinition } from '../block/driver.ts'
import { FLAG, NO_LIMITS } from '../block/driver.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { BlockError } from '../util/errors.ts'
import { PassThrough } from './pass-through.ts'

/** Largest alignment that the block layer keeps, in bytes. */
const ALIGNMENT_MAX = 65536

class CompressDriver extends PassThrough {
  readonly cutsLastBlock = true

  constructor(file: BlockChild) {
    const clusterBytes = file.node.driver?.limits.clusterSize ?? 0
    super(file, {
      ...NO_LIMITS,
      requestAlignment: Math.max(1, Math.min(clusterBytes, ALIGNMENT_MAX)),
    })
  }

  override pwrite(offset: number, buf: Uint8Array, flags: number): Pending {
    // The last cluster of the disk need not be whole.
    const inside = buf.subarray(0, Math.max(0, this.length() - offset))
    return this.file.pwrite(offset, inside, flags | FLAG.WRITE_COMPRESSED)
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
