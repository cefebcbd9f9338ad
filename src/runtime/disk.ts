/**
 * Short ways to name a disk.
 *
 * Invariants:
 * - Nothing is opened or created here; the answer is what `addNode` takes.
 */
import type { BlockdevOptions, BlockdevRef } from '../block/driver.ts'

/** A disk in memory. */
export interface MemorySource {
  /** Length in bytes; a multiple of 512. */
  readonly memory: number
}

/** An image in a file that exists. */
export interface FileSource {
  /** Path of the image. */
  readonly file: string
  /** What is in it; default `raw`. */
  readonly format?: 'raw' | 'qcow2'
}

/** A disk: in memory, in a file, or options as `addNode` takes them. */
export type DiskSource = MemorySource | FileSource | BlockdevOptions

/** Options of a node with that name; `backing` shows where the disk holds nothing. */
export function diskOptions(
  source: DiskSource,
  name: string,
  backing?: BlockdevRef,
): BlockdevOptions {
  const common = { 'node-name': name, ...(backing === undefined ? {} : { backing }) }
  if (isMemory(source)) return { driver: 'memory', size: source.memory, ...common }
  if (!isFile(source)) return { ...source, ...common }
  const { file: filename, format = 'raw' } = source
  return { driver: format, file: { driver: 'file', filename }, ...common }
}

// The other two forms have no driver.
function isMemory(source: DiskSource): source is MemorySource {
  return !('driver' in source) && 'memory' in source
}

function isFile(source: DiskSource): source is FileSource {
  return !('driver' in source) && 'file' in source
}
