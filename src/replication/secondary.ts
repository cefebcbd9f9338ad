/**
 * The secondary side: start, checkpoint, stop and failover over active, hidden and secondary disk.
 *
 * Invariants:
 * - While running, hidden over secondary equals the secondary disk at the last checkpoint, and no
 *   command makes the chain from this node to the secondary disk lead elsewhere.
 * - Start is a transaction: a failure undoes every step, newest first, and a later start works.
 * - A checkpoint happens between two requests: everything above the secondary disk is drained, the
 *   active disk is emptied before the hidden one, and what it publishes last is the epoch. One that
 *   breaks off after buffers were dropped shuts both sides out until the drop is complete.
 * - From failover on no export changes the secondary disk before the node is closed.
 */

import type { BlockChild } from '../block/child.ts'
import { PERM } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { asBlockError, assert, BlockError } from '../util/errors.ts'
import { announceStage } from './announce.ts'
import { checkBuffers, ExportFence, emptyBuffers } from './buffers.ts'
import type { CheckpointPart } from './checkpoint.ts'
import type { Merge, ReplicationMachinery } from './machinery.ts'
import { wrongMode } from './primary.ts'
import {
  dropHold,
  type Running,
  restoreReadOnly,
  type SecondaryOptions,
  settleDisk,
  writableEnd,
} from './running.ts'
import { type ReplicationMode, type ReplicationVerb, type Stage, VERB_RULES } from './stage.ts'
import { findDisks, findTop, formatOf, pinChain, type SecondaryDisks } from './topology.ts'
import { watchHidden } from './watermark.ts'

const BUSY = 'Block device is in use by internal backup job'
/** How long a failover lets the guest have the loop before it takes the protection apart. */
const GUEST_FIRST_MS = 2
const OWN_EDGES = {
  perm: PERM.WRITE,
  shared: PERM.CONSISTENT_READ | PERM.WRITE | PERM.WRITE_UNCHANGED,
} as const

/** State of one secondary. Main thread only; its orders come one at a time from the registry. */
export class SecondaryReplication {
  readonly mode = 'secondary'
  /** The replication node. */
  readonly node: BlockNode
  #stage: Stage = 'none'
  /** The last failure of the machinery; cleared by start, checkpoint and finished failover. */
  error: BlockError | undefined
  /** Checkpoints since the start. */
  epoch = 0
  /** How long the last checkpoint kept requests waiting, in milliseconds. */
  lastPauseMs = 0
  readonly #options: SecondaryOptions
  #checkpointMs = 0
  readonly #machinery: ReplicationMachinery
  #running: Running | undefined
  #merge: Merge | undefined
  #mergeSettled: Promise<void> | undefined
  /** The node goes: no merge begins any more. */
  #leaving = false
  readonly #fence = new ExportFence()

  constructor(node: BlockNode, options: SecondaryOptions, machinery: ReplicationMachinery) {
    this.node = node
    this.#options = options
    this.#machinery = machinery
  }

  /** Where it is in its life. */
  get stage(): Stage {
    return this.#stage
  }

