/**
 * What the image subcommands have in common: how formats, sizes and `-o` options are read.
 *
 * Invariants:
 * - A name that cannot be understood is refused before any image is touched.
 */
import { InvalidArgumentError } from 'commander'
import { BlockError, type ImageCreateOptions, type ImageFormat } from '../index.ts'

/** Reads the name of a format. Errors: `Unknown file format`. */
export function formatOf(text: string): ImageFormat {
  if (text === 'raw' || text === 'qcow2') return text
  throw new BlockError('EINVAL', `Unknown file format '${text}'`)
}

/** The format as an option of a library call; none when it is to be found out. */
export function asFormat(text: string | undefined): { readonly format?: ImageFormat } {
  return text === undefined ? {} : { format: formatOf(text) }
}

/** Reads a size in bytes, `10M`, `1.5G`. Errors: one line that names the suffixes. */
export function sizeOf(text: string): number {
  const found = /^(\d+(?:\.\d+)?)([bkmgtpe]?)$/i.exec(text)
  const power = 'bkmgtpe'.indexOf((found?.[2] ?? '').toLowerCase() || 'b')
  const bytes = Math.floor(Number(found?.[1]) * 1024 ** power)
  if (Number.isSafeInteger(bytes)) return bytes
  const words = 'You may use k, M, G, T, P or E suffixes'
  throw new BlockError('EINVAL', `Invalid image size '${text}' specified. ${words}`)
}

/** Gathers an option that may be repeated. */
export function gather(text: string, before: readonly string[] | undefined): readonly string[] {
  return [...(before ?? []), text]
}

type Setting = Partial<Omit<ImageCreateOptions, 'format'>>
type Reader = (text: string, key: string) => Setting

const READERS: Readonly<Record<string, Reader>> = {
  size: (text) => ({ size: sizeOf(text) }),
  cluster_size: (text) => ({ clusterSize: sizeOf(text) }),
  refcount_bits: (text, key) => ({ refcountBits: numberOf(text, key) }),
  lazy_refcounts: (text, key) => ({ lazyRefcounts: onOff(text, key) }),
  extended_l2: (text, key) => ({ extendedL2: onOff(text, key) }),
  data_file_raw: (text, key) => ({ dataFileRaw: onOff(text, key) }),
  data_file: (text) => ({ dataFile: text }),
  backing_file: (text) => ({ backingFile: text }),
  backing_fmt: (text) => ({ backingFormat: text }),
  compression_type: (text) => ({ compressionType: oneOf(text, 'zlib', 'zstd') }),
  preallocation: (text) => ({
    preallocation: oneOf(text, 'off', 'metadata', 'falloc', 'full'),
  }),
  compat: (text) => ({ version: ['0.10', 'v2'].includes(text) ? 2 : version3(text) }),
}
const RAW_KEYS = ['size', 'preallocation']

/** Reads `-o key=value,…` texts. Errors: EINVAL for a key that the format has not, or a bad value. */
export function creationOf(format: ImageFormat, texts: readonly string[] = []): Setting {
  let settings: Setting = {}
  for (const part of texts.flatMap((text) => text.split(','))) {
    const [key = '', ...rest] = part.split('=')
    const reader = format === 'raw' && !RAW_KEYS.includes(key) ? undefined : READERS[key]
    if (reader === undefined) throw new BlockError('EINVAL', `Invalid parameter '${key}'`)
    settings = { ...settings, ...reader(rest.length === 0 ? 'on' : rest.join('='), key) }
  }
  return settings
}

function numberOf(text: string, key: string): number {
  if (/^[0-9]{1,9}$/.test(text)) return Number(text)
  throw new BlockError('EINVAL', `Parameter '${key}' expects a number`)
}

function onOff(text: string, key: string): boolean {
  if (text === 'on' || text === 'off') return text === 'on'
  throw new BlockError('EINVAL', `Parameter '${key}' expects 'on' or 'off'`)
}

function oneOf<const T extends string>(text: string, ...words: readonly T[]): T {
  const found = words.find((word) => word === text)
  if (found !== undefined) return found
  throw new BlockError('EINVAL', `Invalid parameter '${text}'`)
}

function version3(text: string): 3 {
  if (['1.1', 'v3'].includes(text)) return 3
  throw new BlockError('EINVAL', `Invalid compatibility level: '${text}'`)
}

/** Reads the choice of `--output`. Errors: a parser's own. */
export function outputOf(text: string): 'human' | 'json' {
  if (text === 'human' || text === 'json') return text
  throw new InvalidArgumentError("Use 'human' or 'json'.")
}
