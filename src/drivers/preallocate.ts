/**
 * `preallocate`: a filter for files that grow. It passes everything through.
 *
 * Invariants:
 * - The content and the length are those of the child; space is taken as writes need it, so the
 *   sizes of the options are checked and remembered only.
 */
import type {
  BlockdevOptions,
  BlockdevRef,
  DriverDefinition,
  PreparedReopen,
  ReopenTarget,
} from '../block/driver.ts'
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

  reopenPrepare({ options }: ReopenTarget): PreparedReopen {
    checkSizes(options)
    return { commit: noop, abort: noop }
  }
}

function noop(): void {}

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
  changeable: ['prealloc-align', 'prealloc-size'],
  required: ['prealloc-align', 'prealloc-size'],
  async open(_node, options, opener) {
    const file = await opener.open('file', options.file as BlockdevRef, 'filtered')
    checkSizes(options)
    return new PreallocateDriver(file)
  },
}
