/**
 * A file that a worker opened for itself.
 *
 * Invariants:
 * - Reads and writes block the worker, never the main thread.
 * - What lies beyond the end of the file, inside the disk, reads as zeroes.
 * - Zeroes are written only where something else is: a hole stays a hole.
 */
import { closeSync, fstatSync, openSync, readSync, writeSync } from 'node:fs'
import type { DiskDescription } from '../block/driver.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { asBlockError, assert, BlockError, type ErrorContext, ioError } from '../util/errors.ts'
import type { DiskView, ViewStatus } from './view.ts'
import { isZero, ZERO_BLOCK_BYTES } from './zeroes.ts'

const ZEROES = new Uint8Array(ZERO_BLOCK_BYTES)

class FileView implements DiskView {
  readonly attached = true
  readonly blind = true
  readonly length: number
  readonly #fd: number
  readonly #path: string
  readonly #start: number
  #look: Uint8Array | undefined

  constructor(fd: number, path: string, start: number, length: number) {
    this.#fd = fd
    this.#path = path
    this.#start = start
    this.length = length
  }

  status(_offset: number, bytes: number): ViewStatus {
    return { kind: 'data', bytes }
  }

  pread(offset: number, buf: Uint8Array): undefined {
    const context = { op: 'read', path: this.#path, offset, bytes: buf.length }
    for (let at = 0; at < buf.length; ) {
      const got = this.#io(context, () =>
        readSync(this.#fd, buf, at, buf.length - at, this.#start + offset + at),
      )
      if (got === 0) {
        buf.fill(0, at)
        return undefined
      }
      at += got
    }
    return undefined
  }

  pwrite(offset: number, buf: Uint8Array): Pending {
    this.#store(offset, buf)
    return undefined
  }

  #store(offset: number, buf: Uint8Array): void {
    const context = { op: 'write', path: this.#path, offset, bytes: buf.length }
    for (let at = 0; at < buf.length; ) {
      const put = this.#io(context, () =>
        writeSync(this.#fd, buf, at, buf.length - at, this.#start + offset + at),
      )
      if (put === 0) throw ioError('EIO', context)
      at += put
    }
  }

  /** The host tells nobody where holes are, so that one is found by reading it. */
  pwriteZeroes(offset: number, bytes: number): Pending {
    this.#look ??= new Uint8Array(ZEROES.length)
    for (let at = 0; at < bytes; at += ZEROES.length) {
      const there = this.#look.subarray(0, Math.min(ZEROES.length, bytes - at))
      this.pread(offset + at, there)
      if (!isZero(there)) this.#store(offset + at, ZEROES.subarray(0, there.length))
    }
    return undefined
  }

  close(): void {
    closeSync(this.#fd)
  }

  #io(context: ErrorContext, call: () => number): number {
    try {
      return call()
    } catch (thrown) {
      throw asBlockError(thrown, context)
    }
  }
}

/** Opens a described file. Errors: those of the host, and EIO when another file is there by now. */
export function openFileView(description: DiskDescription): DiskView {
  const { filename, size, offset } = description
  assert(typeof filename === 'string' && typeof size === 'number', 'a file has a name and a size')
  const fd = openSame(filename, description)
  return new FileView(fd, filename, typeof offset === 'number' ? offset : 0, size)
}

/** The file may have been renamed or removed since: Linux opens an open file again by its number. */
function openSame(filename: string, { fd, identity, readOnly }: DiskDescription): number {
  const mode = readOnly === true ? 'r' : 'r+'
  const opened = openFirst([`/proc/self/fd/${String(fd)}`, filename], mode)
  const { dev, ino } = fstatSync(opened)
  if (identity === undefined || identity === `${dev}:${ino}`) return opened
  closeSync(opened)
  throw new BlockError('EIO', `'${filename}' is another file by now`, { path: filename })
}

function openFirst([first, ...others]: readonly string[], mode: 'r' | 'r+'): number {
  assert(first !== undefined, 'a file has a name')
  try {
    return openSync(first, mode)
  } catch (thrown) {
    if (others.length > 0) return openFirst(others, mode)
    throw asBlockError(thrown, { op: 'open', path: first })
  }
}
