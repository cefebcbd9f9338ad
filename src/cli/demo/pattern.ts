/**
 * What the guests write: content and place of every write as a function of the seed.
 *
 * Invariants:
 * - A block's content depends on seed, tag and block number alone, so nobody has to remember it.
 * - Two writers never write the same block: groups of blocks belong to one writer each.
 */

/** Bytes of a block, the unit of the verdict; the last block of a disk may be shorter. */
export const BLOCK = 4096

/** Blocks of a group; a write stays within one group. */
const GROUP = 16

/** Part of the disk that takes half of all writes: one group in this many. */
const HOT = 16

/** One write. */
export interface PlannedWrite {
  /** First block. */
  readonly block: number
  /** Number of blocks, at least 1. */
  readonly count: number
  /** Identifies the write; never 0, which means the initial content. */
  readonly tag: number
}

/** A well mixed 32-bit number of up to three. */
export function mix(a: number, b: number, c = 0): number {
  let h = Math.imul(a ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(b + 0x7f4a7c15, 0xc2b2ae35)
  h = Math.imul(h ^ (h >>> 15) ^ Math.imul(c + 0x165667b1, 0x27d4eb2f), 0x2c1b3c6d)
  h = Math.imul(h ^ (h >>> 12), 0x297a2d39)
  return (h ^ (h >>> 15)) >>> 0
}

/** Fills words (whole blocks of `BLOCK` bytes) with the content of a write. */
export function fillBlocks(words: Int32Array, seed: number, write: PlannedWrite): void {
  const perBlock = BLOCK / 4
  for (let index = 0; index < write.count; index++) {
    let state = mix(seed, write.tag, write.block + index) | 1
    const start = index * perBlock
    for (let word = start; word < start + perBlock; word++) {
      state ^= state << 13
      state ^= state >>> 17
      state ^= state << 5
      words[word] = state
    }
  }
}

/** Plans the writes of all writers of one disk. */
export class WritePlan {
  /** How many writers there are; fewer than asked for on a tiny disk. */
  readonly writers: number
  private readonly seed: number
  private readonly blocks: number
  private readonly groups: number

  constructor(seed: number, blocks: number, writers: number) {
    this.seed = seed
    this.blocks = blocks
    this.groups = Math.ceil(blocks / GROUP)
    this.writers = Math.min(writers, this.groups)
  }

  /** The write number `n` (from 0) of a writer (from 0). */
  write(writer: number, n: number): PlannedWrite {
    const dice = mix(this.seed, writer, n)
    const own = Math.ceil((this.groups - writer) / this.writers)
    const range = dice % 2 === 0 ? own : Math.max(1, Math.floor(own / HOT))
    const group = writer + this.writers * (mix(dice, 1) % range)
    const first = group * GROUP
    const here = Math.min(GROUP, this.blocks - first)
    const start = mix(dice, 2) % here
    const count = 1 + (mix(dice, 3) % (here - start))
    return { block: first + start, count, tag: 1 + writer + this.writers * n }
  }
}
