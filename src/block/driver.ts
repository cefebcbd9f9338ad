/**
 * The driver contract: what every image format, protocol and filter offers to the block layer.
 *
 * Invariants:
 * - A driver cannot tell whether a guest, a peer or a job is above it.
 * - An operation answers `undefined` when it finished inline, or a promise; it fails by throwing a
 *   `BlockError` or by rejecting with one. Nothing else leaves a driver.
 * - The block layer has aligned, split, ordered and range-checked every request before it arrives.
 * - A driver reaches its children only through the edges its opener gave it.
 */
import type { MaybePromise, Pending } from '../coroutine/coroutine.ts'
import type { BlockChild } from './child.ts'
import type { BlockNode } from './node.ts'

/** Request flags (spec 3); a bit set, combined with `|`. */
export const FLAG = {
  /** Zero write: the range may lose its allocation. */
  MAY_UNMAP: 0x4,
  /** Data must be stable before the request completes. */
  FUA: 0x10,
  /** Compress the data (whole clusters only). */
  WRITE_COMPRESSED: 0x20,
  /** The write does not change what readers see. */
  WRITE_UNCHANGED: 0x40,
  /** Excludes every overlapping request of the node. */
  SERIALISING: 0x80,
  /** Fail with ENOTSUP instead of emulating slowly. */
  NO_FALLBACK: 0x100,
} as const

/** Permission bits of an edge (spec 2.5). */
export const PERM = {
  CONSISTENT_READ: 0x1,
  WRITE: 0x2,
  WRITE_UNCHANGED: 0x4,
  RESIZE: 0x8,
  ALL: 0xf,
} as const

/** Block-status bits (spec 3.9). */
export const STATUS = {
  DATA: 0x1,
  ZERO: 0x2,
  OFFSET_VALID: 0x4,
  /** Ask the child in `file` at `map` instead. */
  RAW: 0x8,
  /** This layer itself decides the content. */
  ALLOCATED: 0x10,
  EOF: 0x20,
} as const

/** What a driver says of the start of a range. */
export interface BlockStatus {
  /** `STATUS` bits. */
  readonly flags: number
  /** How many bytes, from the asked offset, the answer covers; above 0. */
  readonly bytes: number
  /** Where the bytes lie in `file`, when OFFSET_VALID or RAW is set. */
  readonly map?: number
  /** The child that holds them. */
  readonly file?: BlockChild
}

/** Limits of a driver; all in bytes, powers of two where they are alignments. */
export interface BlockLimits {
  /** Requests reach the driver as multiples of this; 1 … 64 KiB. */
  readonly requestAlignment: number
  /** Longest single read or write; 0 = no limit. */
  readonly maxTransfer: number
  /** Cluster size of an image format; 0 = none. */
  readonly clusterSize: number
  /** Longest zero write the driver takes at once; 0 = no limit. */
  readonly maxZeroes: number
  /** Zero writes reach `pwriteZeroes` in multiples of this; 0 = `requestAlignment`. */
  readonly zeroesAlignment: number
  /** Discards reach `pdiscard` in multiples of this; 0 = `requestAlignment`. */
  readonly discardAlignment: number
  /** Longest discard the driver takes at once; absent or 0 = no limit. */
  readonly maxDiscard?: number
}

/** The limits of a driver that has none. */
export const NO_LIMITS: BlockLimits = {
  requestAlignment: 1,
  maxTransfer: 0,
  clusterSize: 0,
  maxZeroes: 0,
  zeroesAlignment: 0,
  discardAlignment: 0,
}

/** Options of a node as `blockdev-add` writes them: kebab-case members, children nested or by name. */
export interface BlockdevOptions {
  /** Name of the driver. */
  readonly driver: string
  /** The node's name; made up (`#block…`) when absent. */
  readonly 'node-name'?: string
  /** Refuse writes; default false (true for a backing image). */
  readonly 'read-only'?: boolean
  /** Fall back to read-only when the image cannot be opened for writing; default false. */
  readonly 'auto-read-only'?: boolean
  /** `unmap` lets discards through; default `ignore`. */
  readonly discard?: 'ignore' | 'unmap'
  /** Look for zero data in writes; default `off`. */
  readonly 'detect-zeroes'?: 'off' | 'on' | 'unmap'
  /** Cache behaviour. */
  readonly cache?: { readonly direct?: boolean; readonly 'no-flush'?: boolean }
  /** Share every permission with other users of the image. */
  readonly 'force-share'?: boolean
  /** Driver options. */
  readonly [option: string]: unknown
}