  /** Milliseconds since the last checkpoint, or since the start; 0 before that. */
  get checkpointAgeMs(): number {
    return this.#stage === 'none' ? 0 : this.node.graph.ctx.clock.nowMs() - this.#checkpointMs
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
    return () => graph.withDrained(disks.secondary, back)
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
    const top = findTop(this.node, this.#options.topId)
    const reason = { message: BUSY }
    top.blockers.blockAll(reason, ['dataplane'])
    top.refs++
    const unpin = pinChain(this.node, disks)
    const unblock = (): void => {
      unpin()
      top.blockers.unblockAll(reason)
      graph.unref(top)
    }
    undo.push(unblock)
    const unwatch = watchHidden(this, disks.hidden, this.#options.watermark)
    undo.push(unwatch)
    const { crashConsistent } = this.#options
    const protection = await this.#machinery.protect(disks.secondary, disks.hidden, crashConsistent)
    undo.push(() => protection.remove())
    this.#running = { disks, edges, readOnlyBefore, unblock, unwatch, protection }
    undo.push(() => {
      this.#running = undefined
      if (this.#stage !== 'none') this.#enter('none')
    })
    await protection.arm()
    await settleDisk(this.#running)
    const { error } = await emptyBuffers(disks)
    if (error !== undefined) throw error
    protection.reset()
    this.error = undefined
    this.epoch = 0
    this.#checkpointMs = graph.ctx.clock.nowMs()
    this.#enter('running')
  }

  #enter(stage: Stage): void {
    this.#stage = stage
    announceStage(this.node, this.mode, stage, this.error?.message)
  }

  /** First phase of a checkpoint: drains everything above the secondary disk and checks it. */
  async prepareCheckpoint(): Promise<CheckpointPart> {
    const running = this.#running
    assert(running !== undefined, 'only a running secondary is checkpointed')
    const { graph } = this.node
    const { secondary } = running.disks
    let startMs: number | undefined
    const release = (): void => {
      if (startMs === undefined) return
      graph.drainedEnd(secondary)
      this.lastPauseMs = graph.ctx.clock.nowMs() - startMs
    }
    try {
      // Most of it while nobody waits.
      await settleDisk(running)
      startMs = graph.ctx.clock.nowMs()
      await graph.drainedBegin(secondary)
      checkBuffers(running.disks)
      await running.protection?.arm()
      await settleDisk(running)
    } catch (error) {
      this.error = asBlockError(error)
      release()
      throw error
    }
    return {
      interrupted: this.#stage === 'interrupted',
      empty: () => emptyBuffers(running.disks),
      commit: () => this.#moved(running),
      fail: (error) => {
        this.error = error
      },
      interrupt: (error) => this.#interrupt(running, error),
      release,
    }
  }

  /** The new point in time begins. */
  #moved(running: Running): void {
    running.protection?.reset()
    this.epoch++
    this.#checkpointMs = this.node.graph.ctx.clock.nowMs()
    this.error = undefined
    const { events } = this.node.graph
    events.emit('REPLICATION_CHECKPOINT', { 'node-name': this.node.name, epoch: this.epoch })
    if (this.#stage !== 'interrupted') return
    this.#fence.open()
    this.#enter('running')
  }

  /** Nobody sees or changes the disk until its buffers are dropped: it stays at this point in time. */
  #interrupt({ disks, protection }: Running, cause: BlockError): void {
    this.error = cause
    const words = `A checkpoint of node '${this.node.name}' broke off`
    const error = new BlockError('EIO', words, { node: disks.secondary.name }, cause)
    this.#fence.close([disks.secondary, protection?.filter], error)
    if (this.#stage !== 'interrupted') this.#enter('interrupted')
  }

  /** Ends replication and discards both buffers: the guest then sees the secondary disk. */
  async stop(): Promise<void> {
    const running = this.#running
    assert(running !== undefined, 'only a running secondary is stopped')
    const { disks } = running
    await this.node.graph.withDrained(disks.secondary, async () => {
      const { error } = await emptyBuffers(disks)
      const end = await this.#finishStop(running)
      if (error !== undefined) await this.#bypass(disks.active, end, error)
      this.#fence.open()
    })
    await restoreReadOnly(running, this.node.graph)
  }

  /** Takes buffers that cannot be emptied out of the chain: the secondary disk alone is the view. */
  async #bypass(active: BlockNode, end: BlockNode, error: BlockError): Promise<void> {
    await this.node.graph.replace(active, end)
    this.#stale(error)
  }

  /** Old data stay in a buffer that is out of use; the next start empties it again. */
  #stale(error: BlockError): void {
    const node = error.context.node ?? this.node.name
    const told = { 'node-name': node, error: error.message }
    this.node.graph.events.emit('REPLICATION_BUFFER_STALE', told)
  }

  /** Answers where writes to the secondary disk go now. */
  async #finishStop(running: Running): Promise<BlockNode> {
    await running.protection?.remove()
    running.protection = undefined
    const end = writableEnd(running)
    dropHold(running, this.node.graph)
    this.error = undefined
    this.#running = undefined
    this.#enter('done')
    return end
  }

