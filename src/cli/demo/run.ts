/**
 * The demo from start to verdict: replicate, write, checkpoint, kill, fail over, merge, verify.
 *
 * Invariants:
 * - The moment of death is drawn from the seed before the first write.
 * - The run counts as good only if every block was compared and none was wrong.
 */
import { BlockError } from '../../index.ts'
import { Checkpoints, delay, type Side } from './checkpoints.ts'
import { Guest, type GuestDisk } from './guest.ts'
import { CheckpointRecord, Journal } from './journal.ts'
import type { DemoOptions } from './options.ts'
import { Pair } from './pair.ts'
import { BLOCK, fillBlocks, mix, WritePlan } from './pattern.ts'
import { Progress, type ProgressState } from './progress.ts'
import { type Verdict, verify } from './verify.ts'

/** Writers of the primary's guest. */
const WRITERS = 4

/** Set in every tag of the secondary's guest. */
const OWN_TAG = 0x8000_0000

/** Rest of the secondary's one writer between writes, so that the primary's guest has the machine. */
const OWN_REST_MS = 5

/** How long the promoted secondary's guest goes on writing at least. */
const AFTERMATH_MS = 250

/** What happened; times are milliseconds. */
export interface DemoResult {
  /** The seed, to run it again. */
  readonly seed: number
  /** Length of the disk in bytes. */
  readonly size: number
  /** Writes and bytes acknowledged by the primary. */
  readonly writes: number
  readonly bytes: number
  /** Average bytes a second until the kill. */
  readonly throughput: number
  /** Checkpoints acknowledged by both sides. */
  readonly checkpoints: number
  /** The primary died after the secondary had acknowledged one more checkpoint. */
  readonly torn: boolean
  /** How long the guests stood still at a checkpoint. */
  readonly pauseMedianMs: number
  readonly pauseMaxMs: number
  /** From the first write to the kill. */
  readonly killedAfterMs: number
  /** From the kill to the first write that the secondary accepted after taking over. */
  readonly firstWriteMs: number
  /** From the kill to the end of the merge. */
  readonly mergedMs: number
  /** Writes of the secondary's own guest since the last checkpoint; all must have survived. */
  readonly ownWrites: number
  /** Blocks compared, and how many of them were wrong. */
  readonly blocks: number
  readonly wrong: number
  readonly firstWrong: number | undefined
  /** Every block was compared and right. */
  readonly ok: boolean
}

/** Runs the demo. Errors: `BlockError` when something other than the verdict fails. */
export async function runDemo(
  options: DemoOptions,
  out: NodeJS.WriteStream,
  say: (line: string) => void,
): Promise<DemoResult> {
  const pair = await Pair.start(options.size, options.disk)
  try {
    return await new Run(options, pair).run(out, say)
  } finally {
    await pair.close()
  }
}

class Run {
  private readonly options: DemoOptions
  private readonly pair: Pair
  private readonly blocks: number
  private readonly record: CheckpointRecord
  private startMs = 0

  constructor(options: DemoOptions, pair: Pair) {
    this.options = options
    this.pair = pair
    this.blocks = Math.ceil(options.size / BLOCK)
    this.record = new CheckpointRecord(this.blocks)
  }

  async run(out: NodeJS.WriteStream, say: (line: string) => void): Promise<DemoResult> {
    const { pair, record } = this
    const primary = await this.side(WRITERS, 0, 0, () => pair.openPrimary())
    const secondary = await this.side(1, OWN_TAG, OWN_REST_MS, () => pair.openSecondary())
    const checkpoints = new Checkpoints(pair, record, primary, secondary)
    const progress = new Progress(out, () => this.look(primary, checkpoints))
    this.startMs = performance.now()
    primary.guest.start()
    secondary.guest.start()
    const kill = this.killLater()
    try {
      await checkpoints.run()
    } finally {
      progress.stop()
      clearTimeout(kill.timer)
    }
    const { killMs } = kill
    await primary.guest.stop()
    say(`primary killed ${((killMs - this.startMs) / 1000).toFixed(2)} s after the first write`)
    const firstWriteMs = (await this.takeOver(secondary)) - killMs
    await pair.merged()
    const mergedMs = performance.now() - killMs
    await delay(AFTERMATH_MS)
    await secondary.guest.stop()
    if (secondary.guest.error !== undefined) throw secondary.guest.error
    const verdict = await this.judge(secondary)
    await pair.secondary.quit()
    return this.result(primary, secondary, checkpoints, verdict, { killMs, firstWriteMs, mergedMs })
  }

