/**
 * The main thread's end of proxied disks: runs a worker's requests on backends.
 *
 * Invariants:
 * - A request that was begun is finished and counted, also when the worker is gone meanwhile.
 * - Every request is answered once, with the error that it failed with if it failed.
 */
import type { MessagePort } from 'node:worker_threads'
import type { MaybePromise, Pending } from '../coroutine/coroutine.ts'
import { toRecord } from '../util/errors.ts'
import type { ProxyReply, ProxyRequest } from './proxy-view.ts'
import type { ViewStatus } from './view.ts'

/** One proxied disk. */
export interface ProxyDisk {
  status(offset: number, bytes: number): MaybePromise<ViewStatus>
  pread(offset: number, buf: Uint8Array): Pending
  pwrite(offset: number, buf: Uint8Array): Pending
  pwriteZeroes(offset: number, bytes: number): Pending
}

/** Serves the requests of one worker. */
export class ProxyServer {
  readonly #port: MessagePort
  readonly #disks: readonly ProxyDisk[]
  readonly #buffer: SharedArrayBuffer
  readonly #running = new Set<Promise<void>>()

  /** `disks` in the order of the request's `index`. */
  constructor(port: MessagePort, disks: readonly ProxyDisk[], buffer: SharedArrayBuffer) {
    this.#port = port
    this.#disks = disks
    this.#buffer = buffer
    port.on('message', (request: ProxyRequest) => {
      const run = this.#serve(request).finally(() => this.#running.delete(run))
      this.#running.add(run)
    })
  }

  /** Stops listening and waits for what was begun. */
  async close(): Promise<void> {
    this.#port.close()
    await Promise.all(this.#running)
  }

  async #serve(request: ProxyRequest): Promise<void> {
    const { id } = request
    let reply: ProxyReply
    try {
      const status = await this.#run(request)
      reply = status === undefined ? { id } : { id, status }
    } catch (thrown) {
      reply = { id, error: toRecord(thrown) }
    }
    this.#port.postMessage(reply)
  }

  async #run(request: ProxyRequest): Promise<ViewStatus | undefined> {
    const { index, op, offset, bytes, at } = request
    const disk = this.#disks[index]
    if (disk === undefined) throw new Error(`assertion failed: no proxied disk ${index}`)
    if (op === 'status') return disk.status(offset, bytes)
    if (op === 'zeroes') {
      await disk.pwriteZeroes(offset, bytes)
      return undefined
    }
    const view = new Uint8Array(this.#buffer, at, bytes)
    await (op === 'read' ? disk.pread(offset, view) : disk.pwrite(offset, view))
    return undefined
  }
}
