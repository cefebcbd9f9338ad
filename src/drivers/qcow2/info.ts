/**
 * What a qcow2 image says of itself.
 *
 * Invariants:
 * - Members and their names are those that monitors of other programs show.
 */
import type { ImageInfo, InternalSnapshot } from '../../block/driver.ts'
import { AUTOCLEAR, COMPAT_LAZY_REFCOUNTS, INCOMPAT } from './format.ts'
import type { Qcow2Image } from './image.ts'
import type { Snapshot } from './snapshots.ts'

/** Collects it; `bitmaps` are those that the image holds. */
export async function imageInfo(
  image: Qcow2Image,
  bitmaps: readonly Readonly<Record<string, unknown>>[] = [],
  snapshots: readonly Snapshot[] = [],
): Promise<ImageInfo> {
  const { header } = image
  const below = await image.file.node.driver?.info?.()
  const has = (bit: number): boolean => (header.incompatible & bit) !== 0
  const refcountBits = 2 ** header.refcountOrder
  const data: Record<string, unknown> =
    header.version < 3
      ? { compat: '0.10', 'compression-type': 'zlib', 'refcount-bits': refcountBits }
      : {
          compat: '1.1',
          'compression-type': header.compression === 0 ? 'zlib' : 'zstd',
          ...(bitmaps.length === 0 ? {} : { bitmaps }),
          'lazy-refcounts': (header.compatible & COMPAT_LAZY_REFCOUNTS) !== 0,
          'refcount-bits': refcountBits,
          corrupt: has(INCOMPAT.CORRUPT),
          'extended-l2': header.geometry.extended,
          ...(header.dataFile === undefined ? {} : { 'data-file': header.dataFile }),
          ...(has(INCOMPAT.DATA_FILE)
            ? { 'data-file-raw': (header.autoclear & AUTOCLEAR.RAW_DATA) !== 0 }
            : {}),
        }
  return {
    ...(below?.actualSize === undefined ? {} : { actualSize: below.actualSize }),
    formatSpecific: { type: 'qcow2', data },
    ...(header.backingFile === undefined ? {} : { backingFilename: header.backingFile }),
    ...(header.backingFormat === undefined ? {} : { backingFormat: header.backingFormat }),
    dirty: has(INCOMPAT.DIRTY),
    snapshots: snapshots.map(snapshotInfo),
  }
}

const NS = 1_000_000_000

/** The members of a snapshot as monitors name them: seconds, nanoseconds and bytes. */
type SnapshotInfo = Readonly<Record<string, string | number>>

/** A snapshot as image information and monitor commands show it. */
export function snapshotInfo(snapshot: InternalSnapshot): SnapshotInfo {
  const { id, name, seconds, nanoseconds, clockNs, stateBytes, icount } = snapshot
  return {
    ...(icount === undefined ? {} : { icount }),
    'vm-clock-sec': Math.floor(clockNs / NS),
    name,
    'date-sec': seconds,
    'date-nsec': nanoseconds,
    'vm-clock-nsec': clockNs % NS,
    id,
    'vm-state-size': stateBytes,
  }
}
