/**
 * The primary side: forwards writes, remembers what did not arrive, and sends it again.
 *
 * Invariants:
 * - A range whose forwarding failed stays marked until a resync has sent it.
 * - A forwarding failure never reaches the guest; it is recorded with place, cause and time.
 * - While anything is missing on the other side no checkpoint succeeds: a secondary disk that lacks a
 *   write must not be called complete.
 */
import { BlockBackend } from '../block/backend.ts'
import { PERM } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { DirtyBitmap } from '../sync/dirty-bitmap.ts'
import { asBlockError, BlockError, type ErrorCode, ioError } from '../util/errors.ts'
import { announceStage } from './announce.ts'
import { MODE_NUMBER, type ReplicationMode, type Stage, VERB_RULES } from './stage.ts'

/** Granularity of what is remembered as missing, and the most a resync copies at once, in bytes. */
const REGION_BYTES = 65536
const PIECE_BYTES = 1024 * 1024

/** A write that did not reach the other side. */
export interface ForwardFailure {
  /** The replication node. */
  readonly node: string
  /** First byte. */
  readonly offset: number
  /** Bytes. */
  readonly bytes: number
  /** Why. */
  readonly code: ErrorCode
  /** Why, in words. */
  readonly message: string
  /** Milliseconds on the context's clock. */
  readonly atMs: number
}

/** State of one primary. Main thread only. */
export class PrimaryReplication {
  readonly mode = 'primary'
  /** The replication node. */
  readonly node: BlockNode
  #stage: Stage = 'none'
  /** The last failure; undefined while everything arrived. */
  failure: ForwardFailure | undefined
  /** How many writes did not arrive. */
  failures = 0
  #missing: DirtyBitmap | undefined
  #resyncing = false

  constructor(node: BlockNode) {
    this.node = node
  }

  /** Where it is in its life. */
  get stage(): Stage {
    return this.#stage
  }

  /** Bytes that the other side lacks, in whole regions. */
  get missingBytes(): number {
    return this.#missing?.dirtyBytes ?? 0
  }

  /** A forwarded write failed. */
  record(thrown: unknown, offset: number, bytes: number): void {
    this.#missing ??= DirtyBitmap.create(this.node.length(), REGION_BYTES)
    this.#missing.setRange(offset, bytes)
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
    this.#enter('running')
    this.#clear()
    return () => this.#enter('none')
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
    this.#enter('done')
    this.#clear()
  }

  /**
   * Sends what is missing, read from `source` (the disk whose writes are forwarded), and clears the
   * error when everything arrived. Errors: EINVAL when not running, EBUSY while another one runs,
   * the first failed read or write; what is left then stays marked.
   */
  async resync(source: BlockNode): Promise<void> {
    if (this.stage !== 'running')
      throw new BlockError('EINVAL', 'Block replication is not running', { node: this.node.name })
    if (this.#resyncing)
      throw new BlockError('EBUSY', `Node '${this.node.name}' is being resynchronised`)
    this.#resyncing = true
    // A write that was forwarded already may still be on its way to the source: what is read there
    // before it ends is old, so its end makes the range missing again.
    const mark = (offset: number, bytes: number): void => this.#missing?.setRange(offset, bytes)
    source.writeListeners.add(mark)
    const { graph } = this.node
    try {
      await this.#sendMissing(source, false)
      // First the way to the other side: a write that took it has begun at the source as well.
      await graph.withDrained(this.node, () =>
        graph.withDrained(source, async () => {
          await this.#sendMissing(source, true)
          // Writes that go on when the section ends reach both sides: nothing of theirs is missing.
          source.writeListeners.delete(mark)
          // A write may have failed behind the copier's back: then the error stays.
          if (this.missingBytes === 0) this.#clear()
        }),
      )
    } finally {
      source.writeListeners.delete(mark)
      this.#resyncing = false
    }
  }

  /** One pass over what is missing; `drained`: nobody writes to the source meanwhile. */
  async #sendMissing(source: BlockNode, drained: boolean): Promise<void> {
    const reader = await BlockBackend.create(this.node.graph, source, {
      perm: PERM.CONSISTENT_READ,
      shared: PERM.ALL,
      description: `resync of '${this.node.name}'`,
      disableQueuing: drained,
    })
    try {
      for (let at = 0; ; ) {
        const range = this.#missing?.nextDirty(at, PIECE_BYTES)
        if (range === undefined) break
        await this.#send(reader, range.offset, range.bytes)
        at = range.offset + range.bytes
      }
    } finally {
      await reader.close()
    }
  }

  /** Copies one range while no guest write to it is on its way to the other side. */
  async #send(reader: BlockBackend, offset: number, bytes: number): Promise<void> {
    const { node } = this
    const request = node.tracked.add(offset, bytes, true)
    node.gate.begin()
    try {
      await node.tracked.waitFor(request)
      this.#missing?.clearRange(offset, bytes)
      const buf = new Uint8Array(bytes)
      await reader.pread(offset, buf)
      await node.child('file')?.pwrite(offset, buf)
    } catch (error) {
      this.#missing?.setRange(offset, bytes)
      throw error
    } finally {
      node.tracked.remove(request)
      node.gate.end()
    }
  }

  #enter(stage: Stage): void {
    this.#stage = stage
    announceStage(this.node, this.mode, stage)
  }

  #clear(): void {
    this.failure = undefined
    this.failures = 0
    this.#missing = undefined
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