/** A child in options: options to open it inline, the name of a node, or `null` for none. */
export type BlockdevRef = BlockdevOptions | string

/** Role of an edge: how the parent uses the child (spec 2.2). */
export type ChildRole = 'file' | 'backing' | 'filtered' | 'data' | 'target' | 'root' | 'job'

/** Permissions a user takes and tolerates. */
export interface Permissions {
  /** `PERM` bits taken. */
  readonly perm: number
  /** `PERM` bits tolerated in other users. */
  readonly shared: number
}

/** Opens the children of a node while its driver opens; everything is undone if the driver fails. */
export interface ChildOpener {
  /**
   * Attaches a child. `role` decides inheritance: `backing` defaults to read-only, all others
   * inherit read-only from this node. Errors: those of the child's own opening.
   */
  open(name: string, ref: BlockdevRef, role: ChildRole): Promise<BlockChild>
}

/** What an image says of itself, for `query-named-block-nodes`. */
export interface ImageInfo {
  /** Bytes used on the host. */
  readonly actualSize?: number
  /** Format specific data, as QMP shows it. */
  readonly formatSpecific?: {
    readonly type: string
    readonly data: Readonly<Record<string, unknown>>
  }
  /** Name of the backing image as the image has it written down. */
  readonly backingFilename?: string
  /** Format of it. */
  readonly backingFormat?: string
  /** The image was not closed in order. */
  readonly dirty?: boolean
  /** Internal snapshots, as QMP shows them. */
  readonly snapshots?: readonly Readonly<Record<string, unknown>>[]
}

/** A snapshot that lies inside an image. */
export interface InternalSnapshot {
  readonly id: string
  readonly name: string
  /** When it was taken, since the epoch. */
  readonly seconds: number
  readonly nanoseconds: number
  /** The machine's own clock then. */
  readonly clockNs: number
  /** Bytes of machine state stored with it. */
  readonly stateBytes: number
  /** Instructions executed by then, where that was counted. */
  readonly icount: number | undefined
}

/** The snapshots inside one image; the node is drained while they are changed. */
export interface InternalSnapshots {
  /** All of them, oldest first. Errors: ENOTSUP where this very image can have none. */
  list(): readonly InternalSnapshot[]
  /** Takes one of what the disk holds now; answers its id. Errors: EINVAL, EPERM, I/O errors. */
  create(
    wanted: Pick<InternalSnapshot, 'name' | 'seconds' | 'nanoseconds' | 'clockNs'>,
  ): Promise<string>
  /** Drops one. Errors: ENOENT, EPERM, I/O errors. */
  remove(id: string): Promise<void>
}

/** A reopen that was prepared; exactly one of the two is called. */
export interface PreparedReopen {
  /** Switches to the new options; must not fail. */
  commit(): void
  /** Takes everything back. */
  abort(): void
  /** Work after every node of the transaction switched (may wait). */
  afterCommit?(): MaybePromise<void>
}

/** What a node is asked to become. */
export interface ReopenTarget {
  /** All options of the node after the reopen. */
  readonly options: BlockdevOptions
  /** Read-only after the reopen. */
  readonly readOnly: boolean
}

/**
 * A description of a disk that another thread can attach (structured-clonable). `kind` picks the
 * view; the rest belongs to the driver.
 */
export interface DiskDescription {
  readonly kind: string
  readonly [field: string]: unknown
}

