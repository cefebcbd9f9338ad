/**
 * Keeps the process alive exactly as long as this thread waits for a shared word.
 *
 * Invariants:
 * - A host wait that does not block is invisible to the host loop; without this the process would
 *   end, with exit status 0, in the middle of a drain.
 */
import { holdHost, hostHolders, releaseHost } from '../util/host.ts'

/** A wait began. */
export function waitBegin(): void {
  holdHost()
}

/** The wait ended. */
export function waitEnd(): void {
  releaseHost()
}

/** How many waits are pending in this thread; 0 at rest. */
export function pendingWaits(): number {
  return hostHolders()
}
