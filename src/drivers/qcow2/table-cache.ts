/**
 * A bounded cache of metadata clusters (L2 tables or refcount blocks).
 *
 * Invariants:
 * - At most one copy of a cluster is cached; it is changed only synchronously after `peek`.
 * - A table is evicted only while clean; when all are dirty, everything is written back first.
 * - `takeDirty` hands out copies, so what is written is what stood there when the write-back began.
 */
import { viewOf } from './format.ts'

/** One cached cluster. */
export interface Table {
  readonly offset: number
  readonly bytes: Uint8Array
  readonly view: DataView
  /** Changed bytes not yet written: [dirtyFrom, dirtyTo); none when equal. */
  dirtyFrom: number
  dirtyTo: number
  /** A copy is on its way to the file; until it arrives the table must not be read again. */
  writing: number
  used: number
}

/** A piece of a table on its way to the file. */
export interface DirtyPiece {
  readonly table: Table
  readonly offset: number
  readonly bytes: Uint8Array
}

/** Changed bytes are written in pieces of this size, so that a write never tears an entry. */
const SECTOR_BYTES = 512

/** The cache. */
export class TableCache {
  readonly #tableBytes: number
  readonly #read: (offset: number, bytes: Uint8Array) => Promise<void>
  readonly #writeBack: () => Promise<void>
  readonly #tables = new Map<number, Table>()
  readonly #loading = new Map<number, Promise<void>>()
  #limit: number
  #clock = 0

  constructor(
    tableBytes: number,
    limit: number,
    read: (offset: number, bytes: Uint8Array) => Promise<void>,
    writeBack: () => Promise<void>,
  ) {
    this.#tableBytes = tableBytes
    this.#limit = limit
    this.#read = read
    this.#writeBack = writeBack
  }

  /** Most tables kept. */
  set limit(tables: number) {
    this.#limit = tables
  }

  /** The table, if cached. Valid until the caller waits. */
  peek(offset: number): Table | undefined {
    const table = this.#tables.get(offset)
    if (table !== undefined) table.used = ++this.#clock
    return table
  }

  /** Brings a table in; `peek` afterwards, and again if it is gone by then. */
  async load(offset: number): Promise<void> {
    const running = this.#loading.get(offset)
    if (running !== undefined) return running
    const load = this.#load(offset)
    this.#loading.set(offset, load)
    try {
      await load
    } finally {
      this.#loading.delete(offset)
    }
  }

  async #load(offset: number): Promise<void> {
    await this.#makeRoom()
    const bytes = new Uint8Array(this.#tableBytes)
    await this.#read(offset, bytes)
    if (!this.#tables.has(offset)) this.#insert(offset, bytes)
  }

  async #makeRoom(): Promise<void> {
    while (this.#tables.size >= this.#limit && this.#evictOne());
    if (this.#tables.size < this.#limit) return
    await this.#writeBack()
    while (this.#tables.size >= this.#limit && this.#evictOne());
  }

  #evictOne(): boolean {
    let oldest: Table | undefined
    for (const table of this.#tables.values()) {
      if (table.dirtyTo > table.dirtyFrom || table.writing > 0) continue
      if (oldest === undefined || table.used < oldest.used) oldest = table
    }
    if (oldest === undefined) return false
    this.#tables.delete(oldest.offset)
    return true
  }

  /** Puts a table that is new in the image into the cache, wholly dirty. */
  add(offset: number, bytes: Uint8Array): Table {
    if (this.#tables.size >= this.#limit) this.#evictOne()
    const table = this.#insert(offset, bytes)
    table.dirtyTo = bytes.length
    return table
  }

  #insert(offset: number, bytes: Uint8Array): Table {
    const used = ++this.#clock
    const view = viewOf(bytes)
    const table = { offset, bytes, view, dirtyFrom: 0, dirtyTo: 0, writing: 0, used }
    this.#tables.set(offset, table)
    return table
  }

  /** Notes a change of `bytes` bytes at `at`. */
  touch(table: Table, at: number, bytes: number): void {
    if (table.dirtyTo <= table.dirtyFrom) {
      table.dirtyFrom = at
      table.dirtyTo = at + bytes
      return
    }
    if (at < table.dirtyFrom) table.dirtyFrom = at
    if (at + bytes > table.dirtyTo) table.dirtyTo = at + bytes
  }

  /** Something waits to be written. */
  get dirty(): boolean {
    for (const table of this.#tables.values()) if (table.dirtyTo > table.dirtyFrom) return true
    return false
  }

  /** Copies of everything changed, which counts as clean from here on. */
  takeDirty(): DirtyPiece[] {
    const pieces: DirtyPiece[] = []
    for (const table of this.#tables.values()) {
      if (table.dirtyTo <= table.dirtyFrom) continue
      const from = Math.floor(table.dirtyFrom / SECTOR_BYTES) * SECTOR_BYTES
      const to = Math.min(this.#tableBytes, Math.ceil(table.dirtyTo / SECTOR_BYTES) * SECTOR_BYTES)
      pieces.push({ table, offset: table.offset + from, bytes: table.bytes.slice(from, to) })
      table.dirtyFrom = 0
      table.dirtyTo = 0
      table.writing++
    }
    return pieces
  }

  /** Ends a `takeDirty`; after a failed write the pieces are dirty again. */
  settle(pieces: readonly DirtyPiece[], written: boolean): void {
    for (const { table, offset, bytes } of pieces) {
      table.writing--
      if (written) continue
      if (this.#tables.get(table.offset) !== table) continue
      this.touch(table, offset - table.offset, bytes.length)
    }
  }

  /** Forgets one table, changed or not. */
  drop(offset: number): void {
    this.#tables.delete(offset)
  }

  /** Forgets everything, changed or not. */
  clear(): void {
    this.#tables.clear()
  }
}
