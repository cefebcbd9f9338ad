/**
 * Taking and dropping snapshots inside an image.
 *
 * Invariants:
 * - The header shows a snapshot only after everything it needs is stable, and loses it before
 *   anything it needs is given up; a power cut between leaves clusters that nobody uses, no more.
 * - While counts and COPIED bits disagree the image has the dirty mark, where the format has one.
 * - A snapshot that could not be taken leaves no trace.
 */
import type { InternalSnapshot, InternalSnapshots } from '../../block/driver.ts'
import { BlockError, ioError } from '../../util/errors.ts'
import { raiseDebugEvent } from '../debug-event.ts'
import { INCOMPAT, MAX_SNAPSHOTS, viewOf, write64 } from './format.ts'
import type { Qcow2Image } from './image.ts'
import { clearCopied, setCopied, shareAll, unshareAll } from './snapshot-counts.ts'
import {
  encodeSnapshots,
  makeSnapshot,
  nextId,
  placedAt,
  type Snapshot,
  withDiskBytes,
} from './snapshots.ts'
import { readBytes } from './walk.ts'

/** The snapshots of one open image. */
export class SnapshotStore implements InternalSnapshots {
  readonly #image: Qcow2Image
  #all: readonly Snapshot[]

  constructor(image: Qcow2Image, all: readonly Snapshot[]) {
    this.#image = image
    this.#all = all
    this.#noteMetadata()
  }

  /** As in the file, also where taking more is out of the question. */
  get all(): readonly Snapshot[] {
    return this.#all
  }

