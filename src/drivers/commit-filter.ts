/**
 * The filter that a commit or mirror job puts over its source: passes everything through. A mirror
 * may hold every write until it is on the target too.
 *
 * Invariants:
 * - It takes from its child what its own users take, and lets every other user do anything: the
 *   job below it writes images that are in use.
 * - What was written is noted on the source itself, so no request needs more than a pass through.
 */
import type { BlockChild } from '../block/child.ts'
import type {
  BlockDriver,
  BlockdevRef,
  BlockLimits,
  DriverDefinition,
  PreparedReopen,
} from '../block/driver.ts'
import { FLAG, NO_LIMITS, PERM } from '../block/driver.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { BlockError } from '../util/errors.ts'

class CommitFilter implements BlockDriver {
  readonly limits: BlockLimits = NO_LIMITS
  readonly writeFlags: number = FLAG.FUA | FLAG.WRITE_UNCHANGED
  readonly zeroesFlags: number = FLAG.FUA | FLAG.MAY_UNMAP | FLAG.WRITE_UNCHANGED | FLAG.NO_FALLBACK
  readonly #file: BlockChild
  #afterWrite: (() => Pending) | undefined

  constructor(file: BlockChild) {
    this.#file = file
  }

  /** Called after every write on the source; the write ends when what it returns has. */
  setAfterWrite(hook: (() => Pending) | undefined): void {
    this.#afterWrite = hook
  }

  length(): number {
    return this.#file.length()
  }

  pread(offset: number, buf: Uint8Array): Pending {
    return this.#file.pread(offset, buf)
  }

  pwrite(offset: number, buf: Uint8Array, flags: number): Pending {
    return this.#then(this.#file.pwrite(offset, buf, flags))
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Pending {
    return this.#then(this.#file.pwriteZeroes(offset, bytes, flags))
  }

  pdiscard(offset: number, bytes: number): Pending {
    return this.#then(this.#file.pdiscard(offset, bytes))
  }

  #then(written: Pending): Pending {
    const hook = this.#afterWrite
    if (hook === undefined) return written
    return written === undefined ? hook() : written.then(hook)
  }

  reopenPrepare(): PreparedReopen {
    return { commit: () => undefined, abort: () => undefined }
  }

  close(): void {
    // The child belongs to the block layer.
  }
}

/** `commit-filter`: option `file`. */
export const commitFilterDriver: DriverDefinition = {
  name: 'commit-filter',
  kind: 'filter',
  async open(_node, options, opener) {
    const { file } = options
    if (file === undefined) throw new BlockError('EINVAL', "Parameter 'file' is missing")
    return new CommitFilter(await opener.open('file', file as BlockdevRef, 'filtered'))
  },
  childPermissions(node, _child, above) {
    if (node.parents.size === 0) return { perm: 0, shared: PERM.ALL }
    return { perm: above.perm & (PERM.WRITE | PERM.WRITE_UNCHANGED), shared: PERM.ALL }
  },
}
