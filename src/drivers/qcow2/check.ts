/**
 * Checking an image: references counted against references stored.
 *
 * Invariants:
 * - Never writes.
 * - A stored count below the true one, or a wrong COPIED bit, is a corruption; above it, a leak.
 */
import type { BlockChild } from '../../block/child.ts'
import { clusterBitsOf, type Header, parseHeader } from './header.ts'
import { getRefcount } from './refcount-bits.ts'
import { readSnapshots } from './snapshots.ts'
import { decodeTable } from './table-bytes.ts'
import type { Walk } from './walk.ts'
import { countRange, readBytes, walkImage } from './walk.ts'

/** What a check found. */
export interface CheckResult {
  readonly corruptions: number
  readonly leaks: number
  /** Clusters of guest data that lie in the image. */
  readonly allocatedClusters: number
  readonly totalClusters: number
  readonly compressedClusters: number
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
  const messages = [...walk.problems]
  let corruptions = messages.length
  let leaks = 0
  let end = 0
  for (let c = 0; c < Math.max(walk.counts.length, stored.length); c++) {
    const truth = walk.counts[c] ?? 0
    const count = stored[c] ?? 0
    if (truth > 0 || count > 0) end = c + 1
    if (count === truth) continue
    const words = `cluster ${c} refcount=${count} reference=${truth}`
    messages.push(count > truth ? `Leaked ${words}` : `ERROR ${words}`)
    if (count > truth) leaks++
    else corruptions++
  }
  for (const { at, cluster, copied } of walk.copied) {
    if (copied === (stored[cluster] === 1)) continue
    corruptions++
    messages.push(`ERROR OFLAG_COPIED entry at ${at.toString(16)} refcount=${stored[cluster] ?? 0}`)
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

async function readCounts(walk: Walk, file: BlockChild, header: Header): Promise<number[]> {
  const { clusterBytes } = header.geometry
  const tableBytes = header.reftableClusters * clusterBytes
  const table = decodeTable(await readBytes(file, header.reftableOffset, tableBytes))
  const perBlock = (clusterBytes * 8) >> header.refcountOrder
  const stored: number[] = []
  for (const [index, offset] of table.entries()) {
    if (offset === 0) continue
    if (offset % clusterBytes !== 0 || offset >= file.length()) {
      walk.problems.push(
        `ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`,
      )
      continue
    }
    countRange(walk, header, offset, clusterBytes)
    const block = await readBytes(file, offset, clusterBytes)
    while (stored.length < index * perBlock) stored.push(0)
    for (let i = 0; i < perBlock; i++)
      stored[index * perBlock + i] = getRefcount(block, header.refcountOrder, i)
  }
  return stored
}
