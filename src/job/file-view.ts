/**
 * A file that a worker opened for itself.
 *
 * Invariants:
 * - Reads and writes block the worker, never the main thread.
 * - What lies beyond the end of the file, inside the disk, reads as zeroes.
 */
import { closeSync, openSync, readSync, writeSync } from 'node:fs'
import type { DiskDescription } from '../block/driver.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { asBlockError, assert, type ErrorContext, ioError } from '../util/errors.ts'
import type { DiskView, ViewStatus } from './view.ts'

const ZEROES = new Uint8Array(256 * 1024)

class FileView implements DiskView {
  readonly length: number
  readonly #fd: number
  readonly #path: string
  readonly #start: number

  constructor(fd: number, path: string, start: number, length: number) {
    this.#fd = fd
    this.#path = path
    this.#start = start
    this.length = length
  }

  status(_offset: number, bytes: number): ViewStatus {
    return { kind: 'data', bytes }
  }

  pread(offset: number, buf: Uint8Array): Pending {
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

  pwriteZeroes(offset: number, bytes: number): Pending {
    for (let at = 0; at < bytes; at += ZEROES.length) {
      this.#store(offset + at, ZEROES.subarray(0, Math.min(ZEROES.length, bytes - at)))
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

/** Opens a described file. Errors: those of the host. */
export function openFileView(description: DiskDescription): DiskView {
  const { filename, readOnly, size, offset } = description
  assert(typeof filename === 'string' && typeof size === 'number', 'a file has a name and a size')
  try {
    const fd = openSync(filename, readOnly === true ? 'r' : 'r+')
    return new FileView(fd, filename, typeof offset === 'number' ? offset : 0, size)
  } catch (thrown) {
    throw asBlockError(thrown, { op: 'open', path: filename })
  }
}
