/**
 * The demo's own record of acknowledged writes: what every block must hold, kept apart from the disks.
 *
 * Invariants:
 * - A write is recorded after its acknowledgement and never before.
 * - The expected state changes in one step, when a checkpoint was acknowledged.
 * - Nothing here is ever read from a disk that is judged.
 */

/** Tags by block: 0 is the initial content, any other number the write that last covered the block. */
export type Tags = Uint32Array

/** One guest's view of one disk. */
export class Journal {
  /** Tag of each block after all acknowledged writes. */
  readonly now: Tags
  private readonly dirtyIn: Uint32Array
  /** Writes recorded since the beginning or the last `forget`. */
  writes = 0
  private epoch = 1
  private dirty = 0

  constructor(blocks: number) {
    this.now = new Uint32Array(blocks)
    this.dirtyIn = new Uint32Array(blocks)
  }

  /** How many different blocks were written since the last `beginEpoch`. */
  get dirtyBlocks(): number {
    return this.dirty
  }

  /** Records an acknowledged write. */
  record(block: number, count: number, tag: number): void {
    this.writes++
    for (let index = block; index < block + count; index++) {
      this.now[index] = tag
      if (this.dirtyIn[index] === this.epoch) continue
      this.dirtyIn[index] = this.epoch
      this.dirty++
    }
  }

  /** Starts to count dirty blocks anew. */
  beginEpoch(): void {
    this.epoch++
    this.dirty = 0
  }

  /** Forgets all writes: the blocks are back at what is under them. */
  forget(): void {
    this.now.fill(0)
    this.writes = 0
    this.beginEpoch()
  }
}

/** The state at the last checkpoint that counts. */
export class CheckpointRecord {
  /** Tag of each block at that checkpoint; the initial content before the first. */
  tags: Tags
  /** Checkpoints acknowledged by both sides. */
  both = 0
  /** The last checkpoint was acknowledged by the secondary, and the primary died before it could. */
  torn = false

  constructor(blocks: number) {
    this.tags = new Uint32Array(blocks)
  }

  /**
   * The secondary has acknowledged: from here on a failover leads to this state, whatever becomes of
   * the primary. `torn` stays set until the primary acknowledges too.
   */
  secondaryDone(tags: Tags): void {
    this.tags = tags.slice()
    this.torn = true
  }

  /** The primary has acknowledged the same checkpoint. */
  primaryDone(): void {
    this.torn = false
    this.both++
  }
}
