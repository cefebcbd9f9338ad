/**
 * Options of the qcow2 driver, checked against each other and the image.
 *
 * Invariants:
 * - The same checks run at open and at reopen.
 */
import { isAbsolute } from 'node:path'
import type { BlockdevOptions } from '../../block/driver.ts'
import { BlockError } from '../../util/errors.ts'
import { COMPAT_LAZY_REFCOUNTS } from './format.ts'
import type { Header } from './header.ts'
import type { CacheSizes } from './image.ts'

const UINT_MAX = 0xffff_ffff
const MAX_L2_BYTES = 32 * 1024 * 1024

function sizeOption(options: BlockdevOptions, name: string): number | undefined {
  const value = options[name]
  if (value === undefined) return undefined
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value
  throw new BlockError('EINVAL', `Parameter '${name}' expects a non-negative number below 2^64`)
}

/** The bounds of the caches. Errors: EINVAL with the option that does not fit. */
export function cacheSizes(options: BlockdevOptions, header: Header): CacheSizes {
  const { clusterBytes, l2Coverage } = header.geometry
  const entry = sizeOption(options, 'l2-cache-entry-size')
  const powerOfTwo = entry === undefined || Number.isInteger(Math.log2(entry))
  if (entry !== undefined && (!powerOfTwo || entry < 512 || entry > clusterBytes))
    throw new BlockError(
      'EINVAL',
      'L2 cache entry size must be a power of two between 512 and the cluster size ' +
        `(${clusterBytes})`,
    )
  const both = sizeOption(options, 'cache-size')
  const l2 = sizeOption(options, 'l2-cache-size')
  const counts = sizeOption(options, 'refcount-cache-size')
  if (both !== undefined && l2 !== undefined && l2 > both)
    throw new BlockError('EINVAL', 'l2-cache-size may not exceed cache-size')
  if (both !== undefined && counts !== undefined && counts > both)
    throw new BlockError('EINVAL', 'refcount-cache-size may not exceed cache-size')
  if (both !== undefined && l2 !== undefined && counts !== undefined)
    throw new BlockError(
      'EINVAL',
      'cache-size, l2-cache-size and refcount-cache-size may not be set at the same time',
    )
  const interval = options['cache-clean-interval']
  if (interval !== undefined && !(Number(interval) >= 0 && Number(interval) <= UINT_MAX))
    throw new BlockError('EINVAL', 'Cache clean interval too big')
  const { encrypt } = options
  if (typeof encrypt === 'object' && encrypt !== null && 'format' in encrypt)
    throw new BlockError(
      'EINVAL',
      `No encryption in image header, but options specified format '${String(encrypt.format)}'`,
    )
  const needed = (Math.ceil(header.size / l2Coverage) + 1) * clusterBytes
  const bound = both === undefined ? MAX_L2_BYTES : Math.max(both - (counts ?? 0), clusterBytes)
  const refcountBytes = counts ?? Math.max(256 * 1024, 4 * clusterBytes)
  return { l2Bytes: l2 ?? Math.min(bound, needed), refcountBytes }
}

/** Whether refcounts may stay behind. Errors: EINVAL for an image that cannot say so. */
export function lazyOption(options: BlockdevOptions, header: Header): boolean {
  const wanted = options['lazy-refcounts']
  if (wanted === true && header.version < 3)
    throw new BlockError(
      'EINVAL',
      'Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level',
    )
  if (typeof wanted === 'boolean') return wanted
  return (header.compatible & COMPAT_LAZY_REFCOUNTS) !== 0
}

/** Whether writes over metadata are looked for. */
export function overlapOption(options: BlockdevOptions): boolean {
  const wanted = options['overlap-check']
  if (typeof wanted === 'object' && wanted !== null && 'template' in wanted)
    return wanted.template !== 'none'
  return wanted !== 'none'
}

/**
 * A name from inside an image, seen from where the image lies. What leads up and down again stays
 * in it: with symbolic links in the path, leaving that out would name another file.
 */
export function besideImage(imagePath: string | undefined, name: string): string {
  const path = name.startsWith('file:') ? name.slice('file:'.length) : name
  if (isAbsolute(path) || imagePath === undefined || imagePath === '') return path
  return imagePath.slice(0, imagePath.lastIndexOf('/') + 1) + path
}

/** Options that open the backing image which the header names. */
export function backingOptions(header: Header, imagePath: string | undefined): BlockdevOptions {
  const name = header.backingFile ?? ''
  const driver = header.backingFormat ?? 'raw'
  if (name.startsWith('json:')) {
    const parsed: unknown = JSON.parse(name.slice('json:'.length))
    if (typeof parsed === 'object' && parsed !== null && 'driver' in parsed)
      return parsed as BlockdevOptions
    throw new BlockError('EINVAL', `Could not parse the JSON options of '${name}'`)
  }
  if (/^nbd(\+unix)?:\/\//.test(name)) return { driver, file: nbdOptions(name) }
  return { driver, file: { driver: 'file', filename: besideImage(imagePath, name) } }
}

function nbdOptions(name: string): BlockdevOptions {
  const url = new URL(name)
  const path = decodeURIComponent(url.pathname.replace(/^\//, ''))
  const socket = url.searchParams.get('socket')
  const server =
    socket === null
      ? { type: 'inet', host: url.hostname, port: url.port === '' ? '10809' : url.port }
      : { type: 'unix', path: socket }
  return { driver: 'nbd', server, export: path }
}