/** One open image, protocol or filter. Called on the main thread only. */
export interface BlockDriver {
  /** Current length in bytes. */
  length(): number
  /** Limits; may change at reopen. */
  readonly limits: BlockLimits
  /** Flags a write may carry to this driver; FUA is emulated by a flush where it is missing. */
  readonly writeFlags: number
  /** Flags a zero write may carry to this driver. */
  readonly zeroesFlags: number
  /** Fills `buf` from `offset`. */
  pread(offset: number, buf: Uint8Array): Pending
  /** Stores `buf` at `offset`; `buf` may be reused once the request completed. */
  pwrite(offset: number, buf: Uint8Array, flags: number): Pending
  /** Makes the range read as zeroes; ENOTSUP makes the block layer write zero data instead. */
  pwriteZeroes?(offset: number, bytes: number, flags: number): Pending
  /** Gives the range up; its content afterwards is the driver's choice. */
  pdiscard?(offset: number, bytes: number): Pending
  /**
   * Hands cached data of this layer to its children (`toDisk` false) or also makes it stable
   * (`toDisk` true). The block layer flushes the `file` child afterwards by itself.
   */
  flush?(toDisk: boolean): Pending
  /** What holds the range; absent: filters ask their child, others answer DATA. */
  blockStatus?(offset: number, bytes: number): MaybePromise<BlockStatus>
  /** Drops everything this overlay holds, so that the backing image shows; one step for readers. */
  makeEmpty?(): MaybePromise<void>
  /** Changes the length. */
  truncate?(size: number): MaybePromise<void>
  /**
   * Called before the users of the node change what they take (`perm`) and share together; throws
   * to refuse, as a file does that another node has open for writing.
   */
  checkPermissions?(perm: number, shared: number): void
  /**
   * Writes down another name and format of the backing image, or that there is none; the image is
   * writable.
   */
  changeBackingFile?(filename: string | undefined, format: string | undefined): MaybePromise<void>
  /** Told of what the node above is about to do (`flush_to_disk` …), by those that inject errors. */
  debugEvent?(event: string): void
  /** Writes of a last block that reaches beyond the end are cut off here; such a disk is writable. */
  readonly cutsLastBlock?: boolean
  /** Snapshots that lie inside the image; absent: the format has none. */
  readonly internalSnapshots?: InternalSnapshots
  /** The image can keep named dirty bitmaps. */
  readonly storesBitmaps?: boolean
  /** Called on the node's first quiesce and last unquiesce. */
  drainBegin?(): void
  drainEnd?(): void
  /** Checks new options (children are handled by the block layer); absent: reopening is refused. */
  reopenPrepare?(target: ReopenTarget): MaybePromise<PreparedReopen>
  /** Adds or removes a child (quorum); absent: refused. */
  addChild?(child: BlockNode): MaybePromise<void>
  removeChild?(child: BlockChild): MaybePromise<void>
  /** A description for a worker thread, or undefined when the disk must be reached by proxy. */
  describe?(): DiskDescription | undefined
  /** What the image says of itself. */
  info?(): MaybePromise<ImageInfo>
  /** Name shown as `filename`: a path, a URL or JSON. */
  filename?(): string
  /** Name of the backing image that the image itself names, seen from where the image lies. */
  backingFilename?(): string | undefined
  /** Gives everything up; the node is drained and flushed. Must not fail. */
  close(): MaybePromise<void>
}

/** How one kind of driver is opened, and what it takes of its children. */
export interface DriverDefinition {
  /** Name in options: `qcow2`, `file`, `nbd` … */
  readonly name: string
  /** A filter changes requests, not data: its content is that of its `filtered` child. */
  readonly kind: 'protocol' | 'format' | 'filter'
  /** Options of its own that a reopen may change or drop; absent: none. */
  readonly changeable?: readonly string[]
  /** Those of them that a reopen may not leave out. */
  readonly required?: readonly string[]
  /** Whether an overlay of this driver can have a backing image. */
  readonly supportsBacking?: boolean
  /** Opens the driver. Options were checked for shape by the caller's surface, not for meaning. */
  open(node: BlockNode, options: BlockdevOptions, opener: ChildOpener): Promise<BlockDriver>
  /**
   * Permissions for one child, from what the parents of `node` take and share together; absent:
   * the usual mapping of filters and formats (spec 2.5). `readOnly` is the node's state after a
   * reopen in progress.
   */
  childPermissions?(
    node: BlockNode,
    child: { readonly name: string; readonly role: ChildRole },
    above: Permissions,
    readOnly: boolean,
  ): Permissions
}
