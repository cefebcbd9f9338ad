/**
 * The table of internal snapshots, read so that nothing they need is lost.
 *
 * Invariants:
 * - Snapshots are never changed here; their clusters are shared and therefore copied before a write.
 */
import type { BlockChild } from '../../block/child.ts'
import { BlockError } from '../../util/errors.ts'
import { MAX_L1_BYTES, read64, viewOf } from './format.ts'
import type { Header } from './header.ts'

const FIXED_BYTES = 40

/** One internal snapshot. */
export interface Snapshot {
  readonly l1Offset: number
  /** Entries of its L1 table. */
  readonly l1Size: number
  readonly id: string
  readonly name: string
  /** When it was taken, since the epoch. */
  readonly seconds: number
  readonly nanoseconds: number
  /** The machine's own clock then. */
  readonly clockNs: number
  /** Bytes of machine state stored with it. */
  readonly stateBytes: number
  /** Instructions executed by then, where that was counted. */
  readonly icount: number | undefined
  /** Where its entry ends in the file. */
  readonly end: number
}

/** Reads the table. Errors: EINVAL when it makes no sense. */
export async function readSnapshots(file: BlockChild, header: Header): Promise<Snapshot[]> {
  const found: Snapshot[] = []
  const { clusterBytes } = header.geometry
  let at = header.snapshotsOffset
  for (let i = 0; i < header.snapshots; i++) {
    const fixed = viewOf(await read(file, at, FIXED_BYTES))
    const l1Offset = read64(fixed, 0)
    const l1Size = fixed.getUint32(8)
    const idBytes = fixed.getUint16(12)
    const nameBytes = fixed.getUint16(14)
    const extraBytes = fixed.getUint32(36)
    if (l1Size * 8 > MAX_L1_BYTES || l1Offset % clusterBytes !== 0 || extraBytes > 1024)
      throw new BlockError('EINVAL', 'Snapshot table is damaged')
    const extra = viewOf(await read(file, at + FIXED_BYTES, extraBytes))
    const texts = await read(file, at + FIXED_BYTES + extraBytes, idBytes + nameBytes)
    const used = FIXED_BYTES + extraBytes + idBytes + nameBytes
    at += Math.ceil(used / 8) * 8
    found.push({
      l1Offset,
      l1Size,
      id: Buffer.from(texts.subarray(0, idBytes)).toString(),
      name: Buffer.from(texts.subarray(idBytes)).toString(),
      seconds: fixed.getUint32(16),
      nanoseconds: fixed.getUint32(20),
      clockNs: Number(fixed.getBigUint64(24)),
      stateBytes: extraBytes >= 8 ? Number(extra.getBigUint64(0)) : fixed.getUint32(32),
      icount: extraBytes >= 24 ? counted(extra.getBigInt64(16)) : undefined,
      end: at,
    })
  }
  return found
}

function counted(icount: bigint): number | undefined {
  return icount < 0n ? undefined : Number(icount)
}

async function read(file: BlockChild, offset: number, bytes: number): Promise<Uint8Array> {
  const into = new Uint8Array(bytes)
  if (offset >= Number.MAX_SAFE_INTEGER) throw new BlockError('EINVAL', 'Snapshot table is damaged')
  const pending = file.pread(offset, into)
  if (pending !== undefined) await pending
  return into
}
