/**
 * The control half's handle on a body in a worker thread.
 *
 * Invariants:
 * - Every call settles: with its answer, or with the reason why the thread is gone.
 * - A body that is gone has nothing in flight: its proxied requests were finished.
 * - Pause, cancel and speed are written to shared words first; the message only wakes the body.
 */
import { MessageChannel } from 'node:worker_threads'
import * as Comlink from 'comlink'
import type { DirtyBitmap } from '../sync/dirty-bitmap.ts'
import { JobWords } from '../sync/job-words.ts'
import type { PieceClaims } from '../sync/piece-claims.ts'
import { asBlockError, BlockError, codeWords } from '../util/errors.ts'
import type { BodyApi, SharedClusters, SharedDirty, ViewDescription } from './body-task.ts'
import { PIECE_BYTES } from './copier.ts'
import type { JobBody } from './job-types.ts'
import type { WorkerPool } from './pool.ts'
import { type ProxyDisk, ProxyServer } from './proxy-server.ts'

/** Between attached disks: so much stays in a core's own cache between the read and the write. */
const CACHED_BYTES = 256 * 1024

/** What a body works on. */
export interface WorkerBodyOptions {
  readonly source: ViewDescription
  readonly target: ViewDescription
  /** The disks behind proxied views, in the order of their index. */
  readonly proxies: readonly ProxyDisk[]
  readonly dirty?: DirtyBitmap | undefined
  /** Shared by the bodies that copy the same dirty ranges; absent: there is one. */
  readonly claims?: PieceClaims | undefined
  /** Rings, when the body copies clusters for a filter. */
  readonly clusters?: SharedClusters | undefined
  readonly skipUnallocated: boolean
  /** Bytes a second; 0 = unlimited. */
  readonly speed: number
}

/** A body in a worker thread, as its job sees it. */
export class WorkerBody implements JobBody {
  /** Shared with the body. */
  readonly words: JobWords = JobWords.create()
  /** The rings that it was given, if it copies clusters for a filter. */
  readonly clusters: SharedClusters | undefined
  readonly #pool: WorkerPool
  readonly #api: Comlink.Remote<BodyApi>
  readonly #proxy: ProxyServer
  readonly #pending = new Set<(error: BlockError) => void>()
  readonly #gone: Promise<void>
  readonly #deathListeners = new Set<(error: BlockError) => void>()
  #death: BlockError | undefined
  #finishing = false
  #threadId: number | undefined

  private constructor(pool: WorkerPool, options: WorkerBodyOptions) {
    this.#pool = pool
    this.clusters = options.clusters
    this.words.speed = options.speed
    const control = new MessageChannel()
    const proxy = new MessageChannel()
    const buffer = new SharedArrayBuffer(bufferBytes(options))
    this.#proxy = new ProxyServer(proxy.port1, options.proxies, buffer)
    this.#api = Comlink.wrap<BodyApi>(control.port1)
    const run = pool.run({
      port: control.port2,
      proxyPort: proxy.port2,
      words: this.words.words,
      source: options.source,
      target: options.target,
      dirty: shareDirty(options),
      clusters: options.clusters,
      buffer,
      skipUnallocated: options.skipUnallocated,
    })
    this.#gone = run.ended
      .then(
        () => this.#ended(undefined),
        (thrown: unknown) => this.#ended(thrown),
      )
      .finally(() => control.port1.close())
  }

  /** Starts a body and waits until its disks are attached. */
  static async start(pool: WorkerPool, options: WorkerBodyOptions): Promise<WorkerBody> {
    const body = new WorkerBody(pool, options)
    try {
      body.#threadId = await body.call((api) => api.start())
    } catch (thrown) {
      await body.finish()
      throw thrown
    }
    return body
  }

  /** Why the thread is gone, if it is and was not told to. */
  get death(): BlockError | undefined {
    return this.#death
  }

  /** Bytes done. */
  get done(): number {
    return this.words.done
  }

  /** The thread that the body runs in; undefined before its start. */
  get threadId(): number | undefined {
    return this.#threadId
  }

  /** Calls `fn` if the thread dies without being told to. */
  onDeath(fn: (error: BlockError) => void): void {
    if (this.#death === undefined) this.#deathListeners.add(fn)
    else fn(this.#death)
  }

  /** Calls the body; rejects with the cause when the thread dies before it answers. */
  call<T>(fn: (api: Comlink.Remote<BodyApi>) => Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.#death !== undefined) {
        reject(this.#death)
        return
      }
      this.#pending.add(reject)
      const settled = (): void => void this.#pending.delete(reject)
      fn(this.#api).then(
        (value) => {
          settled()
          resolve(value)
        },
        (thrown: unknown) => {
          settled()
          reject(asBlockError(thrown))
        },
      )
    })
  }

  pause(): Promise<void> {
    this.words.paused = true
    return this.call((api) => api.pause())
  }

  resume(): void {
    this.words.paused = false
    this.#tell((api) => api.resume())
  }

  cancel(): void {
    this.words.cancel()
    this.#tell((api) => api.cancel())
  }

  setSpeed(bytesPerSecond: number): void {
    this.words.speed = bytesPerSecond
    this.#tell((api) => api.resume())
  }

  /** Ends the round that runs within a few pieces; a death meanwhile is told elsewhere. */
  recall(): void {
    this.#tell((api) => api.recall())
  }

  /** Ends the body and waits until the thread let go of everything. */
  async finish(): Promise<void> {
    if (!this.#finishing) {
      this.#finishing = true
      this.#tell((api) => api.finish())
    }
    await this.#gone
  }

  /** Ends the thread at once, with every body in it; whatever was asked of them fails. */
  terminate(): void {
    if (this.#threadId !== undefined) this.#pool.terminate(this.#threadId)
  }

  #tell(fn: (api: Comlink.Remote<BodyApi>) => Promise<void>): void {
    // A body that dies instead of answering tells so through `ended`.
    if (this.#death === undefined) this.call(fn).catch(() => undefined)
  }

  async #ended(thrown: unknown): Promise<void> {
    await this.#proxy.close()
    if (this.#finishing && thrown === undefined) {
      this.#fail(new BlockError('ESHUTDOWN', codeWords('ESHUTDOWN')))
      return
    }
    const cause = thrown instanceof Error ? `: ${thrown.message}` : ''
    const death = new BlockError('EIO', `The worker thread of the job ended${cause}`, {}, thrown)
    this.#fail(death)
    const listeners = [...this.#deathListeners]
    this.#deathListeners.clear()
    if (!this.#finishing) for (const listener of listeners) listener(death)
  }

  #fail(error: BlockError): void {
    this.#death = error
    const pending = [...this.#pending]
    this.#pending.clear()
    for (const reject of pending) reject(error)
  }
}

function shareDirty({ dirty, claims }: WorkerBodyOptions): SharedDirty | undefined {
  if (dirty === undefined) return undefined
  const { words, size, granularity } = dirty
  return { words, size, granularity, claims: claims?.words }
}

/** The size of the buffer that data go through; each message about a proxied disk moves all of it. */
function bufferBytes({ source, target }: WorkerBodyOptions): number {
  return source.kind === 'attached' && target.kind === 'attached' ? CACHED_BYTES : PIECE_BYTES
}
