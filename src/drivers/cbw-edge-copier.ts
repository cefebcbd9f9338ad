/**
 * Copies clusters through the edges of a copy-before-write filter, on the main thread.
 *
 * Invariants:
 * - The write on the target is serialising: readers of the range are waited for and kept out.
 * - A buffer belongs to one copy until that copy ended.
 */
import type { BlockChild } from '../block/child.ts'
import { FLAG, STATUS } from '../block/driver.ts'
import { chainStatus } from '../block/status.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { asBlockError, BlockError } from '../util/errors.ts'

/** Buffers kept for the next copy; more are made while more copies run. */
const SPARE_BUFFERS = 16

/** See the file's purpose. */
export class EdgeCopier {
  readonly #file: BlockChild
  readonly #target: BlockChild
  readonly #dataFlags: number
  readonly #spare: Uint8Array[] = []

  /** `compress`: data is written compressed, which the target can do. */
  constructor(file: BlockChild, target: BlockChild, compress = false) {
    this.#file = file
    this.#target = target
    this.#dataFlags = FLAG.SERIALISING | (compress ? FLAG.WRITE_COMPRESSED : 0)
  }

  /** Copies a range; zeroes stay zeroes. */
  async copy(offset: number, bytes: number): Promise<void> {
    const status = await chainStatus(this.#file.node, undefined, offset, bytes)
    const zero = (status.flags & STATUS.ZERO) !== 0 && (status.flags & STATUS.DATA) === 0
    if (zero && status.bytes >= bytes) {
      await tagged('write', () => this.#target.pwriteZeroes(offset, bytes, FLAG.SERIALISING))
      return
    }
    const spare = this.#spare.pop()
    // Every byte is read before it is written, so nothing has to be zeroed first.
    const kept = spare !== undefined && spare.length >= bytes ? spare : undefined
    const whole = kept ?? Buffer.allocUnsafeSlow(bytes)
    const buf = whole.subarray(0, bytes)
    try {
      await tagged('read', () => this.#file.pread(offset, buf))
      await tagged('write', () => this.#target.pwrite(offset, buf, this.#dataFlags))
    } finally {
      if (this.#spare.length < SPARE_BUFFERS) this.#spare.push(whole)
    }
  }
}

/** Runs one side of a copy; its error says which side it was. */
async function tagged(op: 'read' | 'write', run: () => Pending): Promise<void> {
  try {
    await run()
  } catch (thrown) {
    const error = asBlockError(thrown)
    throw new BlockError(error.code, error.message, { ...error.context, op }, thrown)
  }
}
