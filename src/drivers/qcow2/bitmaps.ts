/**
 * Dirty bitmaps that an image holds: loaded when it opens, stored when it is closed or goes read-only.
 *
 * Invariants:
 * - Before the first change of guest data every stored bitmap is marked in use, durably, so that a
 *   crash leaves none that misses a write and claims to be good.
 * - A new directory and all it points at are stable before the header shows it; the clusters of the
 *   old one go only after that.
 * - What cannot be trusted stays in the image, marked in use, until somebody removes it.
 */
import type { NamedBitmap } from '../../block/named-bitmap.ts'
import { DirtyBitmap } from '../../sync/dirty-bitmap.ts'
import {
  BITMAP_FLAG,
  type DirectoryPlace,
  directoryPlace,
  encodeDirectory,
  FLAGS_AT,
  flagNames,
  newEntry,
  parseDirectory,
  parseTable,
  type StoredBitmap,
  setDirectoryPlace,
  type TableEntry,
  tableEntriesFor,
  usable,
} from './bitmap-format.ts'
import { AUTOCLEAR, viewOf, write64 } from './format.ts'
import type { Qcow2Image } from './image.ts'
import { readBytes } from './walk.ts'

interface Placed {
  entry: StoredBitmap
  /** Where the entry begins within the directory. */
  readonly at: number
}

/** Whether the header shows bitmaps that are in step with the guest data. */
export function hasValidBitmaps(image: Qcow2Image): boolean {
  const { header } = image
  return (header.autoclear & AUTOCLEAR.BITMAPS) !== 0 && directoryPlace(header) !== undefined
}

/** The stored bitmaps of one image. */
export class ImageBitmaps {
  readonly #image: Qcow2Image
  #place: DirectoryPlace | undefined
  #stored: Placed[] = []
  #marking: Promise<void> | undefined
  /** A header that shows another directory may have reached the file. */
  #headerUnsure = false
  /** A change of guest data must wait for `mark` first. */
  mustMark = false

  /** Use `load`. */
  private constructor(image: Qcow2Image) {
    this.#image = image
  }

  /** Reads the directory and gives the image's node its bitmaps. Errors: EINVAL, EIO. */
  static async load(image: Qcow2Image): Promise<ImageBitmaps> {
    const bitmaps = new ImageBitmaps(image)
    if (hasValidBitmaps(image)) await bitmaps.#load()
    return bitmaps
  }

  /** As monitors show them: what the image holds and has not been removed since. */
  info(): { name: string; granularity: number; flags: string[] }[] {
    const { bitmaps } = this.#image.node
    const there = this.#stored.filter(({ entry }) => bitmaps.get(entry.name)?.persistent === true)
    return there.map(({ entry }) => ({
      name: entry.name,
      granularity: entry.granularity,
      // While the image can be written, nobody else may trust what it holds.
      flags: flagNames(entry.flags | (this.#image.writable ? BITMAP_FLAG.IN_USE : 0)),
    }))
  }

  /** The image became writable or read-only; so do its bitmaps. */
  setReadOnly(readOnly: boolean): void {
    for (const { entry } of this.#stored) {
      const bitmap = this.#image.node.bitmaps.get(entry.name)
      if (bitmap?.persistent === true) bitmap.readOnly = readOnly
    }
  }

  /** Marks everything stored as in use; once, whoever asks meanwhile waits for the same. */
  mark(): Promise<void> {
    this.#marking ??= this.#mark().finally(() => {
      this.#marking = undefined
    })
    return this.#marking
  }

  /** Puts the bitmaps of the node into the image, which nobody writes meanwhile. */
  async store(): Promise<void> {
    const { node } = this.#image
    const keep = node.bitmaps.list().filter((bitmap) => bitmap.persistent)
    if (keep.length === 0 && this.#stored.length === 0) return
    const entries: StoredBitmap[] = []
    for (const bitmap of keep.reverse()) entries.push(await this.#storeOne(bitmap))
    const old = { stored: this.#stored, place: this.#place }
    const place = await this.#writeDirectory(entries)
    await this.#switchTo(place)
    this.#place = place
    this.#stored = placed(entries)
    this.#guard()
    await this.#giveUp(old.stored, old.place, new Set(entries.map((entry) => entry.tableOffset)))
  }

  async #load(): Promise<void> {
    const { header, geometry, file, node } = this.#image
    const place = directoryPlace(header)
    if (place === undefined) return
    const bytes = await readBytes(file, place.offset, place.bytes)
    this.#place = place
    this.#stored = parseDirectory(bytes, place.count, geometry.clusterBytes)
    for (const { entry } of this.#stored) {
      const bits = DirtyBitmap.create(header.size, entry.granularity)
      const good = usable(entry) && (await this.#loadBits(entry, bits))
      const disabled = !good || (entry.flags & BITMAP_FLAG.AUTO) === 0
      const bitmap = node.bitmaps.adopt({ name: entry.name, persistent: true, disabled }, bits)
      bitmap.inconsistent = !good
      bitmap.readOnly = node.readOnly
    }
    this.#guard()
  }

  /** False when what the image has does not fit. */
  async #loadBits(entry: StoredBitmap, bits: DirtyBitmap): Promise<boolean> {
    const { header, geometry, file } = this.#image
    const { clusterBytes } = geometry
    const { granularity, tableEntries } = entry
    if (tableEntries !== tableEntriesFor(header.size, granularity, clusterBytes)) return false
    const table = await this.#readTable(entry)
    const covers = clusterBytes * 8 * granularity
    for (const [i, at] of table.entries()) {
      if (at === 'damaged') return false
      if (at === 'clean') continue
      const start = i * covers
      if (at === 'dirty') bits.setRange(start, Math.min(covers, header.size - start))
      else bits.addBytes(await readBytes(file, at.cluster, clusterBytes), start)
    }
    return true
  }

  #readTable(entry: StoredBitmap): Promise<TableEntry[]> {
    const { file, geometry } = this.#image
    return readBytes(file, entry.tableOffset, entry.tableEntries * 8).then((bytes) =>
      parseTable(bytes, geometry.clusterBytes, file.length()),
    )
  }

  #guard(): void {
    this.mustMark = this.#stored.some(({ entry }) => (entry.flags & BITMAP_FLAG.IN_USE) === 0)
  }

