/**
 * The filter that a commit or mirror job puts over its source: passes everything through. A mirror
 * may hold every write until it is on the target too.
 *
 * Invariants:
 * - It takes from its child what its own users take, and lets every other user do anything: the
 *   job below it writes images that are in use.
 * - What was written is noted on the source itself, so no request needs more than a pass through.
 */
import type { BlockdevRef, DriverDefinition } from '../block/driver.ts'
import { FLAG, PERM } from '../block/driver.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { BlockError } from '../util/errors.ts'
import { PassThrough } from './pass-through.ts'

class CommitFilter extends PassThrough {
  override readonly zeroesFlags: number =
    FLAG.FUA | FLAG.MAY_UNMAP | FLAG.WRITE_UNCHANGED | FLAG.NO_FALLBACK
  #afterWrite: (() => Pending) | undefined

  /** Called after every write on the source; the write ends when what it returns has. */
  setAfterWrite(hook: (() => Pending) | undefined): void {
    this.#afterWrite = hook
  }

  override pwrite(offset: number, buf: Uint8Array, flags: number): Pending {
    return this.#then(this.file.pwrite(offset, buf, flags))
  }

  override pwriteZeroes(offset: number, bytes: number, flags: number): Pending {
    return this.#then(this.file.pwriteZeroes(offset, bytes, flags))
  }

  override pdiscard(offset: number, bytes: number): Pending {
    return this.#then(this.file.pdiscard(offset, bytes))
  }

  #then(written: Pending): Pending {
    const hook = this.#afterWrite
    if (hook === undefined) return written
    return written === undefined ? hook() : written.then(hook)
  }
}

/** `mirror_top`, over the source of a mirror or of an active commit: option `file`. */
export const commitFilterDriver: DriverDefinition = {
  name: 'mirror_top',
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

/** `commit_top`, the same over a layer that nobody uses directly. */
export const commitTopDriver: DriverDefinition = { ...commitFilterDriver, name: 'commit_top' }
