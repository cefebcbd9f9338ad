/**
 * Reading guest data of a qcow2 image.
 *
 * Invariants:
 * - A read whose tables are cached and whose child answers inline allocates nothing and never waits.
 * - A read that goes on later is numbered, so that clusters it reads are not reused under it.
 */
import { constants, inflateRawSync } from 'node:zlib'
import type { BlockChild } from '../../block/child.ts'
import type { Pending } from '../../coroutine/coroutine.ts'
import { BlockError } from '../../util/errors.ts'
import { raiseDebugEvent } from '../debug-event.ts'
import { compressedPlace } from './format.ts'
import type { Qcow2Image } from './image.ts'
import type { Mapping } from './mapping.ts'
import { KIND } from './mapping.ts'
import { allSettled, inPieces, type PieceWorker } from './pieces.ts'
import { zstdDecode } from './zstd.ts'

/** Reads. */
export class Reader implements PieceWorker {
  took = 0
  readonly #image: Qcow2Image
  readonly #mapping: Mapping
  readonly #backing: () => BlockChild | undefined

  constructor(image: Qcow2Image, mapping: Mapping, backing: () => BlockChild | undefined) {
    this.#image = image
    this.#mapping = mapping
    this.#backing = backing
  }

  /** Fills `buf` from guest byte `offset`. */
  read(offset: number, buf: Uint8Array): Pending {
    this.#image.checkAlive()
    const waits = inPieces(this, offset, buf)
    return waits === undefined ? undefined : this.#numbered(waits)
  }

  piece(offset: number, rest: Uint8Array): Pending {
    this.took = rest.length
    const known = this.#mapping.lookup(offset, rest.length)
    if (!known || this.#mapping.kind === KIND.COMPRESSED) return this.#readSlow(offset, rest)
    const { bytes } = this.#mapping
    this.took = bytes
    return this.#readRun(offset, bytes === rest.length ? rest : rest.subarray(0, bytes))
  }

  async #numbered(waits: readonly Promise<void>[]): Promise<void> {
    const request = this.#image.beginRequest()
    try {
      await allSettled(waits)
    } finally {
      this.#image.endRequest(request)
    }
  }

  #readRun(offset: number, buf: Uint8Array): Pending {
    const { kind, host } = this.#mapping
    if (kind === KIND.NORMAL) {
      raiseDebugEvent(this.#image.data, 'read_aio')
      return this.#image.data.pread(host, buf)
    }
    if (kind === KIND.UNALLOCATED) return this.readBacking(offset, buf)
    buf.fill(0)
    return undefined
  }

  async #readSlow(offset: number, buf: Uint8Array): Promise<void> {
    for (let done = 0; done < buf.length; ) {
      if (!this.#mapping.lookup(offset + done, buf.length - done)) {
        await this.#mapping.load(offset + done)
        continue
      }
      const bytes = this.#mapping.bytes
      const part = buf.subarray(done, done + bytes)
      const pending =
        this.#mapping.kind === KIND.COMPRESSED
          ? this.#readCompressed(offset + done, part)
          : this.#readRun(offset + done, part)
      if (pending !== undefined) await pending
      done += bytes
    }
  }

  /** What the backing image shows; zeroes beyond its end and without one. */
  readBacking(offset: number, buf: Uint8Array): Pending {
    const backing = this.#backing()
    if (backing === undefined || offset >= backing.length()) {
      buf.fill(0)
      return undefined
    }
    raiseDebugEvent(this.#image.file, 'read_backing_aio')
    return backing.pread(offset, buf)
  }

  /** Nothing shows through an unallocated cluster at `offset`. */
  backingIsZero(offset: number): boolean {
    const backing = this.#backing()
    return backing === undefined || offset >= backing.length()
  }

  async #readCompressed(offset: number, buf: Uint8Array): Promise<void> {
    const { geometry, l2, file } = this.#image
    const table = l2.peek(this.#mapping.l2Offset(offset))
    if (table === undefined) return this.#readSlow(offset, buf)
    const { hi, lo } = this.#mapping.entry(table, offset)
    const place = compressedPlace(hi, lo, geometry.clusterBits)
    const packed = new Uint8Array(place.bytes)
    raiseDebugEvent(file, 'read_compressed')
    const pending = file.pread(place.offset, packed)
    if (pending !== undefined) await pending
    const cluster = this.#inflate(packed)
    const start = offset % geometry.clusterBytes
    buf.set(cluster.subarray(start, start + buf.length))
  }

  #inflate(packed: Uint8Array): Uint8Array {
    const { header, geometry, node } = this.#image
    try {
      if (header.compression !== 0) {
        const out = new Uint8Array(geometry.clusterBytes)
        if (zstdDecode(packed, out)) return out
        throw new BlockError('EIO', 'Compressed cluster is too short', { node: node.name })
      }
      const cluster = inflateRawSync(packed, {
        finishFlush: constants.Z_SYNC_FLUSH,
        maxOutputLength: geometry.clusterBytes,
      })
      if (cluster.length === geometry.clusterBytes) return cluster
    } catch (error) {
      throw new BlockError('EIO', 'Compressed cluster is damaged', { node: node.name }, error)
    }
    throw new BlockError('EIO', 'Compressed cluster is too short', { node: node.name })
  }
}
