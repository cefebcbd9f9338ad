/**
 * Disks that a worker cannot attach, reached by messages to the main thread.
 *
 * Invariants:
 * - Data never travels in a message: both sides see the same shared buffer, messages name places.
 * - Requests are answered in any order; an id belongs to one request until its answer came.
 */
import type { MessagePort } from 'node:worker_threads'
import { type ErrorRecord, fromRecord, ioError } from '../util/errors.ts'
import type { DiskView, ViewStatus } from './view.ts'

/** A request of a worker. */
export interface ProxyRequest {
  readonly id: number
  /** Which disk: 0 = source, 1 = target. */
  readonly index: number
  readonly op: 'status' | 'read' | 'write' | 'zeroes'
  readonly offset: number
  readonly bytes: number
  /** Where the data lies in the shared buffer. */
  readonly at: number
}

/** The answer. */
export interface ProxyReply {
  readonly id: number
  readonly error?: ErrorRecord
  readonly status?: ViewStatus
}

interface Waiter {
  readonly resolve: (reply: ProxyReply) => void
  readonly reject: (error: Error) => void
}

/** The worker's end: makes views whose requests go through one port. */
export class ProxyClient {
  readonly #port: MessagePort
  readonly #waiters = new Map<number, Waiter>()
  #nextId = 0

  constructor(port: MessagePort) {
    this.#port = port
    port.on('message', (reply: ProxyReply) => this.#answered(reply))
    port.on('close', () => this.#gone())
  }

  /** A view of one of the disks. */
  view(index: number, length: number): DiskView {
    return {
      length,
      attached: false,
      blind: false,
      status: async (offset, bytes) => {
        const reply = await this.#ask({ index, op: 'status', offset, bytes, at: 0 })
        return reply.status ?? { kind: 'data', bytes }
      },
      pread: (offset, buf) => this.#move(index, 'read', offset, buf),
      pwrite: (offset, buf) => this.#move(index, 'write', offset, buf),
      pwriteZeroes: async (offset, bytes) => {
        await this.#ask({ index, op: 'zeroes', offset, bytes, at: 0 })
      },
      close: () => undefined,
    }
  }

  async #move(index: number, op: 'read' | 'write', offset: number, buf: Uint8Array): Promise<void> {
    await this.#ask({ index, op, offset, bytes: buf.length, at: buf.byteOffset })
  }

  #ask(request: Omit<ProxyRequest, 'id'>): Promise<ProxyReply> {
    this.#nextId += 1
    const id = this.#nextId
    return new Promise((resolve, reject) => {
      this.#waiters.set(id, { resolve, reject })
      this.#port.postMessage({ ...request, id })
    })
  }

  #answered(reply: ProxyReply): void {
    const waiter = this.#waiters.get(reply.id)
    this.#waiters.delete(reply.id)
    if (reply.error === undefined) waiter?.resolve(reply)
    else waiter?.reject(fromRecord(reply.error))
  }

  #gone(): void {
    for (const waiter of this.#waiters.values()) waiter.reject(ioError('ESHUTDOWN'))
    this.#waiters.clear()
  }
}
