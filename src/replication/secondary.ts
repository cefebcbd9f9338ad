/**
 * The secondary side: start, checkpoint, stop and failover over active, hidden and secondary disk.
 *
 * Invariants:
 * - While running, hidden over secondary equals the secondary disk at the last checkpoint.
 * - Start is a transaction: a failure undoes every step, newest first, and a later start works.
 * - A checkpoint happens between two requests: everything above the secondary disk is drained, the
 *   active disk is emptied before the hidden one, and what it publishes last is the epoch.
 * - From failover on no export changes the secondary disk before the node is closed.
 */

import type { BlockBackend } from '../block/backend.ts'
import type { BlockChild } from '../block/child.ts'
import { PERM } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { asBlockError, assert, BlockError } from '../util/errors.ts'
import type { Merge, Protection, ReplicationMachinery } from './machinery.ts'
import { wrongMode } from './primary.ts'
import { type ReplicationMode, type ReplicationVerb, type Stage, VERB_RULES } from './stage.ts'
import { findDisks, findTop, formatOf, type SecondaryDisks } from './topology.ts'

const BUSY = 'Block device is in use by internal backup job'
const OWN_EDGES = {
  perm: PERM.WRITE,
  shared: PERM.CONSISTENT_READ | PERM.WRITE | PERM.WRITE_UNCHANGED,
} as const

/** What a running secondary holds. */
interface Running {
  readonly disks: SecondaryDisks
  readonly edges: readonly BlockChild[]
  /** Disks that were read-only before the start. */
  readonly readOnlyBefore: readonly BlockNode[]
  readonly unblock: () => void
  /** Stops looking at how full the hidden disk gets. */
  readonly unwatch: () => void
  protection: Protection | undefined
}

/** State of one secondary. Main thread only; its orders come one at a time from the registry. */
export class SecondaryReplication {
  readonly mode = 'secondary'
  /** The replication node. */
  readonly node: BlockNode
  stage: Stage = 'none'
  /** The last failure of the machinery; cleared by start and by a finished failover. */
  error: BlockError | undefined
  /** Checkpoints since the start. */
  epoch = 0
  /** How long the last checkpoint kept requests waiting, in milliseconds. */
  lastPauseMs = 0
  readonly #topId: string
  readonly #watermark: number
  #warnedEpoch = -1
  readonly #machinery: ReplicationMachinery
  #running: Running | undefined
  #merge: Merge | undefined
  #mergeSettled: Promise<void> | undefined
  #fenced: BlockBackend[] = []

  /** `watermark`: bytes in the hidden disk that are worth a warning; 0 = never. */
  constructor(node: BlockNode, topId: string, machinery: ReplicationMachinery, watermark: number) {
    this.node = node
    this.#watermark = watermark
    this.#topId = topId
    this.#machinery = machinery
  }

  /** The disks while running or merging. */
  get disks(): SecondaryDisks | undefined {
    return this.#running?.disks
  }

  /** Writes from the primary that failed because old data could not be saved, since the start. */
  get copyFailures(): number {
    return this.#running?.protection?.copyFailures ?? 0
  }

  /** Bytes of old data saved since the last checkpoint. */
  get copiedBytes(): number {
    return this.#running?.protection?.copiedBytes ?? 0
  }

  /** The edge to the secondary disk that writes go to after a failed merge. */
  get secondaryEdge(): BlockChild | undefined {
    return this.node.children.get('secondary disk')
  }

  /** Throws what `get-error` reports. */
  getError(): void {
    if (this.stage === 'none') throw new BlockError('EINVAL', 'Block replication is not running')
    const cause = this.error ?? this.#running?.protection?.lost
    if (cause === undefined) return
    throw new BlockError('EIO', 'I/O error occurred', { node: this.node.name }, cause)
  }

  /** Whether an order has anything to do. Errors: EINVAL when the stage refuses it. */
  may(verb: ReplicationVerb): boolean {
    const rule = VERB_RULES[verb][this.stage]
    if (rule === 'run' || rule === 'ignore') return rule === 'run'
    throw new BlockError('EINVAL', rule.refuse, { node: this.node.name, op: verb })
  }

  /** Checks an order to start. */
  mayStart(mode: ReplicationMode): boolean {
    if (!this.may('start')) return false
    if (mode !== this.mode) throw wrongMode(this.mode, mode)
    return true
  }

  /** Starts; answers how to take the start back. */
  async start(): Promise<() => Promise<void>> {
    const disks = findDisks(this.node)
    const undo: (() => void | Promise<void>)[] = []
    const back = async (): Promise<void> => {
      for (const step of undo.splice(0).reverse()) await step()
    }
    const { graph } = this.node
    await graph.drainedBegin(disks.secondary)
    try {
      await this.#startDrained(disks, undo)
    } catch (error) {
      await back()
      throw error
    } finally {
      graph.drainedEnd(disks.secondary)
    }
    return back
  }

