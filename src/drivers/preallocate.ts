/**
 * `preallocate`: a filter for files that grow. It passes everything through.
 *
 * Invariants:
 * - The content and the length are those of the child; space is taken as writes need it, so the
 *   sizes of the options are checked and remembered only.
 */
import type { BlockdevOptions, BlockdevRef, DriverDefinition } from '../block/driver.ts'
import { PERM } from '../block/driver.ts'
import { BlockError } from '../util/errors.ts'
import { PassThrough } from './pass-through.ts'

const SECTOR_BYTES = 512

class PreallocateDriver extends PassThrough {
  truncate(size: number): void | Promise<void> {
    const truncate = this.file.node.driver?.truncate
    if (truncate === undefined)
      throw new BlockError('ENOTSUP', 'Image format driver does not support resize')
    return this.file.node.driver?.truncate?.(size)
  }
}

function checkSizes(options: BlockdevOptions): void {
  for (const name of ['prealloc-align', 'prealloc-size']) {
    const value = options[name]
    if (value === undefined) continue
    if (typeof value !== 'number' || value < 0)
      throw new BlockError('EINVAL', `Parameter '${name}' expects a non-negative number below 2^64`)
    if (name === 'prealloc-align' && value % SECTOR_BYTES !== 0)
      throw new BlockError(
        'EINVAL',
        'prealloc-align parameter of preallocate filter is not aligned to 512',
      )
  }
}

/** `preallocate`: options `file`, `prealloc-align` and `prealloc-size` (bytes). */
export const preallocateDriver: DriverDefinition = {
  name: 'preallocate',
  kind: 'filter',
  async open(_node, options, opener) {
    const file = await opener.open('file', options.file as BlockdevRef, 'filtered')
    checkSizes(options)
    return new PreallocateDriver(file)
  },
  // Whoever writes may write beyond the end.
  childPermissions(_node, _child, above) {
    const grows = (above.perm & PERM.WRITE) === 0 ? 0 : PERM.RESIZE
    return { perm: above.perm | grows, shared: above.shared }
  },
}
