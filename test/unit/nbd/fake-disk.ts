/**
 * A disk over a Buffer with the methods an export uses.
 *
 * Invariants:
 * - Answers inline, or after a turn when `slow`; `fail` makes the next calls of that name fail.
 */
import { FLAG, STATUS } from '../../../src/block/driver.ts'
import type { Pending } from '../../../src/coroutine/coroutine.ts'
import type { ExportBackend, ExportHooks, ExportStatus } from '../../../src/nbd/export.ts'
import { BlockError } from '../../../src/util/errors.ts'

export class FakeDisk implements ExportBackend {
  readonly bytes: Buffer
  readonly readOnly = false
  requestAlignment = 1
  readonly log: string[] = []
  /** Bytes with the same answer in block status. */
  readonly grain: number
  hooks: ExportHooks = {}
  slow = false
  /** Requests wait for this when it is set. */
  hold: Promise<void> | undefined
  fail: Record<string, BlockError> = {}

  constructor(size: number, grain = 4096) {
    this.bytes = Buffer.alloc(size)
    this.grain = grain
  }

  length(): number {
    return this.bytes.length
  }

  pread(offset: number, buf: Uint8Array): Pending {
    return this.#run('read', () => {
      buf.set(this.bytes.subarray(offset, offset + buf.length))
    })
  }

  pwrite(offset: number, buf: Uint8Array, flags = 0): Pending {
    if ((flags & FLAG.FUA) !== 0) this.log.push('fua')
    return this.#run('write', () => this.bytes.set(buf, offset))
  }

  pwriteZeroes(offset: number, bytes: number, flags = 0): Pending {
    this.log.push(`zeroes ${flags}`)
    return this.#run('zeroes', () => {
      this.bytes.fill(0, offset, offset + bytes)
    })
  }

  pdiscard(offset: number, bytes: number): Pending {
    return this.#run('discard', () => {
      this.bytes.fill(0, offset, offset + bytes)
    })
  }

  flush(): Pending {
    return this.#run('flush', () => undefined)
  }

  prefetch(): Pending {
    return this.#run('prefetch', () => undefined)
  }

  blockStatus(offset: number, bytes: number): ExportStatus | Promise<ExportStatus> {
    const error = this.fail.status
    if (error !== undefined && this.slow) return Promise.reject(error)
    if (error !== undefined) throw error
    const until = Math.min(Math.ceil((offset + 1) / this.grain) * this.grain, offset + bytes)
    const zero = this.bytes.subarray(offset, until).every((byte) => byte === 0)
    const flags = zero ? STATUS.ZERO : STATUS.DATA
    const status = { flags, bytes: until - offset, depth: zero ? -1 : 0 }
    return this.slow ? Promise.resolve(status) : status
  }

  setHooks(hooks: ExportHooks): void {
    this.hooks = hooks
  }

  #run(name: string, action: () => void): Pending {
    this.log.push(name)
    const error = this.fail[name]
    if (this.hold !== undefined) return this.hold.then(() => this.#end(error, action))
    if (this.slow) return Promise.resolve().then(() => this.#end(error, action))
    this.#end(error, action)
    return undefined
  }

  #end(error: BlockError | undefined, action: () => void): void {
    if (error !== undefined) throw error
    action()
  }
}

export function eio(): BlockError {
  return new BlockError('EIO', 'no such luck')
}
