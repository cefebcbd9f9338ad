/**
 * The machinery of replication without threads: the real protection, whose filter copies by itself,
 * and a merge that runs the real copier in this thread on the virtual clock.
 *
 * Invariants:
 * - Order and time depend on nothing but the clock and the seed.
 */
import { BlockBackend } from '../../src/block/backend.ts'
import { PERM } from '../../src/block/driver.ts'
import type { BlockNode } from '../../src/block/node.ts'
import { isAllocatedAbove } from '../../src/block/status.ts'
import { EdgeCopier } from '../../src/drivers/cbw-edge-copier.ts'
import { BodyControl } from '../../src/job/body-control.ts'
import { copyBeforeWriteOf } from '../../src/job/cbw.ts'
import { Copier } from '../../src/job/copier.ts'
import { WorkerPool } from '../../src/job/pool.ts'
import type { DiskView } from '../../src/job/view.ts'
import { makeJobMachinery } from '../../src/replication/job-machinery.ts'
import type { Merge, Protection, ReplicationMachinery } from '../../src/replication/machinery.ts'
import type { Runtime } from '../../src/runtime/runtime.ts'
import { DirtyBitmap } from '../../src/sync/dirty-bitmap.ts'
import { JobWords } from '../../src/sync/job-words.ts'
import { asBlockError, type BlockError, fromRecord, ioError } from '../../src/util/errors.ts'
import { PAGE } from './disk.ts'

/** A fault of ours that a checker has to see. */
export type Canary =
  /** The first cluster is overwritten without having been saved. */
  | 'skip-copy'
  /** A checkpoint does not make the clusters unsaved again. */
  | 'forget-reset'
  /** The merge does not notice what the guest writes meanwhile. */
  | 'blind-merge'
  /** The secondary disk acknowledges a write that it does not do. */
  | 'lying-disk'
  /** The server takes a new connection while writes of a lost one still run. */
  | 'many-connections'
  /** The exports take writes although a checkpoint broke off. */
  | 'open-fence'

/** Makes the machinery of one secondary. */
export function simMachinery(runtime: Runtime, canary: Canary | undefined): ReplicationMachinery {
  const pool = new WorkerPool()
  const real = makeJobMachinery(runtime.jobs, () => pool)
  return {
    async protect(source, target) {
      const protection = await real.protect(source, target)
      if (canary === 'skip-copy') skipFirstCluster(protection.filter)
      return canary === 'forget-reset' ? neverReset(protection) : protection
    },
    merge: (top, base) => startMerge(top, base, canary === 'blind-merge'),
  }
}

function skipFirstCluster(filter: BlockNode): void {
  const file = filter.children.get('file')
  const target = filter.children.get('target')
  if (file === undefined || target === undefined) throw new Error('a filter has two children')
  const edges = new EdgeCopier(file, target)
  copyBeforeWriteOf(filter).setCopier({
    copy: async (offset, bytes) => (offset === 0 ? undefined : edges.copy(offset, bytes)),
  })
}

function neverReset(protection: Protection): Protection {
  let first = true
  return {
    filter: protection.filter,
    get lost() {
      return protection.lost
    },
    get copiedBytes() {
      return protection.copiedBytes
    },
    get copyFailures() {
      return protection.copyFailures
    },
    remove: () => protection.remove(),
    arm: () => protection.arm(),
    reset() {
      if (first) protection.reset()
      first = false
    },
  }
}

class BackendView implements DiskView {
  readonly length: number
  readonly attached = false
  readonly blind = true
  readonly #backend: BlockBackend

  constructor(backend: BlockBackend) {
    this.#backend = backend
    this.length = backend.length()
  }

  status(_offset: number, bytes: number): { kind: 'data'; bytes: number } {
    return { kind: 'data', bytes }
  }

  pread(offset: number, buf: Uint8Array): Promise<void> | undefined {
    return this.#backend.pread(offset, buf)
  }

  pwrite(offset: number, buf: Uint8Array): Promise<void> | undefined {
    return this.#backend.pwrite(offset, buf)
  }

  pwriteZeroes(offset: number, bytes: number): Promise<void> | undefined {
    return this.#backend.pwriteZeroes(offset, bytes)
  }

  close(): void {
    void this.#backend.close()
  }
}

async function startMerge(top: BlockNode, base: BlockNode, blind: boolean): Promise<Merge> {
  const { graph } = top
  const filter = await graph.insertFilter({ driver: 'mirror_top', file: top.name }, top)
  const merge = new SimMerge(top, base, filter, blind)
  const ended = merge.run().then(
    () => undefined,
    (thrown: unknown): BlockError => asBlockError(thrown),
  )
  return {
    ended,
    async cancel() {
      merge.words.cancel()
      await ended
    },
  }
}

/** The passes of a commit, as its job and its body make them together. */
class SimMerge {
  readonly words: JobWords = JobWords.create()
  readonly #top: BlockNode
  readonly #base: BlockNode
  readonly #filter: BlockNode
  readonly #dirty: DirtyBitmap
  readonly #blind: boolean
  readonly #mark = (offset: number, bytes: number): void => this.#dirty.setRange(offset, bytes)

  constructor(top: BlockNode, base: BlockNode, filter: BlockNode, blind: boolean) {
    this.#top = top
    this.#base = base
    this.#filter = filter
    this.#blind = blind
    this.#dirty = DirtyBitmap.create(top.length(), PAGE)
  }

  async run(): Promise<void> {
    const top = this.#top
    const { graph } = top
    if (!this.#blind) top.writeListeners.add(this.#mark)
    let held = false
    let pivoted = false
    try {
      await this.#scan()
      await this.#copy(false, 8 * PAGE)
      await graph.drainedBegin(this.#filter)
      held = true
      await this.#copy(true, 0)
      await graph.replace(this.#filter, this.#base)
      pivoted = true
    } finally {
      top.writeListeners.delete(this.#mark)
      if (pivoted) graph.unref(this.#filter)
      else await graph.removeFilter(this.#filter)
      if (held) graph.drainedEnd(this.#filter)
      await graph.settled()
    }
  }

  async #scan(): Promise<void> {
    for (let at = 0; at < this.#top.length(); ) {
      const run = await isAllocatedAbove(this.#top, this.#base, at, this.#top.length() - at)
      if (run.allocated) this.#dirty.setRange(at, run.bytes)
      at += run.bytes
    }
  }

  /** One call of the copier; backends that queue wait for other drains, those that do not are ours. */
  async #copy(drained: boolean, remaining: number): Promise<void> {
    const { graph } = this.#top
    const { clock } = graph.ctx
    const open = (node: BlockNode, perm: number): Promise<BlockBackend> =>
      BlockBackend.create(graph, node, { perm, shared: PERM.ALL, disableQueuing: drained })
    const source = await open(this.#top, PERM.CONSISTENT_READ)
    const target = await open(this.#base, PERM.WRITE)
    try {
      const copier = new Copier({
        source: new BackendView(source),
        target: new BackendView(target),
        dirty: this.#dirty,
        words: this.words,
        control: new BodyControl(this.words, clock),
        buffer: new Uint8Array(16 * PAGE),
        clock,
        skipUnallocated: true,
        findZeroes: false,
      })
      const outcome = await copier.round({ remaining, passes: drained ? 0 : 4 })
      if (outcome.kind === 'error') throw fromRecord(outcome.error)
      if (outcome.kind === 'cancelled') throw ioError('ECANCELED')
      const pending = target.flush()
      if (pending !== undefined) await pending
    } finally {
      await source.close()
      await target.close()
    }
  }
}
