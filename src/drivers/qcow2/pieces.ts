/**
 * A request that is cut into pieces where its image changes from one kind of cluster to another.
 *
 * Invariants:
 * - A request whose pieces all finish inline allocates nothing and answers undefined.
 * - A piece that fails at once ends the request, after those before it that still run.
 */
import type { Pending } from '../../coroutine/coroutine.ts'

/** Does requests piece by piece. */
export interface PieceWorker {
  /** Bytes that the last `piece` took; at least 1. */
  readonly took: number
  /** Starts with a piece at guest byte `offset`, as much of `rest` as can be done in one go. */
  piece(offset: number, rest: Uint8Array): Pending
}

/** Goes through a buffer; answers what must be waited for, undefined when all was done inline. */
export function inPieces(
  worker: PieceWorker,
  offset: number,
  buf: Uint8Array,
): Promise<void>[] | undefined {
  let waits: Promise<void>[] | undefined
  for (let done = 0; done < buf.length; done += worker.took) {
    let pending: Pending
    try {
      pending = worker.piece(offset + done, done === 0 ? buf : buf.subarray(done))
    } catch (error) {
      if (waits === undefined) throw error
      waits.push(Promise.reject(error))
      break
    }
    if (pending === undefined) continue
    waits ??= []
    waits.push(pending)
  }
  return waits
}

/** Waits for all, then fails with the first failure: nobody may still touch the buffer afterwards. */
export async function allSettled(waits: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(waits))
    if (result.status === 'rejected') throw result.reason
}
