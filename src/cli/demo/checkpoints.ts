/**
 * The checkpoint loop: both guests still, both sides told, and only then a new expected state.
 *
 * Invariants:
 * - A checkpoint begins with no guest write in flight on either side.
 * - The secondary is told first: its acknowledgement decides which state a failover leads to. A
 *   primary that dies between the two leaves the record torn, which is said and not guessed.
 * - The loop ends by itself when the primary is gone; any other failure is an error of the run.
 */
import { BlockError } from '../../index.ts'
import type { Guest } from './guest.ts'
import type { CheckpointRecord, Journal } from './journal.ts'
import { checkHealth, type Peer } from './pair.ts'

/** Time between the beginnings of two checkpoints. */
const INTERVAL_MS = 250

/** How long the host may take to report the death of a process whose connection broke. */
const DEATH_LIMIT_MS = 5000

/** A side's process, as far as the loop needs to know it. */
export interface WatchedPeer extends Peer {
  /** Settles when the process is gone. */
  readonly exited: Promise<unknown>
  /** How it ended; undefined while it runs. */
  readonly exit: { readonly signal: string | null } | undefined
}

/** One guest with its journal. */
export interface Side {
  readonly guest: Guest
  readonly journal: Journal
}

/** The running checkpoints of a pair. */
export class Checkpoints {
  /** How long the guests stood still at each checkpoint, in milliseconds. */
  readonly pausesMs: number[] = []
  private readonly pair: { readonly primary: WatchedPeer; readonly secondary: Peer }
  private readonly record: CheckpointRecord
  private readonly primary: Side
  private readonly secondary: Side
  private primaryFailed = false

  constructor(
    pair: { readonly primary: WatchedPeer; readonly secondary: Peer },
    record: CheckpointRecord,
    primary: Side,
    secondary: Side,
  ) {
    this.pair = pair
    this.record = record
    this.primary = primary
    this.secondary = secondary
  }

  /** Takes checkpoints until the primary dies. Errors: EIO when replication fails before that. */
  async run(): Promise<void> {
    for (;;) {
      await Promise.race([delay(INTERVAL_MS), this.pair.primary.exited])
      if (this.pair.primary.exit !== undefined) break
      const begin = performance.now()
      try {
        await this.take()
      } catch (thrown) {
        await this.expectDeath(thrown)
        break
      }
      this.primary.guest.resume()
      this.secondary.guest.resume()
      this.pausesMs.push(performance.now() - begin)
    }
    await this.secondary.guest.pause()
  }

  private async take(): Promise<void> {
    const { pair, record, primary, secondary } = this
    const still = await Promise.all([primary.guest.pause(), secondary.guest.pause()])
    if (!still[1]) throw secondary.guest.error
    if (!still[0]) await this.ofPrimary(Promise.reject(primary.guest.error))
    const sick =
      (await this.ofPrimary(checkHealth(pair.primary))) ?? (await checkHealth(pair.secondary))
    if (sick !== undefined) throw new BlockError('EIO', sick, { op: 'checkpoint' })
    await pair.secondary.checkpoint()
    record.secondaryDone(primary.journal.now)
    primary.journal.beginEpoch()
    secondary.journal.forget()
    await this.ofPrimary(pair.primary.checkpoint())
    record.primaryDone()
  }

  /** Remembers that a failure came from the primary: only those can be explained by its death. */
  private async ofPrimary<T>(work: Promise<T>): Promise<T> {
    try {
      return await work
    } catch (thrown) {
      this.primaryFailed = true
      throw thrown
    }
  }

  /** A failure of the primary is fine when it is dead; any other is not. */
  private async expectDeath(thrown: unknown): Promise<void> {
    if (!this.primaryFailed) throw thrown
    await Promise.race([this.pair.primary.exited, delay(DEATH_LIMIT_MS)])
    if (this.pair.primary.exit?.signal !== 'SIGKILL') throw thrown
  }
}

/** Resolves after `ms` milliseconds. */
export function delay(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms)
  })
}
