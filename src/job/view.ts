/**
 * Disks as a job body sees them: attached memory, an open file, a chain of layers, or a proxy.
 *
 * Invariants:
 * - A view that is attached answers inline; only a proxy answers later.
 * - A view has no gate and no order of its own: the job rests while any of its nodes is drained.
 */
import type { MaybePromise, Pending } from '../coroutine/coroutine.ts'
import { assert } from '../util/errors.ts'

/** What a disk holds at the start of a range. */
export interface ViewStatus {
  /** `unallocated`: this disk does not decide the content. */
  readonly kind: 'data' | 'zero' | 'unallocated'
  /** Bytes with that answer, from the asked offset; above 0 and not above what was asked. */
  readonly bytes: number
}

/** One disk in a worker. Buffers lie in shared memory, so that a proxy can pass them on. */
export interface DiskView {
  /** Length in bytes. */
  readonly length: number
  /** Answers inline and takes data from any memory; a proxy takes only what lies in its buffer. */
  readonly attached: boolean
  /** `status` cannot tell zeroes from data: whoever reads has to look. */
  readonly blind: boolean
  /** What the start of the range is. */
  status(offset: number, bytes: number): MaybePromise<ViewStatus>
  /**
   * The bytes of a range whose status is data, where they lie: to be read only, and only until the
   * next wait. Undefined: they have to be read.
   */
  inPlace?(offset: number, bytes: number): Uint8Array | undefined
  /** Fills `buf`; the range lies inside the disk. */
  pread(offset: number, buf: Uint8Array): Pending
  /** Stores `buf`. */
  pwrite(offset: number, buf: Uint8Array): Pending
  /** Makes a range read as zeroes. */
  pwriteZeroes(offset: number, bytes: number): Pending
  /** Gives up what the view holds. */
  close(): void
}

/** Layers over each other, the top first; what none of them holds is `unallocated`. */
export class ChainView implements DiskView {
  readonly attached = true
  readonly blind: boolean
  readonly #layers: readonly DiskView[]

  constructor(layers: readonly DiskView[]) {
    this.#layers = layers
    this.blind = layers.some((layer) => layer.blind)
  }

  get length(): number {
    return this.#layers[0]?.length ?? 0
  }

  status(offset: number, bytes: number): MaybePromise<ViewStatus> {
    return this.#find(offset, bytes).status
  }

  inPlace(offset: number, bytes: number): Uint8Array | undefined {
    const { status, layer } = this.#find(offset, bytes)
    return status.bytes < bytes ? undefined : layer?.inPlace?.(offset, bytes)
  }

  pread(offset: number, buf: Uint8Array): Pending {
    for (let at = 0; at < buf.length; ) {
      const { status, layer } = this.#find(offset + at, buf.length - at)
      const piece = buf.subarray(at, at + status.bytes)
      if (layer === undefined) piece.fill(0)
      else assertInline(layer.pread(offset + at, piece))
      at += status.bytes
    }
    return undefined
  }

  pwrite(offset: number, buf: Uint8Array): Pending {
    return this.#layers[0]?.pwrite(offset, buf)
  }

  pwriteZeroes(offset: number, bytes: number): Pending {
    return this.#layers[0]?.pwriteZeroes(offset, bytes)
  }

  close(): void {
    for (const layer of this.#layers) layer.close()
  }

  #find(offset: number, bytes: number): { status: ViewStatus; layer: DiskView | undefined } {
    let want = bytes
    for (const layer of this.#layers) {
      // A layer that is shorter than the top reads as zeroes beyond its end.
      const inside = Math.min(want, layer.length - offset)
      if (inside <= 0) continue
      const status = layer.status(offset, inside)
      assert(!(status instanceof Promise), 'a layer of a chain answers inline')
      if (status.kind !== 'unallocated') return { status, layer }
      want = Math.min(want, status.bytes)
    }
    return { status: { kind: 'unallocated', bytes: want }, layer: undefined }
  }
}

function assertInline(pending: Pending): void {
  assert(pending === undefined, 'a layer of a chain answers inline')
}
