/**
 * Protocol `file`: bytes of a regular file of the host.
 *
 * Invariants:
 * - Small requests finish inline; large ones and everything that waits for the disk do not hold the loop.
 * - Bytes beyond the end of the file are zeroes; the length shown is a multiple of 512.
 * - The descriptor is closed exactly once.
 * - Two nodes of one graph that have the same file open follow the rules of permissions as if they
 *   were one node. (Other processes are not seen: Node.js has no byte range locks.)
 */
import * as fs from 'node:fs'
import type {
  BlockDriver,
  BlockdevOptions,
  BlockLimits,
  BlockStatus,
  DiskDescription,
  DriverDefinition,
  ImageInfo,
  PreparedReopen,
  ReopenTarget,
} from '../block/driver.ts'
import { NO_LIMITS, PERM, STATUS } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { cumulative } from '../block/permissions.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { asBlockError, BlockError, codeWords, ioError } from '../util/errors.ts'

/** Up to this size a request is cheaper inline than through the thread pool of the host. */
const INLINE_BYTES = 256 * 1024
const SECTOR_BYTES = 512
/** Permissions that two nodes over one file must agree on. */
const LOCKED = PERM.WRITE | PERM.RESIZE

/** The first of the locks that is not to be had. */
const lockName = (bits: number): string => ((bits & PERM.WRITE) !== 0 ? '"write"' : '"resize"')

const roundUp = (bytes: number): number => Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES

/** Words of a host error as messages show them. */
function hostWords(error: BlockError): string {
  const host = error.cause
  if (typeof host === 'object' && host !== null && 'code' in host) {
    if (host.code === 'EISDIR') return 'Is a directory'
    if (host.code === 'ENOTDIR') return 'Not a directory'
    if (host.code === 'EROFS') return 'Read-only file system'
    if (host.code === 'ELOOP') return 'Too many levels of symbolic links'
  }
  return codeWords(error.code)
}

function openHost(path: string, readOnly: boolean): number {
  let fd: number
  try {
    fd = fs.openSync(path, readOnly ? fs.constants.O_RDONLY : fs.constants.O_RDWR)
  } catch (thrown) {
    const error = asBlockError(thrown, { path, op: 'open' })
    throw new BlockError(
      error.code,
      `Could not open '${path}': ${hostWords(error)}`,
      { path },
      thrown,
    )
  }
  const stat = fs.fstatSync(fd)
  if (stat.isFile()) return fd
  fs.closeSync(fd)
  const words = `'file' driver requires '${path}' to be a regular file`
  throw new BlockError('EINVAL', words, { path })
}

function checkOptions(options: BlockdevOptions): string {
  const filename = options.filename
  if (typeof filename !== 'string' || filename === '')
    throw new BlockError('EINVAL', "The 'file' block driver requires a file name")
  const manager = options['pr-manager']
  if (manager !== undefined) {
    const words = `No persistent reservation manager with id '${String(manager)}'`
    throw new BlockError('EINVAL', words)
  }
  if (options.aio === 'native' && options.cache?.direct !== true)
    throw new BlockError(
      'EINVAL',
      'aio=native was specified, but it requires cache.direct=on, which was not specified.',
    )
  return filename
}

class FileDriver implements BlockDriver {
  readonly limits: BlockLimits = NO_LIMITS
  readonly writeFlags = 0
  readonly zeroesFlags = 0
  readonly #node: BlockNode
  readonly #path: string
  readonly #identity: string
  #fd: number
  #readOnly: boolean
  #end: number
  #wrote = false

  constructor(node: BlockNode, path: string, fd: number, readOnly: boolean) {
    this.#node = node
    this.#path = path
    this.#fd = fd
    this.#readOnly = readOnly
    const stat = fs.fstatSync(fd)
    this.#end = stat.size
    this.#identity = `${stat.dev}:${stat.ino}`
  }

