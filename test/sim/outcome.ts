/** How a history, or a piece of work in it, ended. */
import { asBlockError, type BlockError } from '../../src/util/errors.ts'

/** How a history ended. */
export interface Verdict {
  readonly seed: number
  /** What was wrong, first things first; empty for a good history. */
  readonly problems: readonly string[]
  readonly trace: readonly string[]
  /** How it ended: `failover`, `stop`, `close` … */
  readonly finale: Finale
  readonly requests: number
  readonly checkpoints: number
  /** Checkpoints that broke off after a buffer had been dropped. */
  readonly interrupted: number
  /** Cells of the matrix that it met. */
  readonly cells: ReadonlySet<string>
}

/** How a history ends. */
export type Finale = 'failover' | 'crash' | 'stop' | 'close' | 'close-merging'

/** The failure of some work, or undefined. */
export async function failureOf(work: Promise<void>): Promise<BlockError | undefined> {
  try {
    await work
    return undefined
  } catch (thrown) {
    return asBlockError(thrown)
  }
}

/** An error with the place it came from. */
export function describe(thrown: unknown): string {
  return thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown)
}
