/**
 * Checking an image: references counted against references stored.
 *
 * Invariants:
 * - Never writes.
 * - A stored count below the true one, or a wrong COPIED bit, is a corruption; above it, a leak.
 */
import type { BlockChild } from '../../block/child.ts'
import { read64, viewOf } from './format.ts'
import { clusterBitsOf, type Header, parseHeader } from './header.ts'
import { getRefcount } from './refcount-bits.ts'
import { readSnapshots } from './snapshots.ts'
import type { Walk } from './walk.ts'
import { countRange, readBytes, walkImage } from './walk.ts'

/** What a check found. */
export interface CheckResult {
  /** Counts below the true ones and wrong pointers. */
  readonly corruptions: number
  /** Clusters that nothing uses and that count as used. */
  readonly leaks: number
  /** Clusters of guest data that lie in the image. */
  readonly allocatedClusters: number
  /** Clusters of the whole disk. */
  readonly totalClusters: number
  /** Clusters of guest data that are compressed. */
  readonly compressedClusters: number
  /** Clusters that do not lie where the one before them ends. */
  readonly fragmentedClusters: number
  /** End of the last used cluster in bytes. */
  readonly imageEndOffset: number
  /** One sentence for each finding. */
  readonly messages: readonly string[]
}

/** Reads and checks the header of the image in `file`. Errors: the reason it cannot be opened. */
export async function readHeader(file: BlockChild): Promise<Header> {
  const start = await readBytes(file, 0, 512)
  const bits = clusterBitsOf(start)
  return parseHeader(await readBytes(file, 0, 2 ** bits))
}

/** Checks the image in `file`, which nobody writes meanwhile. */
export async function checkQcow2(file: BlockChild): Promise<CheckResult> {
  const header = await readHeader(file)
  const { clusterBytes } = header.geometry
  const walk = await walkImage(file, header, await readSnapshots(file, header))
  countRange(walk, header, header.reftableOffset, header.reftableClusters * clusterBytes)
  const stored = await readCounts(walk, file, header)
  const messages = [...walk.problems, ...walk.oddities]
  let corruptions = messages.length
  let leaks = 0
  let end = 0
  const within = Math.ceil(file.length() / clusterBytes)
  for (let c = 0; c < walk.counts.length; c++) {
    const truth = walk.counts[c] ?? 0
    // Behind the end of the file nothing is taken, whatever a block says of it.
    const count = c < within || truth > 0 ? stored.get(c) : 0
    if (truth > 0 || count > 0) end = c + 1
    if (count === truth) continue
    const words = `cluster ${c} refcount=${count} reference=${truth}`
    messages.push(count > truth ? `Leaked ${words}` : `ERROR ${words}`)
    if (count > truth) leaks++
    else corruptions++
  }
  for (const { at, cluster, copied } of walk.copied) {
    const count = stored.get(cluster)
    if (copied === (count === 1)) continue
    corruptions++
    messages.push(`ERROR OFLAG_COPIED entry at ${at.toString(16)} refcount=${count}`)
  }
  return {
    corruptions,
    leaks,
    allocatedClusters: walk.allocated,
    totalClusters: Math.ceil(header.size / clusterBytes),
    compressedClusters: walk.compressed,
    fragmentedClusters: walk.fragmented,
    imageEndOffset: end * clusterBytes,
    messages,
  }
}

/** Stored counts, block by block; memory follows the blocks that are there, not what they count. */
class StoredCounts {
  readonly #order: number
  readonly #perBlock: number
  readonly #blocks = new Map<number, Uint8Array>()

  constructor(header: Header) {
    this.#order = header.refcountOrder
    this.#perBlock = (header.geometry.clusterBytes * 8) >> header.refcountOrder
  }

  add(index: number, block: Uint8Array): void {
    this.#blocks.set(index, block)
  }

  get(cluster: number): number {
    const block = this.#blocks.get(Math.floor(cluster / this.#perBlock))
    return block === undefined ? 0 : getRefcount(block, this.#order, cluster % this.#perBlock)
  }
}

async function readCounts(walk: Walk, file: BlockChild, header: Header): Promise<StoredCounts> {
  const { clusterBytes } = header.geometry
  const tableBytes = header.reftableClusters * clusterBytes
  const stored = new StoredCounts(header)
  if (header.reftableOffset >= file.length()) return stored
  const view = viewOf(await readBytes(file, header.reftableOffset, tableBytes))
  const seen = new Set<number>()
  for (let index = 0; index < tableBytes / 8; index++) {
    // All of the entry but its lowest bits: whatever else is set there is no place in the file.
    const offset = read64(view, index * 8)
    if (offset === 0) continue
    if (offset % clusterBytes !== 0) {
      walk.problems.push(
        `ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`,
      )
    } else if (offset >= file.length()) {
      walk.problems.push(`ERROR refcount block ${index} is outside image`)
    } else {
      countRange(walk, header, offset, clusterBytes)
      // A block that two entries share is counted twice, which is found by its own count.
      if (!seen.has(offset)) stored.add(index, await readBytes(file, offset, clusterBytes))
      seen.add(offset)
    }
  }
  return stored
}
