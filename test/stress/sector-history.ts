/**
 * What each sector of a disk may show, told from the requests alone: an independent judge of a load.
 *
 * Invariants:
 * - A sector has one writer at a time, so its writes have an order.
 * - It may show the last write that was acknowledged, or any that began after it; a read that lasts may
 *   find any of those that were allowed at some moment of it.
 * - A discard leaves what was there, or zeroes.
 */

/** Bytes of a sector. */
export const SECTOR = 512

/** Tag of a sector of zeroes. */
export const ZERO_TAG = 0

/** A write-class request or a read of one sector on its way. */
export interface Reading {
  readonly sector: number
  /** Tags that it may find; grows while it lasts. */
  readonly may: Set<number>
}

/** The histories of all sectors of a disk that began as zeroes. */
export class SectorHistory {
  readonly #allowed: number[][]
  readonly #readings: Set<Reading>[]
  readonly #complaints: string[] = []
  #tag = 1

  constructor(sectors: number) {
    this.#allowed = Array.from({ length: sectors }, () => [ZERO_TAG])
    this.#readings = Array.from({ length: sectors }, () => new Set())
  }

  /** What does not fit; at most a few of them. */
  get complaints(): readonly string[] {
    return this.#complaints
  }

  /** A write begins; the answer is the tag that it stores. */
  beginWrite(sector: number): number {
    const tag = this.#tag++
    this.#begin(sector, tag)
    return tag
  }

  /** A zero write begins. */
  beginZero(sector: number): number {
    this.#begin(sector, ZERO_TAG)
    return ZERO_TAG
  }

  /** A discard begins: the sector may show zeroes from now on, and need not ever. */
  beginDiscard(sector: number): void {
    this.#begin(sector, ZERO_TAG)
  }

  /** A write or zero write ended: nothing older may show any more. */
  acknowledge(sector: number, tag: number): void {
    const list = this.#list(sector)
    list.splice(0, Math.max(0, list.lastIndexOf(tag)))
  }

  /** A read begins. */
  beginRead(sector: number): Reading {
    const reading = { sector, may: new Set(this.#list(sector)) }
    this.#readings[sector]?.add(reading)
    return reading
  }

  /** A read ended with these bytes. */
  endRead(reading: Reading, bytes: Uint8Array): void {
    this.#readings[reading.sector]?.delete(reading)
    this.#judge(reading.sector, bytes, reading.may)
  }

  /** Nothing is on its way: judges the bytes of the whole disk. */
  judgeAll(disk: Uint8Array): void {
    for (const [sector, list] of this.#allowed.entries()) {
      const at = sector * SECTOR
      this.#judge(sector, disk.subarray(at, at + SECTOR), new Set(list))
    }
  }

  #begin(sector: number, tag: number): void {
    this.#list(sector).push(tag)
    for (const reading of this.#readings[sector] ?? []) reading.may.add(tag)
  }

  #list(sector: number): number[] {
    const list = this.#allowed[sector]
    if (list === undefined) throw new Error(`sector ${sector} is outside of the disk`)
    return list
  }

  #judge(sector: number, bytes: Uint8Array, may: ReadonlySet<number>): void {
    const words = new Uint32Array(bytes.slice().buffer)
    const [tag = ZERO_TAG] = words
    const torn = words.some((word) => word !== tag)
    if (!torn && may.has(tag)) return
    const shown = torn ? `torn, first word ${tag}` : String(tag)
    if (this.#complaints.length < 20)
      this.#complaints.push(`sector ${sector} shows ${shown}, may show ${[...may].join()}`)
  }
}

/** The bytes of a sector with a tag. */
export function tagged(tag: number): Uint8Array {
  const buf = new Uint8Array(SECTOR)
  new Uint32Array(buf.buffer).fill(tag)
  return buf
}
