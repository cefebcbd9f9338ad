/**
 * The drivers that a runtime can open without being given any.
 *
 * Invariants:
 * - Every driver with a room of its own in `src/drivers` is on the list.
 */
import type { DriverDefinition } from '../block/driver.ts'
import { blkdebugDriver } from '../drivers/blkdebug.ts'
import { blkverifyDriver } from '../drivers/blkverify.ts'
import { commitFilterDriver, commitTopDriver } from '../drivers/commit-filter.ts'
import { compressDriver } from '../drivers/compress.ts'
import { copyBeforeWriteDriver } from '../drivers/copy-before-write.ts'
import { copyOnReadDriver } from '../drivers/copy-on-read.ts'
import { fileDriver } from '../drivers/file.ts'
import { memoryDriver } from '../drivers/memory.ts'
import { nbdDriver } from '../drivers/nbd.ts'
import { nullAioDriver, nullCoDriver } from '../drivers/null.ts'
import { preallocateDriver } from '../drivers/preallocate.ts'
import { qcow2Driver } from '../drivers/qcow2/driver.ts'
import { quorumDriver } from '../drivers/quorum.ts'
import { rawDriver } from '../drivers/raw.ts'
import { snapshotAccessDriver } from '../drivers/snapshot-access.ts'

/** All of them. */
export function builtinDrivers(): DriverDefinition[] {
  return [
    memoryDriver,
    fileDriver,
    rawDriver,
    qcow2Driver,
    quorumDriver,
    nbdDriver,
    blkdebugDriver,
    copyBeforeWriteDriver,
    commitFilterDriver,
    commitTopDriver,
    nullCoDriver,
    nullAioDriver,
    snapshotAccessDriver,
    copyOnReadDriver,
    compressDriver,
    blkverifyDriver,
    preallocateDriver,
  ]
}
