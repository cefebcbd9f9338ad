/**
 * All replication nodes of a runtime, and the orders that go to all of them.
 *
 * Invariants:
 * - One order runs at a time; the others wait in line.
 * - Start is all or nothing. A checkpoint drains and checks every disk before it moves any; one that
 *   fails leaves every disk where it was, or, when buffers were dropped already, none served.
 * - A failover is tried on every disk; what failed is told together at the end.
 */
import type { BlockNode } from '../block/node.ts'
import { asBlockError, BlockError } from '../util/errors.ts'
import { type CheckpointPart, switchAll } from './checkpoint.ts'
import type { ForwardFailure, PrimaryReplication } from './primary.ts'
import type { SecondaryReplication } from './secondary.ts'
import type { ReplicationMode, Stage } from './stage.ts'

/** State of one replication node. */
export type Replication = PrimaryReplication | SecondaryReplication

/** What one replication node says of itself. */
export interface ReplicationStatus {
  readonly node: string
  readonly mode: ReplicationMode
  readonly stage: Stage
  /** Why status is in error. */
  readonly error?: string
  /** What is behind that: the disk and what it said. */
  readonly cause?: string
  /** Checkpoints since the start (secondary). */
  readonly epoch: number
  /** Milliseconds since the last checkpoint, or since the start (secondary). */
  readonly checkpointAgeMs: number
  /** How long the last checkpoint kept requests waiting, in milliseconds (secondary). */
  readonly lastPauseMs: number
  /** Bytes of old data saved since the last checkpoint (secondary). */
  readonly copiedBytes: number
  /** Writes that did not reach the other side (primary). */
  readonly forwardFailures: number
  /** The last of them (primary). */
  readonly lastFailure?: ForwardFailure
  /** Bytes that the other side lacks until a resync (primary). */
  readonly missingBytes: number
  /** Writes from the primary that failed because old data could not be saved (secondary). */
  readonly copyFailures: number
}

/** The replication nodes of one runtime. Main thread only. */
export class ReplicationRegistry {
  readonly #all: Replication[] = []
  #line: Promise<unknown> = Promise.resolve()

  /** A replication node was opened. */
  add(one: Replication): void {
    this.#all.unshift(one)
  }

  /** A replication node closes. */
  remove(one: Replication): void {
    const at = this.#all.indexOf(one)
    if (at >= 0) this.#all.splice(at, 1)
  }

  /** The state of a node. */
  find(nodeName: string): Replication | undefined {
    return this.#all.find((one) => one.node.name === nodeName)
  }

  /** Every node, newest first. */
  list(): ReplicationStatus[] {
    return this.#all.map(statusOf)
  }

  /** Starts every node, or none. Errors: the first failure. */
  startAll(mode: ReplicationMode): Promise<void> {
    return this.#inLine(async () => {
      const undo: (() => void | Promise<void>)[] = []
      try {
        for (const one of [...this.#all]) if (one.mayStart(mode)) undo.push(await one.start())
      } catch (error) {
        for (const back of undo.reverse()) await back()
        throw error
      }
    })
  }

  /** Moves every disk to the present, or none. Errors: the first disk that cannot. */
  checkpointAll(): Promise<void> {
    return this.#inLine(async () => {
      const parts: CheckpointPart[] = []
      try {
        for (const one of this.#all) if (one.mode === 'primary') one.checkCheckpoint()
        for (const one of this.#all)
          if (one.mode === 'secondary' && one.may('checkpoint'))
            parts.push(await one.prepareCheckpoint())
        await switchAll(parts)
      } finally {
        for (const part of parts.reverse()) part.release()
      }
    })
  }

  /** Stops every node, by failover or by discarding the buffers. Errors: all failures together. */
  stopAll(failover: boolean): Promise<void> {
    return this.#inLine(async () => {
      const errors: BlockError[] = []
      for (const one of [...this.#all]) {
        try {
          await stopOne(one, failover)
        } catch (thrown) {
          errors.push(asBlockError(thrown, { node: one.node.name }))
        }
      }
      const [first, ...more] = errors
      if (first === undefined) return
      if (more.length === 0) throw first
      throw new BlockError(first.code, errors.map((e) => e.message).join('; '), first.context)
    })
  }

  /**
   * Sends a primary's missing ranges again, read from `source`. Errors: EINVAL for a node that is no
   * primary or does not run, those of the copy.
   */
  async resync(nodeName: string, source: BlockNode): Promise<void> {
    const one = this.find(nodeName)
    if (one?.mode !== 'primary')
      throw new BlockError('EINVAL', `Node '${nodeName}' is not the primary of a replication`)
    await one.resync(source)
  }

  /** Tries the failed merge of a secondary again. Errors: EINVAL when none has failed. */
  retryFailover(nodeName: string): Promise<void> {
    return this.#inLine(async () => {
      const one = this.find(nodeName)
      if (one?.mode !== 'secondary')
        throw new BlockError('EINVAL', `Node '${nodeName}' is not the secondary of a replication`)
      await one.retryFailover()
    })
  }

  /** Throws the first failure that a node has on record. */
  getErrorAll(): void {
    for (const one of this.#all) one.getError()
  }

  /** Waits until no merge runs. */
  async settled(): Promise<void> {
    await this.#inLine(async () => undefined)
    for (const one of this.#all) if (one.mode === 'secondary') await one.merged()
  }

  /** Ends everything that runs, for the end of the process. */
  shutdownAll(): Promise<void> {
    return this.#inLine(async () => {
      for (const one of [...this.#all]) if (one.mode === 'secondary') await one.shutdown()
    })
  }

  #inLine<T>(action: () => Promise<T>): Promise<T> {
    const turn = this.#line.then(action)
    this.#line = turn.catch(() => undefined)
    return turn
  }
}

async function stopOne(one: Replication, failover: boolean): Promise<void> {
  if (one.mode === 'primary') one.stop()
  else if (failover && one.may('failover')) await one.failover()
  else if (!failover && one.may('stop')) await one.stop()
}

function statusOf(one: Replication): ReplicationStatus {
  let error: string | undefined
  let cause: string | undefined
  try {
    one.getError()
  } catch (thrown) {
    error = asBlockError(thrown).message
    if (thrown instanceof Error && thrown.cause instanceof Error) cause = thrown.cause.message
  }
  const secondary = one.mode === 'secondary' ? one : undefined
  const failure = one.mode === 'primary' ? one.failure : undefined
  return {
    node: one.node.name,
    mode: one.mode,
    stage: one.stage,
    ...(error === undefined ? {} : { error }),
    ...(cause === undefined ? {} : { cause }),
    epoch: secondary?.epoch ?? 0,
    checkpointAgeMs: secondary?.checkpointAgeMs ?? 0,
    lastPauseMs: secondary?.lastPauseMs ?? 0,
    copiedBytes: secondary?.copiedBytes ?? 0,
    forwardFailures: one.mode === 'primary' ? one.failures : 0,
    ...(failure === undefined ? {} : { lastFailure: failure }),
    missingBytes: one.mode === 'primary' ? one.missingBytes : 0,
    copyFailures: secondary?.copyFailures ?? 0,
  }
}
