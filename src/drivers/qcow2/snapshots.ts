/**
 * The table of internal snapshots, read and written so that nothing in it is lost.
 *
 * Invariants:
 * - What an entry holds beyond the fields known here survives a rewrite byte for byte.
 * - A table is written to a place of its own; the header points at it only after it is stable.
 */
import type { BlockChild } from '../../block/child.ts'
import type { InternalSnapshot } from '../../block/driver.ts'
import { BlockError } from '../../util/errors.ts'
import { MAX_L1_BYTES, read64, viewOf, write64 } from './format.ts'
import type { Header } from './header.ts'

const FIXED_BYTES = 40
/** Extra bytes of an entry as written here: state size, disk size, instruction count. */
const EXTRA_BYTES = 24
const MAX_EXTRA_BYTES = 1024
/** Largest table in bytes. */
const MAX_TABLE_BYTES = 64 * 1024 * 1024
/** Longest name in bytes; more is cut off. */
const MAX_NAME_BYTES = 255

/** One internal snapshot. */
export interface Snapshot extends InternalSnapshot {
  readonly l1Offset: number
  /** Entries of its L1 table. */
  readonly l1Size: number
  /** Bytes of the disk then; undefined: as many as the image has now. */
  readonly diskBytes: number | undefined
  /** Its entry as it lies in the file, with padding. */
  readonly raw: Uint8Array
  /** Where its entry ends in the file. */
  readonly end: number
}

/** Reads the table. Errors: EINVAL when it makes no sense. */
export async function readSnapshots(file: BlockChild, header: Header): Promise<Snapshot[]> {
  const found: Snapshot[] = []
  let at = header.snapshotsOffset
  for (let i = 0; i < header.snapshots; i++) {
    const snapshot = await readEntry(file, header, at)
    at = snapshot.end
    if (at - header.snapshotsOffset > MAX_TABLE_BYTES) damaged()
    found.push(snapshot)
  }
  return found
}

function damaged(): never {
  throw new BlockError('EINVAL', 'Snapshot table is damaged')
}

async function readEntry(file: BlockChild, header: Header, at: number): Promise<Snapshot> {
  const fixed = await read(file, at, FIXED_BYTES)
  const view = viewOf(fixed)
  const extraBytes = view.getUint32(36)
  if (extraBytes > MAX_EXTRA_BYTES) damaged()
  const rest = extraBytes + view.getUint16(12) + view.getUint16(14)
  const raw = new Uint8Array(padded(FIXED_BYTES + rest))
  raw.set(fixed)
  raw.set(await read(file, at + FIXED_BYTES, rest), FIXED_BYTES)
  const snapshot = decodeEntry(raw, at)
  const { l1Offset, l1Size } = snapshot
  const aligned = l1Offset % header.geometry.clusterBytes === 0
  if (!aligned || l1Offset > Number.MAX_SAFE_INTEGER || l1Size * 8 > MAX_L1_BYTES) damaged()
  return snapshot
}

const padded = (bytes: number): number => Math.ceil(bytes / 8) * 8

function decodeEntry(raw: Uint8Array, at: number): Snapshot {
  const view = viewOf(raw)
  const extraBytes = view.getUint32(36)
  const idAt = FIXED_BYTES + extraBytes
  const nameAt = idAt + view.getUint16(12)
  const has = (bytes: number): boolean => extraBytes >= bytes
  return {
    l1Offset: read64(view, 0),
    l1Size: view.getUint32(8),
    id: Buffer.from(raw.subarray(idAt, nameAt)).toString(),
    name: Buffer.from(raw.subarray(nameAt, nameAt + view.getUint16(14))).toString(),
    seconds: view.getUint32(16),
    nanoseconds: view.getUint32(20),
    clockNs: Number(view.getBigUint64(24)),
    stateBytes: has(8) ? Number(view.getBigUint64(FIXED_BYTES)) : view.getUint32(32),
    diskBytes: has(16) ? Number(view.getBigUint64(FIXED_BYTES + 8)) : undefined,
    icount: has(24) ? counted(view.getBigInt64(FIXED_BYTES + 16)) : undefined,
    raw,
    end: at + raw.length,
  }
}