  /**
   * Takes over: fences the exports and opens the view to the guest. Taking the protection apart and
   * merging goes on behind it; `merged` waits for the end.
   */
  async failover(): Promise<void> {
    const running = this.#running
    assert(running !== undefined, 'only a running secondary fails over')
    const { graph } = this.node
    const { active, hidden, secondary } = running.disks
    let unmergeable: BlockError | undefined
    await graph.withDrained(secondary, async () => {
      this.#shutOut(running)
      // What a broken checkpoint meant to drop must not be merged.
      if (this.#stage === 'interrupted') unmergeable = (await emptyBuffers(running.disks)).error
      running.unblock()
      running.unwatch()
      this.error = undefined
      this.#enter('failover')
      // Held until the end of the merge: both are emptied then, though the graph lets them go.
      active.refs++
      hidden.refs++
      if (unmergeable === undefined) return
      // The view cannot wait: what the buffers show is not true.
      await running.protection?.remove()
      running.protection = undefined
      await graph.replace(active, writableEnd(running))
    })
    this.#mergeSettled = this.#mergeBehind(running, unmergeable === undefined)
  }

  /** What a failover leaves to be done while the guest works. */
  async #mergeBehind(running: Running, mergeable: boolean): Promise<void> {
    // The answer to the order, and what the guest waits to write, go first.
    await this.node.graph.ctx.sleep(GUEST_FIRST_MS)
    await running.protection?.remove()
    running.protection = undefined
    if (mergeable) await this.#mergeToEnd(running)
    else await this.#merged(running)
  }

  async #mergeToEnd(running: Running): Promise<void> {
    try {
      if (this.#leaving) throw new BlockError('ECANCELED', 'The node is being closed')
      this.#merge = await this.#machinery.merge(running.disks.active, writableEnd(running))
      if (this.#leaving) void this.#merge.cancel()
    } catch (thrown) {
      this.#mergeFailed(asBlockError(thrown))
      return
    }
    const failure = await this.#merge.ended
    this.#merge = undefined
    if (failure === undefined) await this.#merged(running)
    else this.#mergeFailed(failure)
  }

  async #merged(running: Running): Promise<void> {
    const { graph } = this.node
    const { active, hidden } = running.disks
    await graph.withDrained(this.node, () => {
      for (const edge of running.edges) graph.detach(edge)
    })
    for (const disk of [active, hidden]) {
      try {
        await graph.withDrained(disk, () => formatOf(disk).driver?.makeEmpty?.())
      } catch (thrown) {
        this.#stale(new BlockError('EIO', asBlockError(thrown).message, { node: disk.name }))
      }
    }
    this.#running = undefined
    this.error = undefined
    this.#enter('done')
    await restoreReadOnly(running, this.node.graph)
    graph.unref(active)
    graph.unref(hidden)
    await graph.settled()
    graph.events.emit('REPLICATION_FAILOVER_DONE', { 'node-name': this.node.name, success: true })
  }

  #mergeFailed(failure: BlockError): void {
    const running = this.#running
    this.error = failure
    this.#enter('failover-failed')
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
    this.error = undefined
    this.#enter('failover')
    this.#mergeSettled = this.#mergeToEnd(running)
  }

  /** Waits until a merge that runs has ended, one way or the other. */
  async merged(): Promise<void> {
    await this.#mergeSettled
  }

  /** From now on exports of the secondary disk refuse to change it. */
  #shutOut({ disks, protection }: Running): void {
    const error = new BlockError('EPERM', 'The secondary disk was taken over by a failover', {
      node: disks.secondary.name,
    })
    this.#fence.close([disks.secondary, protection?.filter], error)
  }

  /** Ends whatever runs, for the end of the node or of the process. */
  async shutdown(): Promise<void> {
    if (this.#stage === 'running' || this.#stage === 'interrupted') await this.#stopAtLast()
    this.#leaving = true
    await this.#merge?.cancel()
    await this.#mergeSettled
    const running = this.#running
    this.#running = undefined
    if (running !== undefined)
      await this.node.graph.withDrained(this.node, () => {
        for (const edge of running.edges) this.#detachIfThere(edge)
      })
    this.#fence.open()
  }

  /** Stops also when a buffer cannot be emptied: its stale data go out of use with the node. */
  async #stopAtLast(): Promise<void> {
    try {
      await this.stop()
    } catch {
      const running = this.#running
      if (running === undefined) return
      await this.node.graph.withDrained(running.disks.secondary, () => this.#finishStop(running))
      await restoreReadOnly(running, this.node.graph)
    }
  }

  #detachIfThere(edge: BlockChild): void {
    if (this.node.children.get(edge.name) === edge) this.node.graph.detach(edge)
  }
}
