/**
 * Guests: concurrent writers over NBD that can be paused with nothing in flight.
 *
 * Invariants:
 * - A paused guest has no request in flight, and every write it was told to be stored is recorded.
 * - A writer that gets an error ends; the error is kept and nothing of that write is recorded.
 */
import type { Journal } from './journal.ts'
import { BLOCK, fillBlocks, type WritePlan } from './pattern.ts'

/** A disk as a guest sees it. */
export interface GuestDisk {
  /** Fills `buf` from `offset`. */
  read(offset: number, buf: Uint8Array): Promise<void>
  /** Stores `buf` at `offset`. */
  write(offset: number, buf: Uint8Array): Promise<void>
  /** Makes all acknowledged writes stable. */
  flush(): Promise<void>
  /** Gives the connection up. */
  close(): Promise<void>
}

/** What a guest needs. */
export interface GuestOptions {
  /** One connection a writer. */
  readonly disks: readonly GuestDisk[]
  /** Length of the disk in bytes. */
  readonly size: number
  /** Decides the content. */
  readonly seed: number
  /** Decides the places. */
  readonly plan: WritePlan
  /** Where acknowledged writes are recorded. */
  readonly journal: Journal
  /** Added to every tag, so that two guests never use the same. */
  readonly firstTag?: number
  /** Rest between two writes of a writer in milliseconds; default none. */
  readonly restMs?: number
}

/** One guest with its writers. */
export class Guest {
  /** Bytes acknowledged. */
  bytes = 0
  /** Writes acknowledged. */
  writes = 0
  /** The first error of a writer. */
  error: unknown
  private readonly options: GuestOptions
  private readonly running = new Set<Promise<void>>()
  private resting = 0
  private stopped = false
  private resumed: PromiseWithResolve | undefined
  private settled: (() => void) | undefined

  constructor(options: GuestOptions) {
    this.options = options
  }

  /** Starts every writer. */
  start(): void {
    for (let writer = 0; writer < this.options.plan.writers; writer++) {
      const task = this.write(writer).catch((thrown: unknown) => {
        this.error ??= thrown
      })
      const ended = task.then(() => {
        this.running.delete(ended)
        this.settle()
      })
      this.running.add(ended)
    }
  }

  /** Stops new writes and waits for the acknowledgements; false when a writer has failed. */
  async pause(): Promise<boolean> {
    this.resumed ??= withResolve()
    while (this.resting < this.running.size) {
      await new Promise<void>((resolve) => {
        this.settled = resolve
      })
    }
    return this.error === undefined
  }

  /** Lets the writers go on. */
  resume(): void {
    this.resumed?.resolve()
    this.resumed = undefined
  }

  /** Ends the writers after the write each is in. */
  async stop(): Promise<void> {
    this.stopped = true
    this.resume()
    await Promise.all(this.running)
  }

  private settle(): void {
    this.settled?.()
    this.settled = undefined
  }

  private async write(writer: number): Promise<void> {
    const { plan, seed, size, journal, firstTag = 0, restMs = 0 } = this.options
    const disk = this.options.disks[writer % this.options.disks.length] as GuestDisk
    const words = new Int32Array((16 * BLOCK) / 4)
    const bytes = new Uint8Array(words.buffer)
    for (let n = 0; !this.stopped; n++) {
      while (this.resumed !== undefined) await this.rest(this.resumed.promise)
      if (this.stopped) return
      const planned = plan.write(writer, n)
      const write = { ...planned, tag: planned.tag + firstTag }
      fillBlocks(words, seed, write)
      const offset = write.block * BLOCK
      const length = Math.min(write.count * BLOCK, size - offset)
      await disk.write(offset, bytes.subarray(0, length))
      journal.record(write.block, write.count, write.tag)
      this.bytes += length
      this.writes++
      if (restMs > 0) await new Promise((resolve) => setTimeout(resolve, restMs))
    }
  }

  private async rest(until: Promise<void>): Promise<void> {
    this.resting++
    this.settle()
    await until
    this.resting--
  }
}

interface PromiseWithResolve {
  readonly promise: Promise<void>
  readonly resolve: () => void
}

function withResolve(): PromiseWithResolve {
  let resolve = (): void => {}
  const promise = new Promise<void>((done) => {
    resolve = done
  })
  return { promise, resolve }
}