function counted(icount: bigint): number | undefined {
  return icount < 0n ? undefined : Number(icount)
}

async function read(file: BlockChild, offset: number, bytes: number): Promise<Uint8Array> {
  const into = new Uint8Array(bytes)
  if (offset >= Number.MAX_SAFE_INTEGER) damaged()
  const pending = file.pread(offset, into)
  if (pending !== undefined) await pending
  return into
}

/** What a new snapshot is made of. */
export type NewSnapshot = Pick<
  Snapshot,
  'id' | 'name' | 'seconds' | 'nanoseconds' | 'clockNs' | 'l1Offset' | 'l1Size'
>

/** A new snapshot of a disk of `diskBytes`. */
export function makeSnapshot(wanted: NewSnapshot, diskBytes: number): Snapshot {
  const id = Buffer.from(wanted.id)
  const name = Buffer.from(keptName(wanted.name))
  const nameAt = FIXED_BYTES + EXTRA_BYTES + id.length
  const raw = new Uint8Array(padded(nameAt + name.length))
  const view = viewOf(raw)
  write64(view, 0, wanted.l1Offset)
  view.setUint32(8, wanted.l1Size)
  view.setUint16(12, id.length)
  view.setUint16(14, name.length)
  view.setUint32(16, wanted.seconds)
  view.setUint32(20, wanted.nanoseconds)
  view.setBigUint64(24, BigInt(wanted.clockNs))
  view.setUint32(36, EXTRA_BYTES)
  write64(view, FIXED_BYTES + 8, diskBytes)
  view.setBigInt64(FIXED_BYTES + 16, -1n)
  raw.set(id, FIXED_BYTES + EXTRA_BYTES)
  raw.set(name, nameAt)
  return decodeEntry(raw, 0)
}

/** The same snapshot, with the size of its disk written down. */
export function withDiskBytes(snapshot: Snapshot, diskBytes: number): Snapshot {
  if (snapshot.diskBytes !== undefined) return snapshot
  const old = snapshot.raw
  const view = viewOf(old)
  const extraBytes = view.getUint32(36)
  const texts = old.subarray(FIXED_BYTES + extraBytes)
  const raw = new Uint8Array(padded(FIXED_BYTES + 16 + texts.length))
  raw.set(old.subarray(0, FIXED_BYTES + extraBytes))
  viewOf(raw).setUint32(36, 16)
  write64(viewOf(raw), FIXED_BYTES, snapshot.stateBytes)
  write64(viewOf(raw), FIXED_BYTES + 8, diskBytes)
  raw.set(texts, FIXED_BYTES + 16)
  return decodeEntry(raw, 0)
}

/** The name as far as it is kept, cut between two characters. */
function keptName(name: string): string {
  const bytes = Buffer.from(name)
  if (bytes.length <= MAX_NAME_BYTES) return name
  let end = MAX_NAME_BYTES
  while (((bytes[end] ?? 0) & 0xc0) === 0x80) end--
  return bytes.subarray(0, end).toString()
}

/** The number that follows those of all snapshots. */
export function nextId(snapshots: readonly Snapshot[]): string {
  const numbers = snapshots.map(({ id }) => Number.parseInt(id, 10) || 0)
  return String(Math.max(0, ...numbers) + 1)
}

/** A table as it lies in the file. Errors: EINVAL when it gets too long. */
export function encodeSnapshots(snapshots: readonly Snapshot[]): Uint8Array {
  const bytes = Buffer.concat(snapshots.map(({ raw }) => raw))
  if (bytes.length > MAX_TABLE_BYTES) throw new BlockError('EINVAL', 'Snapshot table too large')
  return bytes
}

/** The snapshots with their ends when their table lies at `offset`. */
export function placedAt(snapshots: readonly Snapshot[], offset: number): Snapshot[] {
  let end = offset
  return snapshots.map((snapshot) => {
    end += snapshot.raw.length
    return { ...snapshot, end }
  })
}
