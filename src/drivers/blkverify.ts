/**
 * `blkverify`: runs every request on two disks and fails where they differ.
 *
 * Invariants:
 * - The guest sees the content of `test`, and only where `raw` has the same.
 * - A request that one disk carries out and the other refuses is a difference too.
 */
import type { BlockChild } from '../block/child.ts'
import type { BlockDriver, BlockdevRef, BlockLimits, DriverDefinition } from '../block/driver.ts'
import { FLAG, NO_LIMITS } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { asBlockError, BlockError } from '../util/errors.ts'

class BlkverifyDriver implements BlockDriver {
  readonly limits: BlockLimits = NO_LIMITS
  readonly writeFlags: number = FLAG.FUA | FLAG.WRITE_UNCHANGED
  readonly zeroesFlags: number = FLAG.FUA | FLAG.MAY_UNMAP | FLAG.WRITE_UNCHANGED
  readonly #node: BlockNode
  readonly #test: BlockChild
  readonly #raw: BlockChild

  constructor(node: BlockNode, test: BlockChild, raw: BlockChild) {
    this.#node = node
    this.#test = test
    this.#raw = raw
  }

  length(): number {
    return this.#test.length()
  }

  async pread(offset: number, buf: Uint8Array): Promise<void> {
    const other = new Uint8Array(buf.length)
    await this.#both('read', offset, buf.length, (child) =>
      child.pread(offset, child === this.#test ? buf : other),
    )
    if (Buffer.compare(buf, other) === 0) return
    const at = buf.findIndex((byte, i) => byte !== other[i])
    throw this.#differ('read', offset, buf.length, `contents mismatch at offset ${offset + at}`)
  }

  pwrite(offset: number, buf: Uint8Array, flags: number): Promise<void> {
    return this.#both('write', offset, buf.length, (child) => child.pwrite(offset, buf, flags))
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Promise<void> {
    return this.#both('write-zeroes', offset, bytes, (child) =>
      child.pwriteZeroes(offset, bytes, flags),
    )
  }

  flush(toDisk: boolean): Pending {
    return toDisk ? this.#both('flush', 0, 0, (child) => child.flush()) : undefined
  }

  close(): void {
    // The children belong to the block layer.
  }

  async #both(
    op: string,
    offset: number,
    bytes: number,
    request: (child: BlockChild) => Pending,
  ): Promise<void> {
    const run = async (child: BlockChild): Promise<BlockError | undefined> => {
      try {
        const pending = request(child)
        if (pending !== undefined) await pending
        return undefined
      } catch (thrown) {
        return asBlockError(thrown)
      }
    }
    const [test, raw] = await Promise.all([run(this.#test), run(this.#raw)])
    if (test === undefined && raw === undefined) return
    if (test !== undefined && raw !== undefined) throw test
    throw this.#differ(op, offset, bytes, `return value mismatch: ${(test ?? raw)?.message ?? ''}`)
  }

  #differ(op: string, offset: number, bytes: number, words: string): BlockError {
    return new BlockError('EIO', `blkverify: ${op} of ${bytes} bytes at ${offset}: ${words}`, {
      node: this.#node.name,
      offset,
      bytes,
      op,
    })
  }
}

/** `blkverify`: options `test` (the disk that is examined) and `raw` (the one that is trusted). */
export const blkverifyDriver: DriverDefinition = {
  name: 'blkverify',
  kind: 'filter',
  async open(node, options, opener) {
    for (const name of ['test', 'raw']) {
      if (options[name] !== undefined) continue
      throw new BlockError('EINVAL', `Parameter '${name}' is missing`)
    }
    const raw = await opener.open('raw', options.raw as BlockdevRef, 'filtered')
    const test = await opener.open('test', options.test as BlockdevRef, 'data')
    return new BlkverifyDriver(node, test, raw)
  },
}
