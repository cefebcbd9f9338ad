/**
 * The second phase of a checkpoint: all disks switch to the new point in time together.
 *
 * Invariants:
 * - Every disk is drained and checked before this begins.
 * - A failure before anything was dropped leaves every disk where it was.
 * - A failure after that shuts both sides of every disk out: each is kept at the new point in time,
 *   and what could not be dropped is dropped by the next checkpoint, failover or stop.
 */
import { BlockError } from '../util/errors.ts'
import type { Emptied } from './buffers.ts'

/** A secondary that is drained and checked for a checkpoint. */
export interface CheckpointPart {
  /** An earlier checkpoint broke off: there is no way back to before it. */
  readonly interrupted: boolean
  /** Drops both buffers. Never rejects. */
  empty(): Promise<Emptied>
  /** The new point in time begins; after `empty` of every disk. */
  commit(): void
  /** The checkpoint failed and nothing was dropped: all stays as it was, with an error on record. */
  fail(error: BlockError): void
  /** Some disk dropped something and some could not: neither side is served from now on. */
  interrupt(error: BlockError): void
  /** Lets requests go on. */
  release(): void
}

/** Second phase of a checkpoint. Errors: what broke off, and whether the disks are where they were. */
export async function switchAll(parts: readonly CheckpointPart[]): Promise<void> {
  let moved = parts.some((part) => part.interrupted)
  const failures: { readonly part: CheckpointPart; readonly error: BlockError }[] = []
  for (const part of parts) {
    const outcome = await part.empty()
    moved ||= outcome.moved
    if (outcome.error !== undefined) failures.push({ part, error: outcome.error })
    if (failures.length > 0 && !moved) break
  }
  const [first] = failures
  if (first === undefined) {
    for (const part of parts) part.commit()
    return
  }
  if (!moved) {
    first.part.fail(first.error)
    throw first.error
  }
  const { code, context } = first.error
  const words = failures.map(({ error }) => error.message).join('; ')
  const sentence = `${words}; no disk is served until the next checkpoint, failover or stop`
  const error = new BlockError(code, sentence, context, first.error)
  for (const part of parts) part.interrupt(error)
  throw error
}
