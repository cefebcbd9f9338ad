/**
 * An export: a disk under a name, and what a client is told of it.
 *
 * Invariants:
 * - The server reaches a disk through `ExportBackend` alone, which a `BlockBackend` satisfies.
 * - What is told of an export depends only on the export, the server and whether structured replies
 *   were agreed on, so INFO and GO never differ.
 * - Context numbers are fixed: 0 allocation, 1 allocation depth, dirty bitmaps from 2.
 */
import type { MaybePromise, Pending } from '../coroutine/coroutine.ts'
import { NBD_FLAG } from './constants.ts'

/** Calls a backend makes when its disk is drained. */
export interface ExportHooks {
  /** No new requests from here. */
  drainedBegin?(): void
  /** Go on. */
  drainedEnd?(): void
}

/** What the start of a range holds. */
export interface ExportStatus {
  /** `STATUS` bits of the block layer; DATA and ZERO are read. */
  readonly flags: number
  /** Bytes from the asked offset with that answer; above 0. */
  readonly bytes: number
  /** Layers above the one that decides; 0 = the top, -1 = none does. */
  readonly depth: number
}

/** What a backend is told of requests that it does not get to see. */
export interface ExportAccounting {
  /** A read of zeroes was answered without reading. */
  readZeroes(bytes: number): void
  /** A request was refused. */
  refused(kind: 'read' | 'write' | 'flush' | 'unmap'): void
}

/** The part of a block backend that an export uses; requests fail by throwing or rejecting. */
export interface ExportBackend {
  /** Whether writes are refused below. */
  readonly readOnly: boolean
  /** Requests of other multiples cost more; absent: 1. */
  readonly requestAlignment?: number
  /** Length in bytes. */
  length(): number
  /** Fills `buf` from `offset`. */
  pread(offset: number, buf: Uint8Array): Pending
  /** Stores `buf`; `flags` are those of the block layer. */
  pwrite(offset: number, buf: Uint8Array, flags?: number): Pending
  /** Makes a range read as zeroes. */
  pwriteZeroes(offset: number, bytes: number, flags?: number): Pending
  /** Gives a range up. */
  pdiscard(offset: number, bytes: number): Pending
  /** Makes every completed write stable. */
  flush(): Pending
  /** Brings a range closer: what it shows of a backing image is copied to the disk itself. */
  prefetch(offset: number, bytes: number): Pending
  /** What the start of a range holds, over the whole chain. */
  blockStatus(offset: number, bytes: number): MaybePromise<ExportStatus>
  /** Counts what clients did; absent: nobody does. */
  readonly accounting?: ExportAccounting
  /** Installs the calls made around a drained section. */
  setHooks(hooks: ExportHooks): void
}

/** The part of a dirty bitmap that an export shows. */
export interface ExportBitmap {
  /** The next dirty run that ends after `from`, in bytes; undefined when there is none. */
  nextDirty(from: number): { readonly offset: number; readonly bytes: number } | undefined
}

/** A disk under a name. */
export interface NbdExport {
  /** Up to 4096 bytes; the empty name is the default export. */
  readonly name: string
  /** Human text shown in listings; up to 4096 bytes. */
  readonly description?: string
  /** The disk. Stays the caller's: removing the export does not close it. */
  readonly backend: ExportBackend
  /** Refuse writes. */
  readonly readOnly: boolean
  /**
   * One writer at a time: the client that writes last, whose changes begin after all others' have
   * ended and who cuts the writer before it. For the export that replication writes to.
   */
  readonly exclusive?: boolean
  /** Offer `qemu:allocation-depth`; default false. */
  readonly allocationDepth?: boolean
  /** Dirty bitmaps offered as `qemu:dirty-bitmap:NAME`. */
  readonly bitmaps?: readonly { readonly name: string; readonly bitmap: ExportBitmap }[]
}

/** A metadata context that an export offers. */
export interface MetaContext {
  /** Number used on the wire. */
  readonly id: number
  /** Full name. */
  readonly name: string
  /** How its extents are found. */
  readonly kind: 'allocation' | 'depth' | 'bitmap'
  /** The bitmap of a `bitmap` context. */
  readonly bitmap?: ExportBitmap
}

const BEST_BLOCK = 4096
const LARGEST_BLOCK = 32 << 20

/** Block sizes told to a client: smallest, best, and longest payload. */
export function exportBlockSizes(exp: NbdExport): readonly [number, number, number] {
  const smallest = exp.backend.requestAlignment ?? 1
  return [smallest, Math.max(smallest, BEST_BLOCK), LARGEST_BLOCK]
}

/** Every context of an export, by number. */
export function exportContexts(exp: NbdExport): MetaContext[] {
  const contexts: MetaContext[] = [{ id: 0, name: 'base:allocation', kind: 'allocation' }]
  if (exp.allocationDepth === true) {
    contexts.push({ id: 1, name: 'qemu:allocation-depth', kind: 'depth' })
  }
  exp.bitmaps?.forEach(({ name, bitmap }, i) => {
    contexts.push({ id: 2 + i, name: `qemu:dirty-bitmap:${name}`, kind: 'bitmap', bitmap })
  })
  return contexts
}

/** Transmission flags; several connections are promised to be coherent when `multi` is set. */
export function exportFlags(exp: NbdExport, structured: boolean, multi: boolean): number {
  let flags = NBD_FLAG.HAS_FLAGS | NBD_FLAG.SEND_FLUSH | NBD_FLAG.SEND_FUA | NBD_FLAG.SEND_CACHE
  if (structured) flags |= NBD_FLAG.SEND_DF
  if (multi && exp.exclusive !== true) flags |= NBD_FLAG.CAN_MULTI_CONN
  if (exp.readOnly) return flags | NBD_FLAG.READ_ONLY
  return flags | NBD_FLAG.SEND_TRIM | NBD_FLAG.SEND_WRITE_ZEROES | NBD_FLAG.SEND_FAST_ZERO
}

/**
 * The contexts that `queries` select. Unknown names and namespaces select nothing. A namespace
 * alone (`base:`, `qemu:`, `qemu:dirty-bitmap:`) selects all of it when `listing`.
 */
export function selectContexts(
  exp: NbdExport,
  queries: readonly string[],
  listing: boolean,
): MetaContext[] {
  const all = exportContexts(exp)
  if (listing && queries.length === 0) return all
  const wanted = (name: string): boolean =>
    queries.some((query) => query === name || (listing && isWildcard(query, name)))
  return all.filter((context) => wanted(context.name))
}

function isWildcard(query: string, name: string): boolean {
  return query.endsWith(':') && name.startsWith(query)
}