  list(): readonly InternalSnapshot[] {
    // Data outside the image are not counted, so they cannot be shared.
    if (this.#image.data !== this.#image.file) throw ioError('ENOTSUP', this.#context)
    return this.#all
  }

  get #context(): { node: string; op: string } {
    return { node: this.#image.node.name, op: 'snapshot' }
  }

  async create(
    wanted: Pick<InternalSnapshot, 'name' | 'seconds' | 'nanoseconds' | 'clockNs'>,
  ): Promise<string> {
    const image = this.#image
    this.#checkWritable()
    this.list()
    if (this.#all.length >= MAX_SNAPSHOTS) throw new BlockError('EINVAL', 'Too many snapshots')
    const marked = this.#marked
    await image.flushAll()
    await image.markDirty()
    const undo: (() => Promise<void>)[] = []
    try {
      const l1Bytes = image.l1.length
      const l1Offset = await this.#room(l1Bytes, undo)
      await shareAll(image, image.l1)
      undo.push(
        () => setCopied(image),
        () => unshareAll(image, image.l1),
      )
      await clearCopied(image)
      await image.writeBack()
      await image.sync()
      if (l1Bytes > 0) await image.writeMeta(l1Offset, image.l1.slice())
      const id = nextId(this.#all)
      const fields = { ...wanted, id, l1Offset, l1Size: l1Bytes / 8 }
      const next = [...this.#all, makeSnapshot(fields, image.header.size)]
      await this.#replaceTable(next, undo)
      return id
    } catch (error) {
      await this.#takeBack(undo)
      throw error
    } finally {
      await this.#finish(marked)
    }
  }

  async remove(id: string): Promise<void> {
    const image = this.#image
    this.#checkWritable()
    const gone = this.#all.find((snapshot) => snapshot.id === id)
    if (gone === undefined) throw ioError('ENOENT', this.#context)
    const l1 = await readBytes(image.file, gone.l1Offset, gone.l1Size * 8)
    const marked = this.#marked
    await image.flushAll()
    await image.markDirty()
    const undo: (() => Promise<void>)[] = []
    try {
      const rest = this.#all.filter((snapshot) => snapshot !== gone)
      await this.#replaceTable(rest, undo)
      undo.push(async () => {
        image.needsRepair = true
      })
      await unshareAll(image, l1)
      await this.#giveBack(gone.l1Offset, l1.length)
      await setCopied(image)
      await image.writeBack()
    } catch (error) {
      await this.#takeBack(undo)
      throw error
    } finally {
      await this.#finish(marked)
    }
  }

  /** Before the size of the disk changes: every snapshot keeps its own. Errors: ENOTSUP. */
  async pinSizes(): Promise<void> {
    const image = this.#image
    if (this.#all.length === 0) return
    if (image.header.version < 3)
      throw new BlockError('ENOTSUP', "Can't resize a v2 image which has snapshots", this.#context)
    if (this.#all.every(({ diskBytes }) => diskBytes !== undefined)) return
    const undo: (() => Promise<void>)[] = []
    const pinned = this.#all.map((snapshot) => withDiskBytes(snapshot, image.header.size))
    try {
      await this.#replaceTable(pinned, undo)
    } catch (error) {
      await this.#takeBack(undo)
      throw error
    }
    await image.flushAll()
  }

  #checkWritable(): void {
    this.#image.checkAlive()
    if (!this.#image.writable) throw ioError('EPERM', this.#context)
  }

  /** Clusters for `bytes` bytes of metadata; 0 when there are none. */
  async #room(bytes: number, undo: (() => Promise<void>)[]): Promise<number> {
    if (bytes === 0) return 0
    const { clusterBytes } = this.#image.geometry
    raiseDebugEvent(this.#image.file, 'cluster_alloc')
    const first = await this.#image.refcounts.allocate(Math.ceil(bytes / clusterBytes))
    undo.push(() => this.#giveBack(first * clusterBytes, bytes))
    return first * clusterBytes
  }

  async #giveBack(offset: number, bytes: number): Promise<void> {
    const { clusterBytes } = this.#image.geometry
    const clusters = Math.ceil(bytes / clusterBytes)
    await this.#image.refcounts.change(offset / clusterBytes, clusters, -1)
  }

  /** Makes `next` the snapshots of the image; empties `undo` when nothing may be taken back. */
  async #replaceTable(next: readonly Snapshot[], undo: (() => Promise<void>)[]): Promise<void> {
    const image = this.#image
    const { header } = image
    const bytes = encodeSnapshots(next)
    const offset = await this.#room(bytes.length, undo)
    if (bytes.length > 0) await image.writeMeta(offset, bytes)
    await image.writeBack()
    await image.sync()
    const oldBytes = (this.#all.at(-1)?.end ?? 0) - header.snapshotsOffset
    const field = new Uint8Array(12)
    viewOf(field).setUint32(0, next.length)
    write64(viewOf(field), 4, offset)
    // Whether a failed write reached the disk is unknown, so both tables stay.
    undo.splice(0, undo.length, async () => {
      image.needsRepair = true
    })
    await image.writeMeta(60, field)
    await image.sync()
    undo.length = 0
    if (this.#all.length > 0) await this.#giveBack(header.snapshotsOffset, oldBytes)
    header.snapshots = next.length
    header.snapshotsOffset = offset
    this.#all = placedAt(next, offset)
    this.#noteMetadata()
  }

  async #takeBack(undo: (() => Promise<void>)[]): Promise<void> {
    try {
      for (const step of undo.reverse()) await step()
    } catch {
      this.#image.needsRepair = true
    }
  }

  get #marked(): boolean {
    return (this.#image.header.incompatible & INCOMPAT.DIRTY) !== 0
  }

  /**
   * Ends the time under the dirty mark, unless it was there before; where that fails the next opening
   * repairs.
   */
  async #finish(marked: boolean): Promise<void> {
    const image = this.#image
    if (image.dead) return
    try {
      await image.flushAll()
      if (!marked) await image.markClean()
      await image.sync()
    } catch {
      image.needsRepair = true
    }
  }

  #noteMetadata(): void {
    const last = this.#all.at(-1)
    const offset = this.#image.header.snapshotsOffset
    this.#image.setExtraMetadata(
      last === undefined
        ? []
        : [
            { what: 'snapshot table', offset, bytes: last.end - offset },
            ...this.#all.map((snapshot) => ({
              what: 'inactive L1 table',
              offset: snapshot.l1Offset,
              bytes: snapshot.l1Size * 8,
            })),
          ],
    )
  }
}
