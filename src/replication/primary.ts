/**
 * The primary side: forwards writes, and remembers what did not arrive.
 *
 * Invariants:
 * - A forwarding failure never reaches the guest; it is recorded with place, cause and time.
 * - While anything is missing on the other side no checkpoint succeeds: a secondary disk that lacks a
 *   write must not be called complete.
 */
import type { BlockNode } from '../block/node.ts'
import { asBlockError, BlockError, type ErrorCode, ioError } from '../util/errors.ts'
import { MODE_NUMBER, type ReplicationMode, type Stage, VERB_RULES } from './stage.ts'

/** A write that did not reach the other side. */
export interface ForwardFailure {
  /** The replication node. */
  readonly node: string
  readonly offset: number
  readonly bytes: number
  readonly code: ErrorCode
  readonly message: string
  /** Milliseconds on the context's clock. */
  readonly atMs: number
}

/** State of one primary. Main thread only. */
export class PrimaryReplication {
  readonly mode = 'primary'
  /** The replication node. */
  readonly node: BlockNode
  stage: Stage = 'none'
  /** The last failure; undefined while everything arrived. */
  failure: ForwardFailure | undefined
  /** How many writes did not arrive. */
  failures = 0

  constructor(node: BlockNode) {
    this.node = node
  }

  /** A forwarded write failed. */
  record(thrown: unknown, offset: number, bytes: number): void {
    const { code, message } = asBlockError(thrown)
    const { ctx } = this.node.graph
    this.failures++
    this.failure = { node: this.node.name, offset, bytes, code, message, atMs: ctx.clock.nowMs() }
  }

  /** Throws what `get-error` reports. */
  getError(): void {
    if (this.stage === 'none') throw new BlockError('EINVAL', 'Block replication is not running')
    if (this.failure !== undefined) throw forwardError(this.failure)
  }

  /** Checks an order to start. Errors: EINVAL. Answers whether there is anything to do. */
  mayStart(mode: ReplicationMode): boolean {
    const rule = VERB_RULES.start[this.stage]
    if (rule === 'ignore') return false
    if (rule !== 'run') throw new BlockError('EINVAL', rule.refuse, { node: this.node.name })
    if (mode !== this.mode) throw wrongMode(this.mode, mode)
    return true
  }

  /** Starts; answers how to take the start back. */
  start(): () => void {
    this.stage = 'running'
    this.#clear()
    return () => {
      this.stage = 'none'
    }
  }

  /** Refuses a checkpoint while a write is missing on the other side. */
  checkCheckpoint(): void {
    if (this.stage === 'running' && this.failure !== undefined) throw forwardError(this.failure)
  }

  /** Stops forwarding. Errors: EINVAL when not running. */
  stop(): void {
    const rule = VERB_RULES.stop[this.stage]
    if (rule === 'ignore') return
    if (rule !== 'run') throw new BlockError('EINVAL', rule.refuse, { node: this.node.name })
    this.stage = 'done'
    this.#clear()
  }

  #clear(): void {
    this.failure = undefined
    this.failures = 0
  }
}

/** The refusal of an order for the other mode. */
export function wrongMode(own: ReplicationMode, got: ReplicationMode): BlockError {
  return new BlockError(
    'EINVAL',
    `The parameter mode's value is invalid, needs ${MODE_NUMBER[own]}, but got ${MODE_NUMBER[got]}`,
  )
}

function forwardError(failure: ForwardFailure): BlockError {
  const { node, offset, bytes } = failure
  const context = { node, offset, bytes, op: 'forward' }
  const cause = ioError(failure.code, context)
  return new BlockError('EIO', 'I/O error occurred', context, cause)
}