  /** A guest with its connections; each writer has one. */
  private async side(
    writers: number,
    firstTag: number,
    restMs: number,
    connect: () => Promise<GuestDisk>,
  ): Promise<Side> {
    const { seed, size } = this.options
    const plan = new WritePlan(mix(seed, firstTag), this.blocks, writers)
    const disks: GuestDisk[] = []
    for (let writer = 0; writer < plan.writers; writer++) disks.push(await connect())
    const journal = new Journal(this.blocks)
    return { journal, guest: new Guest({ disks, size, seed, plan, journal, firstTag, restMs }) }
  }

  private look({ guest, journal }: Side, checkpoints: Checkpoints): ProgressState {
    return {
      bytes: guest.bytes,
      checkpoints: this.record.both,
      pauseMs: checkpoints.pausesMs.at(-1),
      dirtyBytes: journal.dirtyBlocks * BLOCK,
    }
  }

  /** Kills the primary somewhere in the second half of the run and notes when that was. */
  private killLater(): { killMs: number; timer: NodeJS.Timeout } {
    const share = 0.5 + mix(this.options.seed, 0x6b696c6c) / 0x2_0000_0000
    const kill = {
      killMs: 0,
      timer: setTimeout(
        () => {
          kill.killMs = performance.now()
          this.pair.primary.killNow()
        },
        share * this.options.seconds * 1000,
      ),
    }
    return kill
  }

  /** Promotes the secondary and lets its guest go on; answers when its first write was accepted. */
  private async takeOver({ guest }: Side): Promise<number> {
    await this.pair.failover()
    const before = guest.writes
    guest.resume()
    while (guest.writes === before && guest.error === undefined) await delay(0)
    return performance.now()
  }

  private async judge({ journal }: Side): Promise<Verdict> {
    const { size, seed, disk, sabotage } = this.options
    const top = await this.pair.openSecondary()
    await top.flush()
    const own = journal.now
    if (sabotage) await this.spoil(top)
    const expected = { size, seed, image: disk, checkpoint: this.record.tags, own }
    return verify(top, expected)
  }

  /** Writes a block that no journal knows of. */
  private async spoil(top: GuestDisk): Promise<void> {
    const block = mix(this.options.seed, 0x73706f69) % this.blocks
    const words = new Int32Array(BLOCK / 4)
    fillBlocks(words, ~this.options.seed, { block, count: 1, tag: 1 })
    const length = Math.min(BLOCK, this.options.size - block * BLOCK)
    await top.write(block * BLOCK, new Uint8Array(words.buffer).subarray(0, length))
  }

  private result(
    primary: Side,
    secondary: Side,
    { pausesMs }: Checkpoints,
    verdict: Verdict,
    times: { killMs: number; firstWriteMs: number; mergedMs: number },
  ): DemoResult {
    if (this.record.both === 0 && !this.record.torn && this.options.seconds >= 1) {
      throw new BlockError('EIO', 'no checkpoint was acknowledged before the kill')
    }
    const killedAfterMs = times.killMs - this.startMs
    const sorted = pausesMs.toSorted((a, b) => a - b)
    return {
      seed: this.options.seed,
      size: this.options.size,
      writes: primary.guest.writes,
      bytes: primary.guest.bytes,
      throughput: (primary.guest.bytes / killedAfterMs) * 1000,
      checkpoints: this.record.both,
      torn: this.record.torn,
      pauseMedianMs: sorted[sorted.length >> 1] ?? 0,
      pauseMaxMs: sorted.at(-1) ?? 0,
      killedAfterMs,
      firstWriteMs: times.firstWriteMs,
      mergedMs: times.mergedMs,
      ownWrites: secondary.journal.writes,
      ...verdict,
      ok: verdict.wrong === 0 && verdict.blocks === this.blocks,
    }
  }
}
