/**
 * The main thread's end of copies that a worker makes for a copy-before-write filter.
 *
 * Invariants:
 * - A copy counts as a serialising request on the target from before its first byte to its end.
 * - Every copy settles: with the answer, or with the cause of the worker's death.
 * - The host's wait on the ring of answers is held only while answers are due.
 */

import type { ClusterCopier } from '../block/cluster-copier.ts'
import type { BlockNode } from '../block/node.ts'
import type { Ring } from '../sync/ring.ts'
import { BlockError, type ErrorRecord, fromRecord } from '../util/errors.ts'
import { ANSWER_SLOTS } from './cluster-server.ts'
import { markWritten } from './mark-written.ts'

interface Waiter {
  readonly resolve: () => void
  readonly reject: (error: BlockError) => void
}

/** What a client works with. */
export interface ClusterClientParts {
  readonly commands: Ring
  readonly answers: Ring
  /** The node that the worker writes behind the back of the block layer. */
  readonly target: BlockNode
  /** Asks the worker why a command failed. */
  readonly takeError: (id: number) => Promise<ErrorRecord | undefined>
}

/** Sends copies to a worker. */
export class ClusterClient implements ClusterCopier {
  readonly #parts: ClusterClientParts
  readonly #waiters = new Map<number, Waiter>()
  #nextId = 0
  #asked = 0
  #listening = false
  #death: BlockError | undefined

  constructor(parts: ClusterClientParts) {
    this.#parts = parts
  }

  /** Copies that were asked for and have no answer yet. */
  get waiting(): number {
    return this.#asked
  }

  async copy(offset: number, bytes: number): Promise<void> {
    const { target } = this.#parts
    target.gate.begin()
    this.#asked += 1
    const request = target.tracked.add(offset, bytes, true)
    try {
      await target.tracked.waitFor(request)
      await this.#send(offset, bytes)
    } finally {
      this.#asked -= 1
      markWritten(target)
      target.writtenEnd = Math.max(target.writtenEnd, offset + bytes)
      for (const heard of target.writeListeners) heard(offset, bytes)
      target.tracked.remove(request)
      target.gate.end()
    }
  }

  /** The worker is gone: every copy that waits, and every later one, fails. */
  fail(cause: BlockError): void {
    this.#death ??= cause
    const waiters = [...this.#waiters.values()]
    this.#waiters.clear()
    for (const waiter of waiters) waiter.reject(cause)
    this.#parts.commands.close()
    this.#parts.answers.close()
  }

  /** Every later copy fails; those that were sent settle in their time. */
  refuse(cause: BlockError): void {
    this.#death ??= cause
  }

  /** No more copies will come. */
  close(): void {
    this.fail(new BlockError('ESHUTDOWN', 'Nobody copies for this filter any more'))
  }

  async #send(offset: number, bytes: number): Promise<void> {
    const { commands } = this.#parts
    this.#nextId += 1
    const id = this.#nextId
    while (this.#death === undefined && !commands.push([id, offset, bytes])) {
      await commands.whenWritable()
    }
    if (this.#death !== undefined) throw this.#death
    const answer = new Promise<void>((resolve, reject) => {
      this.#waiters.set(id, { resolve, reject })
    })
    if (!this.#listening) void this.#listen()
    await answer
  }

  async #listen(): Promise<void> {
    const { answers } = this.#parts
    const answer = new Float64Array(ANSWER_SLOTS)
    this.#listening = true
    while (this.#waiters.size > 0) {
      const readable = answers.whenReadable()
      if (readable !== undefined) await readable
      while (answers.pop(answer)) this.#answered(answer[0] ?? 0, answer[1] === 0)
    }
    this.#listening = false
  }

  #answered(id: number, ok: boolean): void {
    const waiter = this.#waiters.get(id)
    this.#waiters.delete(id)
    if (waiter === undefined) return
    if (ok) waiter.resolve()
    else void this.#explain(id, waiter)
  }

  async #explain(id: number, waiter: Waiter): Promise<void> {
    try {
      const record = await this.#parts.takeError(id)
      waiter.reject(
        record === undefined ? new BlockError('EIO', 'copy failed') : fromRecord(record),
      )
    } catch {
      waiter.reject(this.#death ?? new BlockError('EIO', 'The worker that copied is gone'))
    }
  }
}
