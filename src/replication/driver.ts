/**
 * The replication filter: what the requests of a replicated disk meet in each stage.
 *
 * Invariants:
 * - Every request, and every question for the block status, goes through the stage table.
 * - A primary never reads, so that the quorum above it always uses the local disk.
 * - The node registers itself when it opens and leaves when it closes.
 */
import type { BlockChild } from '../block/child.ts'
import {
  type BlockDriver,
  type BlockdevOptions,
  type BlockdevRef,
  type BlockLimits,
  type BlockStatus,
  type DriverDefinition,
  NO_LIMITS,
  PERM,
  STATUS,
} from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { isAllocatedAbove } from '../block/status.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { assert, BlockError, ioError } from '../util/errors.ts'
import type { ReplicationMachinery } from './machinery.ts'
import { PrimaryReplication } from './primary.ts'
import type { Replication, ReplicationRegistry } from './registry.ts'
import type { SecondaryOptions } from './running.ts'
import { SecondaryReplication } from './secondary.ts'
import { IO_RULES, type IoRule } from './stage.ts'

/** Options of a replication node, besides the common ones. */
export interface ReplicationOptions extends BlockdevOptions {
  readonly driver: 'replication'
  /** Which side this is. */
  readonly mode: 'primary' | 'secondary'
  /** The node at the top of the secondary's disk; required there, forbidden on a primary. */
  readonly 'top-id'?: string
  /** Secondary: bytes in the hidden disk at which `REPLICATION_HIDDEN_WATERMARK` warns; 0 = never. */
  readonly 'hidden-watermark'?: number
  /**
   * Secondary, hidden disk in a file: whatever kills the process, the three images show the last
   * checkpoint. Costs a flush of the hidden image for each write that needs old data saved. Without
   * it they do as long as the primary flushed what it wrote; default false.
   */
  readonly 'crash-consistent'?: boolean
  /** Primary: the way to the other side. Secondary: the active disk. */
  readonly file: BlockdevRef
}

interface CheckedOptions {
  readonly mode: 'primary' | 'secondary'
  readonly file: BlockdevRef
  readonly secondary: SecondaryOptions
}

function checked(options: BlockdevOptions): CheckedOptions {
  const { mode } = options
  const topId = options['top-id']
  if (mode === undefined) throw new BlockError('EINVAL', 'Missing the option mode')
  if (mode !== 'primary' && mode !== 'secondary')
    throw new BlockError('EINVAL', "The option mode's value should be primary or secondary")
  if (mode === 'primary' && topId !== undefined)
    throw new BlockError('EINVAL', 'The primary side does not support option top-id')
  if (mode === 'secondary' && typeof topId !== 'string')
    throw new BlockError('EINVAL', 'Missing the option top-id')
  if (options.file === undefined || options.file === null)
    throw new BlockError('EINVAL', "Parameter 'file' is missing")
  const watermark = options['hidden-watermark'] ?? 0
  if (typeof watermark !== 'number' || !Number.isSafeInteger(watermark) || watermark < 0)
    throw new BlockError('EINVAL', "Parameter 'hidden-watermark' expects a size in bytes")
  const crashConsistent = options['crash-consistent'] ?? false
  if (typeof crashConsistent !== 'boolean')
    throw new BlockError('EINVAL', "Parameter 'crash-consistent' expects true or false")
  const file = options.file as BlockdevRef
  const secondary = { topId: typeof topId === 'string' ? topId : '', watermark, crashConsistent }
  return { mode, file, secondary }
}

class ReplicationDriver implements BlockDriver {
  readonly limits: BlockLimits = NO_LIMITS
  readonly writeFlags = 0
  readonly zeroesFlags = 0
  readonly replication: Replication
  readonly #node: BlockNode
  readonly #registry: ReplicationRegistry

  constructor(node: BlockNode, replication: Replication, registry: ReplicationRegistry) {
    this.#node = node
    this.replication = replication
    this.#registry = registry
    registry.add(replication)
  }

  /** A primary's answer says nothing about the local disk: it must not carry a vote. */
  get countsAsVote(): boolean {
    return this.replication.mode !== 'primary'
  }

