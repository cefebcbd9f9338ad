/**
 * Zero writes and discards of whole clusters of a qcow2 image.
 *
 * Invariants:
 * - A cluster that another request is writing anew is waited for.
 * - A discarded cluster over a backing image reads as zeroes; only a full discard shows what is below.
 */
import { ioError } from '../../util/errors.ts'
import type { Claims } from './claims.ts'
import { AUTOCLEAR, COMPRESSED_HI, COPIED_HI, ZERO_LO } from './format.ts'
import type { Qcow2Image } from './image.ts'
import type { Mapping } from './mapping.ts'
import { KIND } from './mapping.ts'
import type { Reader } from './reader.ts'

const ALL_BITS = 0xffffffff

/** Erases. */
export class Eraser {
  readonly #image: Qcow2Image
  readonly #mapping: Mapping
  readonly #reader: Reader
  readonly #claims: Claims

  constructor(image: Qcow2Image, mapping: Mapping, reader: Reader, claims: Claims) {
    this.#image = image
    this.#mapping = mapping
    this.#reader = reader
    this.#claims = claims
  }

  /**
   * Makes whole clusters read as zeroes; `unmap` gives their host clusters up.
   * Errors: ENOTSUP where the format cannot say so.
   */
  zero(offset: number, bytes: number, unmap: boolean): Promise<void> {
    const { header } = this.#image
    if (header.autoclear & AUTOCLEAR.RAW_DATA) throw ioError('ENOTSUP', { offset, bytes })
    if (header.version < 3 && !this.#reader.backingIsZero(offset))
      throw ioError('ENOTSUP', { offset, bytes })
    return this.#eachCluster(offset, bytes, false, (at) => this.#zeroCluster(at, unmap))
  }

  /** Gives whole clusters up: they read as zeroes, or (`full`) show the backing image again. */
  discard(offset: number, bytes: number, full: boolean): Promise<void> {
    const { header } = this.#image
    const raw = (header.autoclear & AUTOCLEAR.RAW_DATA) !== 0
    const shows = header.version < 3 && !full && !this.#reader.backingIsZero(offset)
    if (raw || shows) return Promise.resolve()
    // Giving up what holds nothing would hide the backing image.
    return this.#eachCluster(offset, bytes, true, (at) => this.#setEmpty(at, full))
  }

  /** Runs a step for each cluster that is not plainly empty, with its table ready for a change. */
  #eachCluster(
    offset: number,
    bytes: number,
    skipUnallocated: boolean,
    step: (at: number) => void,
  ): Promise<void> {
    const { clusterBytes } = this.#image.geometry
    return this.#image.numbered(async () => {
      if (this.#image.lazy) await this.#image.markDirty()
      for (let at = offset; at < offset + bytes; ) {
        this.#image.checkAlive()
        const claim = this.#claims.conflict(at, at + clusterBytes)
        if (claim !== undefined) {
          await claim.ended
          continue
        }
        if (!this.#mapping.lookup(at, offset + bytes - at)) {
          await this.#mapping.load(at)
          continue
        }
        const empty = this.#emptyBytes(at, offset + bytes, skipUnallocated)
        if (empty > 0) {
          at += empty
          continue
        }
        if (this.#mapping.writable(at) === undefined) await this.#mapping.makeWritable(at)
        else {
          step(at)
          at += clusterBytes
        }
      }
    })
  }

  /** Bytes of the run just looked up that need no step, in whole clusters. */
  #emptyBytes(at: number, end: number, skipUnallocated: boolean): number {
    const { clusterBytes } = this.#image.geometry
    const { kind, bytes } = this.#mapping
    if (kind !== KIND.UNALLOCATED) return 0
    if (!skipUnallocated && !this.#reader.backingIsZero(at)) return 0
    return at + bytes >= end ? end - at : bytes - (bytes % clusterBytes)
  }

  #zeroCluster(at: number, unmap: boolean): void {
    const table = this.#mapping.writable(at)
    if (table === undefined) return
    const { hi, lo } = this.#mapping.entry(table, at)
    const { extended } = this.#image.geometry
    const mine = (hi & COPIED_HI) !== 0 && (hi & COMPRESSED_HI) === 0
    if (mine && !unmap) {
      const kept = extended ? lo : lo | ZERO_LO
      if (this.#image.header.version >= 3) {
        this.#mapping.store(table, at, hi, kept, ALL_BITS, 0)
        return
      }
    }
    this.#setEmpty(at, false)
  }

  #setEmpty(at: number, full: boolean): void {
    const table = this.#mapping.writable(at)
    if (table === undefined) return
    const { extended } = this.#image.geometry
    const { hi, lo } = this.#mapping.entry(table, at)
    const zero = !full && this.#image.header.version >= 3
    if (full && !extended && hi === 0 && lo === 0) return
    this.#mapping.store(table, at, 0, zero && !extended ? ZERO_LO : 0, zero ? ALL_BITS : 0, 0)
    this.#mapping.release(hi, lo)
  }
}