  async #mark(): Promise<void> {
    const image = this.#image
    if (this.#headerUnsure) {
      await image.writeHeader()
      await image.sync()
      this.#headerUnsure = false
    }
    for (const one of this.#stored) {
      const flags = one.entry.flags | BITMAP_FLAG.IN_USE
      if (flags === one.entry.flags || this.#place === undefined) continue
      const word = new Uint8Array(4)
      viewOf(word).setUint32(0, flags)
      await image.writeMeta(this.#place.offset + one.at + FLAGS_AT, word)
    }
    await image.sync()
    for (const one of this.#stored)
      one.entry = { ...one.entry, flags: one.entry.flags | BITMAP_FLAG.IN_USE }
    this.mustMark = false
  }

  async #storeOne(bitmap: NamedBitmap): Promise<StoredBitmap> {
    const image = this.#image
    const { clusterBytes } = image.geometry
    const before = this.#stored.find(({ entry }) => entry.name === bitmap.name)?.entry
    if (bitmap.inconsistent && before !== undefined)
      return { ...before, flags: before.flags | BITMAP_FLAG.IN_USE }
    const bytes = bitmap.allBits().toBytes(clusterBytes)
    const entries = bytes.length / clusterBytes
    const table = new Uint8Array(entries * 8)
    for (let i = 0; i < entries; i++) {
      const piece = bytes.subarray(i * clusterBytes, (i + 1) * clusterBytes)
      if (piece.every((byte) => byte === 0)) continue
      write64(viewOf(table), i * 8, await this.#writeNew(piece))
    }
    const offset = entries === 0 ? 0 : await this.#writeNew(table)
    return newEntry(bitmap.name, bitmap.granularity, bitmap.enabled, { offset, entries })
  }

  async #writeDirectory(entries: readonly StoredBitmap[]): Promise<DirectoryPlace | undefined> {
    if (entries.length === 0) return undefined
    const bytes = encodeDirectory(entries)
    const offset = await this.#writeNew(bytes)
    return { count: entries.length, bytes: bytes.length, offset }
  }

  /** Writes bytes into clusters of their own; answers where they begin. */
  async #writeNew(bytes: Uint8Array): Promise<number> {
    const image = this.#image
    const { clusterBytes } = image.geometry
    const clusters = Math.ceil(bytes.length / clusterBytes)
    const offset = (await image.refcounts.allocate(clusters)) * clusterBytes
    const whole = new Uint8Array(clusters * clusterBytes)
    whole.set(bytes)
    await image.writeMeta(offset, whole)
    return offset
  }

  async #switchTo(place: DirectoryPlace | undefined): Promise<void> {
    const image = this.#image
    const { header } = image
    await image.writeBack()
    await image.sync()
    const autoclear = header.autoclear
    setDirectoryPlace(header, place)
    if (place === undefined) header.autoclear &= ~AUTOCLEAR.BITMAPS
    try {
      await image.writeHeader()
      await image.sync()
    } catch (error) {
      setDirectoryPlace(header, this.#place)
      header.autoclear = autoclear
      this.#headerUnsure = true
      this.mustMark = true
      throw error
    }
    this.#headerUnsure = false
    if (place === undefined || (header.autoclear & AUTOCLEAR.BITMAPS) !== 0) return
    header.autoclear |= AUTOCLEAR.BITMAPS
    await image.writeFeatures()
    await image.sync()
  }

  /** Gives up the clusters of an old directory, except tables that are still in use. */
  async #giveUp(
    stored: readonly Placed[],
    place: DirectoryPlace | undefined,
    inUse: ReadonlySet<number>,
  ): Promise<void> {
    for (const { entry } of stored) {
      if (inUse.has(entry.tableOffset)) continue
      for (const at of await this.#readTable(entry))
        if (typeof at === 'object') this.#free(at.cluster, 1)
      this.#free(entry.tableOffset, entry.tableEntries * 8)
    }
    if (place !== undefined) this.#free(place.offset, place.bytes)
  }

  #free(offset: number, bytes: number): void {
    const { clusterBytes } = this.#image.geometry
    const clusters = Math.ceil(bytes / clusterBytes)
    if (clusters > 0) this.#image.freeLater(offset / clusterBytes, clusters)
  }
}

function placed(entries: readonly StoredBitmap[]): Placed[] {
  if (entries.length === 0) return []
  const bytes = encodeDirectory(entries)
  return parseDirectory(bytes, entries.length, 1)
}
