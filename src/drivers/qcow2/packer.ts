/**
 * Compressed writes of a qcow2 image.
 *
 * Invariants:
 * - Compressed clusters share a host cluster, each counted once, and never cross into the next.
 * - A host cluster of which an entry was given up takes no further one.
 */
import { deflateRawSync } from 'node:zlib'
import type { Claims } from './claims.ts'
import type { Qcow2Image } from './image.ts'
import type { Mapping } from './mapping.ts'
import type { Writer } from './writer.ts'

/** Packs. */
export class Packer {
  readonly #image: Qcow2Image
  readonly #mapping: Mapping
  readonly #writer: Writer
  readonly #claims: Claims

  constructor(image: Qcow2Image, mapping: Mapping, writer: Writer, claims: Claims) {
    this.#image = image
    this.#mapping = mapping
    this.#writer = writer
    this.#claims = claims
  }

  /** Stores whole clusters compressed; what does not shrink is stored as it is. */
  write(offset: number, buf: Uint8Array): Promise<void> {
    const { clusterBytes } = this.#image.geometry
    return this.#image.numbered(async () => {
      if (this.#image.lazy) await this.#image.markDirty()
      for (let done = 0; done < buf.length; done += clusterBytes)
        await this.#packCluster(offset + done, buf.subarray(done, done + clusterBytes))
    })
  }

  async #packCluster(offset: number, buf: Uint8Array): Promise<void> {
    const { clusterBytes } = this.#image.geometry
    const cluster = new Uint8Array(clusterBytes)
    cluster.set(buf)
    const packed = deflateRawSync(cluster, { windowBits: 12, level: 6 })
    // Clusters of other compressions are read only; what is written to such an image is stored plain.
    const foreign = this.#image.header.compression !== 0
    if (foreign || packed.length >= clusterBytes || this.#image.data !== this.#image.file) {
      await this.#writer.write(offset, buf)
      return
    }
    for (;;) {
      const claim = this.#claims.conflict(offset, offset + clusterBytes)
      if (claim === undefined) break
      await claim.ended
    }
    const release = this.#claims.claim(offset, offset + clusterBytes)
    try {
      const host = await this.#packedPlace(packed.length)
      await this.#writer.put(host, packed)
      this.#image.virginFrom = Math.max(this.#image.virginFrom, host + clusterBytes)
      for (;;) {
        const table = this.#mapping.writable(offset)
        if (table !== undefined) break
        await this.#mapping.makeWritable(offset)
      }
      this.#pointPacked(offset, host, packed.length)
    } finally {
      release()
    }
  }

  /** Room behind the last compressed cluster, or in a new host cluster. */
  async #packedPlace(bytes: number): Promise<number> {
    const image = this.#image
    const { clusterBytes } = image.geometry
    const end = this.#mapping.packedEnd
    if (end > 0 && (end % clusterBytes) + bytes <= clusterBytes && end % clusterBytes !== 0) {
      const place = end
      this.#mapping.packedEnd = place + bytes
      if (await image.refcounts.share(Math.floor(place / clusterBytes))) return place
    }
    const cluster = await image.refcounts.allocate(1)
    this.#mapping.packedEnd = cluster * clusterBytes + bytes
    return cluster * clusterBytes
  }

  #pointPacked(offset: number, host: number, bytes: number): void {
    const table = this.#mapping.writable(offset)
    if (table === undefined) return
    const sectors = BigInt(Math.floor(((host % 512) + bytes - 1) / 512))
    const shift = BigInt(62 - (this.#image.geometry.clusterBits - 8))
    const entry = (1n << 62n) | (sectors << shift) | BigInt(host)
    const { hi, lo } = this.#mapping.entry(table, offset)
    this.#mapping.store(table, offset, Number(entry >> 32n), Number(entry & 0xffffffffn), 0, 0)
    this.#mapping.release(hi, lo)
  }
}