  get #file(): BlockChild {
    const edge = this.#node.children.get('file')
    assert(edge !== undefined, 'a replication node has a file child')
    return edge
  }

  length(): number {
    return this.#file.length()
  }

  #rule(op: 'read' | 'write', offset: number, bytes: number): IoRule {
    const { mode, stage } = this.replication
    const rule = IO_RULES[mode][stage][op]
    if (rule === 'refuse') throw ioError('EIO', { node: this.#node.name, offset, bytes, op })
    return rule
  }

  pread(offset: number, buf: Uint8Array): Pending {
    this.#rule('read', offset, buf.length)
    return this.#file.pread(offset, buf)
  }

  blockStatus(offset: number, bytes: number): BlockStatus {
    // A primary shows nothing of its own: where the other disk has holes may always be asked.
    if (this.replication.mode === 'secondary') this.#rule('read', offset, bytes)
    return { flags: STATUS.RAW, bytes, map: offset, file: this.#file }
  }

  pwrite(offset: number, buf: Uint8Array, flags: number): Pending {
    return this.#write(offset, buf.length, (edge, from, bytes) =>
      edge.pwrite(from, buf.subarray(from - offset, from - offset + bytes), flags),
    )
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Pending {
    return this.#write(offset, bytes, (edge, from, count) => edge.pwriteZeroes(from, count, flags))
  }

  #write(offset: number, bytes: number, send: Send): Pending {
    const rule = this.#rule('write', offset, bytes)
    if (rule === 'split') return this.#split(offset, bytes, send)
    if (rule === 'pass') return send(this.#file, offset, bytes)
    try {
      const pending = send(this.#file, offset, bytes)
      return pending?.catch((error: unknown) => this.#record(error, offset, bytes))
    } catch (error) {
      this.#record(error, offset, bytes)
      return undefined
    }
  }

  #record(error: unknown, offset: number, bytes: number): void {
    const { replication } = this
    assert(replication.mode === 'primary', 'only a primary hides failures')
    replication.record(error, offset, bytes)
    this.#node.graph.events.emit('REPLICATION_ERROR', {
      'node-name': this.#node.name,
      offset,
      length: bytes,
      error: replication.failure?.message ?? '',
    })
  }

  /** After a failed merge: where the chain above the secondary disk has data, else below it. */
  async #split(offset: number, bytes: number, send: Send): Promise<void> {
    const { replication } = this
    assert(replication.mode === 'secondary', 'only a secondary merges')
    const below = replication.secondaryEdge
    const active = this.#file.node
    assert(below !== undefined, 'a failed merge leaves the edge to the secondary disk')
    for (let at = offset; at < offset + bytes; ) {
      const run = await isAllocatedAbove(active, below.node, at, offset + bytes - at)
      const pending = send(run.allocated ? this.#file : below, at, run.bytes)
      if (pending !== undefined) await pending
      at += run.bytes
    }
  }

  async close(): Promise<void> {
    this.#registry.remove(this.replication)
    const { replication } = this
    if (replication.mode === 'secondary')
      await this.#node.graph.aside(this.#node, () => replication.shutdown())
  }
}

type Send = (edge: BlockChild, offset: number, bytes: number) => Pending

/** The driver of replication nodes, over a registry and the machinery that secondaries use. */
export function makeReplicationDriver(
  registry: ReplicationRegistry,
  machinery: ReplicationMachinery,
): DriverDefinition {
  return {
    name: 'replication',
    kind: 'filter',
    async open(node, options, opener) {
      const { mode, file, secondary } = checked(options)
      await opener.open('file', file, 'filtered')
      const replication =
        mode === 'primary'
          ? new PrimaryReplication(node)
          : new SecondaryReplication(node, secondary, machinery)
      return new ReplicationDriver(node, replication, registry)
    },
    childPermissions(_node, child, above, readOnly) {
      const shared = PERM.CONSISTENT_READ | PERM.WRITE | PERM.WRITE_UNCHANGED
      if (child.name !== 'file') return { perm: PERM.WRITE, shared }
      const perm = PERM.CONSISTENT_READ | (readOnly ? 0 : PERM.WRITE) | (above.perm & PERM.RESIZE)
      return { perm, shared }
    },
  }
}
