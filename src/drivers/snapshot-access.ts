/**
 * `snapshot-access`: shows the disk as it was when the copy-before-write filter below was put in.
 *
 * Invariants:
 * - What it shows never changes while the filter's epoch lasts; a discard gives it up for good.
 */

import type { BlockChild } from '../block/child.ts'
import type { BlockDriver, BlockdevRef, BlockLimits, DriverDefinition } from '../block/driver.ts'
import { NO_LIMITS, PERM } from '../block/driver.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { ioError } from '../util/errors.ts'

/** What this driver needs of the filter. */
interface SnapshotReader {
  readSnapshot(offset: number, buf: Uint8Array): Promise<void>
  discardSnapshot(offset: number, bytes: number): Promise<void>
}

function isReader(driver: object): driver is SnapshotReader {
  return 'readSnapshot' in driver
}

class SnapshotAccessDriver implements BlockDriver {
  readonly limits: BlockLimits = NO_LIMITS
  readonly writeFlags = 0
  readonly zeroesFlags = 0
  readonly #file: BlockChild
  readonly #reader: SnapshotReader | undefined

  constructor(file: BlockChild, reader: SnapshotReader | undefined) {
    this.#file = file
    this.#reader = reader
  }

  length(): number {
    return this.#file.length()
  }

  pread(offset: number, buf: Uint8Array): Promise<void> {
    if (this.#reader === undefined)
      throw ioError('ENOTSUP', { offset, bytes: buf.length, op: 'read' })
    return this.#reader.readSnapshot(offset, buf)
  }

  pwrite(offset: number, buf: Uint8Array): never {
    throw ioError('EACCES', { offset, bytes: buf.length, op: 'write' })
  }

  /** What was read may be given up: from then on it can neither be read nor needs to be kept. */
  pdiscard(offset: number, bytes: number): Pending {
    return this.#reader?.discardSnapshot(offset, bytes)
  }

  close(): void {
    // The child belongs to the block layer.
  }
}

/** `snapshot-access`: option `file`, a copy-before-write filter; over others nothing can be read. */
export const snapshotAccessDriver: DriverDefinition = {
  name: 'snapshot-access',
  kind: 'protocol',
  async open(_node, options, opener) {
    const file = await opener.open('file', options.file as BlockdevRef, 'data')
    const driver = file.node.needDriver()
    return new SnapshotAccessDriver(file, isReader(driver) ? driver : undefined)
  },
  // The filter below knows its reader and asks nothing of the graph for him.
  childPermissions() {
    return { perm: 0, shared: PERM.ALL }
  },
}