  async #startDrained(disks: SecondaryDisks, undo: (() => void | Promise<void>)[]): Promise<void> {
    const { graph } = this.node
    const readOnlyBefore = [disks.hidden, disks.secondary].filter((disk) => disk.readOnly)
    for (const disk of readOnlyBefore) {
      await graph.setReadOnly(disk, false)
      undo.push(() => graph.setReadOnly(disk, true))
    }
    const edges: BlockChild[] = []
    for (const [name, disk] of [
      ['hidden disk', disks.hidden],
      ['secondary disk', disks.secondary],
    ] as const) {
      disk.refs++
      const edge = await graph.attach(this.node, disk, name, 'data', OWN_EDGES)
      edges.push(edge)
      undo.push(() => graph.detach(edge))
    }
    const top = findTop(this.node, this.#topId)
    const reason = { message: BUSY }
    top.blockers.blockAll(reason, ['dataplane'])
    top.refs++
    const unblock = (): void => {
      top.blockers.unblockAll(reason)
      graph.unref(top)
    }
    undo.push(unblock)
    const unwatch = this.#watch(disks.hidden)
    undo.push(unwatch)
    const protection = await this.#machinery.protect(disks.secondary, disks.hidden)
    undo.push(() => protection.remove())
    this.#running = { disks, edges, readOnlyBefore, unblock, unwatch, protection }
    undo.push(() => {
      this.#running = undefined
      this.stage = 'none'
    })
    await protection.arm()
    await this.#empty(this.#running)
    protection.reset()
    this.stage = 'running'
    this.error = undefined
    this.epoch = 0
    this.#warnedEpoch = -1
  }

  /** Tells once per epoch when the hidden disk holds more than its watermark. */
  #watch(hidden: BlockNode): () => void {
    if (this.#watermark === 0) return () => undefined
    const heard = (): void => {
      const bytes = this.copiedBytes
      if (bytes < this.#watermark || this.#warnedEpoch === this.epoch) return
      this.#warnedEpoch = this.epoch
      this.node.graph.events.emit('REPLICATION_HIDDEN_WATERMARK', {
        'node-name': this.node.name,
        bytes,
        watermark: this.#watermark,
      })
    }
    hidden.writeListeners.add(heard)
    return () => hidden.writeListeners.delete(heard)
  }

  /** Empties both buffers. The active disk goes first: its data stand over the hidden disk's. */
  async #empty({ disks }: Running): Promise<void> {
    for (const disk of [disks.active, disks.hidden]) {
      const format = formatOf(disk)
      const role = disk === disks.active ? 'Active' : 'Hidden'
      if (format.driver?.makeEmpty === undefined)
        throw new BlockError('ENOMEDIUM', `${role} disk ${disk.name} is ejected`, {
          node: disk.name,
        })
      try {
        await format.driver.makeEmpty()
      } catch (thrown) {
        const error = asBlockError(thrown)
        const message = `Failed to empty ${disk.name}: ${error.message}`
        throw new BlockError(error.code, message, { node: disk.name, op: 'checkpoint' }, error)
      }
    }
  }

  /** First phase of a checkpoint: drains everything above the secondary disk and checks it. */
  async prepareCheckpoint(): Promise<CheckpointPart> {
    const running = this.#running
    assert(running !== undefined, 'only a running secondary is checkpointed')
    const { graph } = this.node
    const { secondary, active, hidden } = running.disks
    const startMs = graph.ctx.clock.nowMs()
    await graph.drainedBegin(secondary)
    const release = (): void => {
      graph.drainedEnd(secondary)
      this.lastPauseMs = graph.ctx.clock.nowMs() - startMs
    }
    for (const [role, disk] of [
      ['Active', active],
      ['Hidden', hidden],
    ] as const) {
      if (formatOf(disk).driver?.makeEmpty !== undefined) continue
      release()
      throw new BlockError('ENOMEDIUM', `${role} disk ${disk.name} is ejected`, {
        node: disk.name,
      })
    }
    try {
      await running.protection?.arm()
    } catch (error) {
      release()
      throw error
    }
    return { commit: () => this.#checkpoint(running), release }
  }

  async #checkpoint(running: Running): Promise<void> {
    try {
      await this.#empty(running)
      running.protection?.reset()
      this.epoch++
    } catch (error) {
      this.error = asBlockError(error)
      throw error
    }
  }

  /** Ends replication and discards both buffers: the guest then sees the secondary disk. */
  async stop(): Promise<void> {
    const running = this.#running
    assert(running !== undefined, 'only a running secondary is stopped')
    await this.node.graph.withDrained(running.disks.secondary, async () => {
      await this.#empty(running)
      await this.#finishStop(running)
    })
    await this.#restoreReadOnly(running)
  }

