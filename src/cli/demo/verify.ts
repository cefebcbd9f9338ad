/**
 * The verdict: reads a whole disk and compares every block with what the journal says it must hold.
 *
 * Invariants:
 * - The expected bytes come from the journal, the seed and the user's own image, never from a disk
 *   of the pair.
 * - Every byte of the disk is compared exactly once.
 */
import { type FileHandle, open } from 'node:fs/promises'
import type { GuestDisk } from './guest.ts'
import type { Tags } from './journal.ts'
import { BLOCK, fillBlocks } from './pattern.ts'

/** Bytes of one read. */
const CHUNK = 1024 * 1024

/** Reads that run at once. */
const DEPTH = 4

/** Outcome of a verification. */
export interface Verdict {
  /** Blocks compared. */
  readonly blocks: number
  /** Blocks that differ. */
  readonly wrong: number
  /** Number of the first block that differs. */
  readonly firstWrong: number | undefined
}

/** What to compare with. */
export interface Expected {
  /** Length of the disk in bytes. */
  readonly size: number
  /** Tags of the checkpoint. */
  readonly checkpoint: Tags
  /** Tags of the secondary's own writes, which cover those of the checkpoint. */
  readonly own: Tags
  /** Seed of the content. */
  readonly seed: number
  /** The user's image, which holds the initial content; undefined: zeroes. */
  readonly image: string | undefined
}

/** Compares a disk. Errors: those of reading. */
export async function verify(disk: GuestDisk, expected: Expected): Promise<Verdict> {
  const image = expected.image === undefined ? undefined : await open(expected.image, 'r')
  const wrong: number[] = []
  let next = 0
  const worker = async (): Promise<void> => {
    const found = Buffer.alloc(Math.min(CHUNK, expected.size))
    const wanted = Buffer.alloc(found.length)
    for (;;) {
      const offset = next
      next += CHUNK
      if (offset >= expected.size) return
      const length = Math.min(CHUNK, expected.size - offset)
      await disk.read(offset, found.subarray(0, length))
      await expect(expected, image, offset, wanted.subarray(0, length))
      compare(offset, found.subarray(0, length), wanted, wrong)
    }
  }
  try {
    await Promise.all(Array.from({ length: DEPTH }, worker))
  } finally {
    await image?.close()
  }
  const firstWrong = wrong.length === 0 ? undefined : Math.min(...wrong.slice(0, 1000))
  return { blocks: Math.ceil(expected.size / BLOCK), wrong: wrong.length, firstWrong }
}

async function expect(
  { checkpoint, own, seed }: Expected,
  image: FileHandle | undefined,
  offset: number,
  wanted: Buffer,
): Promise<void> {
  wanted.fill(0)
  if (image !== undefined) await image.read(wanted, 0, wanted.length, offset)
  const words = new Int32Array(BLOCK / 4)
  for (let at = 0; at < wanted.length; at += BLOCK) {
    const block = (offset + at) / BLOCK
    const tag = own[block] || checkpoint[block] || 0
    if (tag === 0) continue
    fillBlocks(words, seed, { block, count: 1, tag })
    wanted.set(new Uint8Array(words.buffer).subarray(0, wanted.length - at), at)
  }
}

function compare(offset: number, found: Buffer, wanted: Buffer, wrong: number[]): void {
  for (let at = 0; at < found.length; at += BLOCK) {
    const end = Math.min(at + BLOCK, found.length)
    if (wanted.compare(found, at, end, at, end) !== 0) wrong.push((offset + at) / BLOCK)
  }
}