  length(): number {
    return roundUp(this.#end)
  }

  filename(): string {
    return this.#path
  }

  checkPermissions(perm: number, shared: number): void {
    const { options, graph } = this.#node
    if (options.locking === 'off' || options['force-share'] === true) return
    for (const other of graph.nodes()) {
      const { driver } = other
      if (other === this.#node || !(driver instanceof FileDriver)) continue
      if (driver.#identity !== this.#identity || other.options.locking === 'off') continue
      const theirs = cumulative(other)
      const [mine, kept] = [perm & ~theirs.shared & LOCKED, theirs.perm & ~shared & LOCKED]
      if (mine !== 0) throw this.#locked(lockName(mine))
      if (kept !== 0) throw this.#locked(`shared ${lockName(kept)}`)
    }
  }

  #locked(lock: string): BlockError {
    return new BlockError('EBUSY', `Failed to get ${lock} lock`, {
      node: this.#node.name,
      path: this.#path,
    })
  }

  pread(offset: number, buf: Uint8Array): Pending {
    if (buf.length > INLINE_BYTES) return this.#readLater(offset, buf)
    let done = 0
    try {
      while (done < buf.length) {
        const got = fs.readSync(this.#fd, buf, done, buf.length - done, offset + done)
        if (got === 0) break
        done += got
      }
    } catch (thrown) {
      throw this.#failed(thrown, 'read', offset, buf.length)
    }
    if (done < buf.length) buf.fill(0, done)
    return undefined
  }

  async #readLater(offset: number, buf: Uint8Array): Promise<void> {
    let done = 0
    while (done < buf.length) {
      const got = await this.#host('read', offset, buf.length, (end) =>
        fs.read(this.#fd, buf, done, buf.length - done, offset + done, end),
      )
      if (got === 0) break
      done += got
    }
    if (done < buf.length) buf.fill(0, done)
  }

  pwrite(offset: number, buf: Uint8Array): Pending {
    this.#wrote = true
    if (buf.length > INLINE_BYTES) return this.#writeLater(offset, buf)
    let done = 0
    try {
      while (done < buf.length)
        done += fs.writeSync(this.#fd, buf, done, buf.length - done, offset + done)
    } catch (thrown) {
      throw this.#failed(thrown, 'write', offset, buf.length)
    }
    if (offset + buf.length > this.#end) this.#end = offset + buf.length
    return undefined
  }

  async #writeLater(offset: number, buf: Uint8Array): Promise<void> {
    let done = 0
    while (done < buf.length) {
      done += await this.#host('write', offset, buf.length, (end) =>
        fs.write(this.#fd, buf, done, buf.length - done, offset + done, end),
      )
    }
    if (offset + buf.length > this.#end) this.#end = offset + buf.length
  }

  /** Beyond the end of the file a longer file is zero by itself; elsewhere zeroes must be written. */
  pwriteZeroes(offset: number, bytes: number): Pending {
    if (offset < this.#end) throw ioError('ENOTSUP', { node: this.#node.name, offset, bytes })
    this.#resize(offset + bytes)
    return undefined
  }

  flush(toDisk: boolean): Pending {
    if (!toDisk || this.#readOnly) return undefined
    return this.#host('flush', 0, 0, (end) => fs.fdatasync(this.#fd, (e) => end(e, 0))).then(noop)
  }

  blockStatus(offset: number, bytes: number): BlockStatus {
    if (offset >= this.#end || this.#neverWritten())
      return { flags: STATUS.ZERO | STATUS.ALLOCATED | STATUS.OFFSET_VALID, bytes, map: offset }
    const flags = STATUS.DATA | STATUS.ALLOCATED | STATUS.OFFSET_VALID
    return { flags, bytes: Math.min(bytes, roundUp(this.#end) - offset), map: offset }
  }

  /** The host cannot be asked where holes are, but a file without any block is one hole. */
  #neverWritten(): boolean {
    return !this.#wrote && fs.fstatSync(this.#fd).blocks === 0
  }

  truncate(size: number): void {
    this.#resize(size)
  }

  #resize(size: number): void {
    this.#wrote = true
    try {
      fs.ftruncateSync(this.#fd, size)
    } catch (thrown) {
      throw this.#failed(thrown, 'truncate', size, 0)
    }
    this.#end = size
  }

  reopenPrepare(target: ReopenTarget): PreparedReopen {
    checkOptions(target.options)
    if (target.readOnly === this.#readOnly) return { commit: noop, abort: noop }
    const fd = openHost(this.#path, target.readOnly)
    return {
      commit: () => {
        fs.closeSync(this.#fd)
        this.#fd = fd
        this.#readOnly = target.readOnly
      },
      abort: () => fs.closeSync(fd),
    }
  }

  describe(): DiskDescription {
    return {
      kind: 'file',
      filename: this.#path,
      fd: this.#fd,
      identity: this.#identity,
      readOnly: this.#readOnly,
      size: this.length(),
    }
  }

  info(): ImageInfo {
    return { actualSize: fs.fstatSync(this.#fd).blocks * SECTOR_BYTES, dirty: false }
  }

  close(): void {
    fs.closeSync(this.#fd)
  }

  #host(
    op: string,
    offset: number,
    bytes: number,
    start: (end: (error: Error | null, done: number) => void) => void,
  ): Promise<number> {
    return new Promise((resolve, reject) => {
      start((error, done) => {
        if (error === null) resolve(done)
        else reject(this.#failed(error, op, offset, bytes))
      })
    })
  }

  #failed(thrown: unknown, op: string, offset: number, bytes: number): BlockError {
    return asBlockError(thrown, { node: this.#node.name, op, offset, bytes, path: this.#path })
  }
}

function noop(): void {}

/** Driver `file`; options `filename`, `aio`, `locking` (accepted, the host offers no such locks). */
export const fileDriver: DriverDefinition = {
  name: 'file',
  kind: 'protocol',
  changeable: ['drop-cache', 'x-check-cache-dropped'],
  async open(node: BlockNode, options: BlockdevOptions): Promise<BlockDriver> {
    const path = checkOptions(options)
    let fd: number
    try {
      fd = openHost(path, node.readOnly)
    } catch (error) {
      // A folder is told apart only once it is open.
      const { code, message } = asBlockError(error)
      const denied = ['EACCES', 'EPERM'].includes(code) || message.endsWith('Is a directory')
      if (node.readOnly || options['auto-read-only'] !== true || !denied) throw error
      fd = openHost(path, true)
      node.readOnly = true
    }
    return new FileDriver(node, path, fd, node.readOnly)
  },
}
