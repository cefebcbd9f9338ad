/**
 * A request of a client, from its making to its end.
 *
 * Invariants:
 * - It ends once: by its reply, or by `fail`.
 * - It can be sent again: nothing that a lost connection brought is kept after `reset`.
 */
import { BlockError, codeWords, type ErrorCode } from '../util/errors.ts'
import type { Linked } from '../util/linked-list.ts'
import type { AwaitedReply } from './reply-parser.ts'

/** One request that waits for its reply, or for a connection. */
export class ClientRequest implements AwaitedReply, Linked<ClientRequest> {
  /** Command, its flags, and its range in bytes. */
  readonly type: number
  readonly flags: number
  readonly offset: number
  readonly length: number
  readonly buf: Uint8Array | undefined
  /** Settles with the request. */
  readonly done: Promise<void>
  /** When the reply is overdue, in milliseconds of the client's clock. */
  readonly deadline: number
  previous: ClientRequest | undefined
  next: ClientRequest | undefined
  filled = 0
  error: BlockError | undefined
  extent: { readonly bytes: number; readonly bits: number } | undefined
  #resolve: () => void = () => undefined
  #reject: (error: BlockError) => void = () => undefined

  constructor(
    type: number,
    flags: number,
    offset: number,
    length: number,
    buf: Uint8Array | undefined,
    deadline: number,
  ) {
    this.type = type
    this.flags = flags
    this.offset = offset
    this.length = length
    this.buf = buf
    this.deadline = deadline
    this.done = new Promise<void>((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
  }

  /** Ends the request as its reply says. */
  settle(): void {
    if (this.error === undefined) this.#resolve()
    else this.#reject(this.error)
  }

  /** Ends the request without a reply. */
  fail(code: ErrorCode, cause: BlockError): void {
    this.#reject(
      new BlockError(code, codeWords(code), { offset: this.offset, bytes: this.length }, cause),
    )
  }

  /** Forgets what a lost connection brought, to be sent again. */
  reset(): void {
    this.filled = 0
    this.error = undefined
    this.extent = undefined
  }
}
