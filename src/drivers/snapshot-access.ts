/**
 * `snapshot-access`: shows the disk as it was when the copy-before-write filter below was put in.
 *
 * Invariants:
 * - It only reads; what it shows never changes while the filter's epoch lasts.
 */

import type { BlockChild } from '../block/child.ts'
import type { BlockDriver, BlockdevRef, BlockLimits, DriverDefinition } from '../block/driver.ts'
import { NO_LIMITS, PERM } from '../block/driver.ts'
import { BlockError, ioError } from '../util/errors.ts'

/** What this driver needs of the filter. */
interface SnapshotReader {
  readSnapshot(offset: number, buf: Uint8Array): Promise<void>
}

function isReader(driver: object): driver is SnapshotReader {
  return 'readSnapshot' in driver
}

class SnapshotAccessDriver implements BlockDriver {
  readonly limits: BlockLimits = NO_LIMITS
  readonly writeFlags = 0
  readonly zeroesFlags = 0
  readonly #file: BlockChild
  readonly #reader: SnapshotReader

  constructor(file: BlockChild, reader: SnapshotReader) {
    this.#file = file
    this.#reader = reader
  }

  length(): number {
    return this.#file.length()
  }

  pread(offset: number, buf: Uint8Array): Promise<void> {
    return this.#reader.readSnapshot(offset, buf)
  }

  pwrite(offset: number, buf: Uint8Array): never {
    throw ioError('EACCES', { offset, bytes: buf.length, op: 'write' })
  }

  close(): void {
    // The child belongs to the block layer.
  }
}

/** `snapshot-access`: option `file`, a copy-before-write filter. */
export const snapshotAccessDriver: DriverDefinition = {
  name: 'snapshot-access',
  kind: 'protocol',
  async open(node, options, opener) {
    const file = await opener.open('file', options.file as BlockdevRef, 'data')
    const driver = file.node.needDriver()
    if (isReader(driver)) return new SnapshotAccessDriver(file, driver)
    throw new BlockError('EINVAL', `Node '${file.node.name}' has no snapshot to show`, {
      node: node.name,
    })
  },
  childPermissions(_node, _child, above) {
    return { perm: above.perm & PERM.CONSISTENT_READ, shared: PERM.ALL }
  },
}