  async #finishStop(running: Running): Promise<void> {
    await running.protection?.remove()
    this.#dropHold(running)
    this.stage = 'done'
    this.error = undefined
    this.#running = undefined
  }

  #dropHold(running: Running): void {
    running.protection = undefined
    running.unwatch()
    running.unblock()
    for (const edge of running.edges) this.node.graph.detach(edge)
  }

  async #restoreReadOnly(running: Running): Promise<void> {
    for (const disk of running.readOnlyBefore) {
      if (disk.driver === undefined) continue
      try {
        await this.node.graph.setReadOnly(disk, true)
      } catch {
        // Somebody writes to it now; it stays writable for them.
      }
    }
  }

  /** Takes over: fences the exports, ends the protection and starts the merge. */
  async failover(): Promise<void> {
    const running = this.#running
    assert(running !== undefined, 'only a running secondary fails over')
    const { graph } = this.node
    const { active, hidden, secondary } = running.disks
    await graph.withDrained(secondary, async () => {
      this.#fence(running)
      await running.protection?.remove()
      running.protection = undefined
      running.unblock()
      running.unwatch()
      this.stage = 'failover'
      this.error = undefined
      // Held until the end of the merge: both are emptied then, though the graph lets them go.
      active.refs++
      hidden.refs++
    })
    await this.#startMerge(running)
  }

  async #startMerge(running: Running): Promise<void> {
    try {
      this.#merge = await this.#machinery.merge(running.disks.active, running.disks.secondary)
    } catch (thrown) {
      this.#mergeFailed(asBlockError(thrown))
      throw thrown
    }
    const merge = this.#merge
    this.#mergeSettled = merge.ended.then((failure) => {
      this.#merge = undefined
      if (failure === undefined) return this.#merged(running)
      this.#mergeFailed(failure)
      return undefined
    })
  }

  async #merged(running: Running): Promise<void> {
    const { graph } = this.node
    const { active, hidden } = running.disks
    for (const edge of running.edges) graph.detach(edge)
    for (const disk of [active, hidden]) {
      try {
        await graph.withDrained(disk, () => formatOf(disk).driver?.makeEmpty?.())
      } catch (thrown) {
        // Stale data in a buffer that is out of use; the next start empties it again.
        graph.events.emit('REPLICATION_BUFFER_STALE', {
          'node-name': disk.name,
          error: asBlockError(thrown).message,
        })
      }
    }
    this.#running = undefined
    this.error = undefined
    this.stage = 'done'
    await this.#restoreReadOnly(running)
    graph.unref(active)
    graph.unref(hidden)
    await graph.settled()
    graph.events.emit('REPLICATION_FAILOVER_DONE', { 'node-name': this.node.name, success: true })
  }

  #mergeFailed(failure: BlockError): void {
    const running = this.#running
    this.error = failure
    this.stage = 'failover-failed'
    if (running !== undefined) {
      this.node.graph.unref(running.disks.active)
      this.node.graph.unref(running.disks.hidden)
    }
    this.node.graph.events.emit('REPLICATION_FAILOVER_DONE', {
      'node-name': this.node.name,
      success: false,
      error: failure.message,
    })
  }

  /** Tries a failed merge again; what was merged already is simply merged once more. */
  async retryFailover(): Promise<void> {
    const running = this.#running
    if (this.stage !== 'failover-failed' || running === undefined)
      throw new BlockError('EINVAL', 'Block replication has no failed failover', {
        node: this.node.name,
      })
    running.disks.active.refs++
    running.disks.hidden.refs++
    this.stage = 'failover'
    this.error = undefined
    await this.#startMerge(running)
  }

  /** Waits until a merge that runs has ended, one way or the other. */
  async merged(): Promise<void> {
    await this.#mergeSettled
  }

  /** From now on exports of the secondary disk refuse to change it. */
  #fence({ disks, protection }: Running): void {
    const error = new BlockError('EPERM', 'The secondary disk was taken over by a failover', {
      node: disks.secondary.name,
    })
    for (const node of [disks.secondary, protection?.filter])
      for (const edge of node?.parents ?? []) {
        if (edge.owner.ownerKind !== 'backend') continue
        const backend = edge.owner as BlockBackend
        backend.fence(error)
        this.#fenced.push(backend)
      }
  }

  /** Ends whatever runs, for the end of the node or of the process. */
  async shutdown(): Promise<void> {
    if (this.stage === 'running') await this.#stopAtLast()
    await this.#merge?.cancel()
    await this.#mergeSettled
    const running = this.#running
    this.#running = undefined
    if (running !== undefined) for (const edge of running.edges) this.#detachIfThere(edge)
    for (const backend of this.#fenced.splice(0)) backend.unfence()
  }

  /** Stops also when a buffer cannot be emptied: its stale data go out of use with the node. */
  async #stopAtLast(): Promise<void> {
    try {
      await this.stop()
    } catch {
      const running = this.#running
      if (running === undefined) return
      await this.node.graph.withDrained(running.disks.secondary, () => this.#finishStop(running))
      await this.#restoreReadOnly(running)
    }
  }

  #detachIfThere(edge: BlockChild): void {
    if (this.node.children.get(edge.name) === edge) this.node.graph.detach(edge)
  }
}

/** A secondary that is drained and checked for a checkpoint. */
export interface CheckpointPart {
  /** Switches to the new point in time. */
  commit(): Promise<void>
  /** Lets requests go on. */
  release(): void
}
