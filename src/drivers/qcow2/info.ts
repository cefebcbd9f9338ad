/**
 * What a qcow2 image says of itself.
 *
 * Invariants:
 * - Members and their names are those that monitors of other programs show.
 */
import type { ImageInfo } from '../../block/driver.ts'
import { COMPAT_LAZY_REFCOUNTS, INCOMPAT } from './format.ts'
import type { Qcow2Image } from './image.ts'

/** Collects it; `bitmaps` are those that the image holds. */
export async function imageInfo(
  image: Qcow2Image,
  bitmaps: readonly Readonly<Record<string, unknown>>[] = [],
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
        }
  return {
    ...(below?.actualSize === undefined ? {} : { actualSize: below.actualSize }),
    formatSpecific: { type: 'qcow2', data },
    ...(header.backingFile === undefined ? {} : { backingFilename: header.backingFile }),
    ...(header.backingFormat === undefined ? {} : { backingFormat: header.backingFormat }),
    dirty: has(INCOMPAT.DIRTY),
  }
}
