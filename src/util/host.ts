/**
 * What keeps the host process alive while something waits that the host does not count.
 *
 * Invariants:
 * - However many holders there are, one timer is held.
 * - With no holder left nothing of this file keeps the process alive.
 */

/** Longest period a host timer takes; the timer never has anything to do. */
const LONGEST_MS = 0x7fff_ffff

let holders = 0
let timer: ReturnType<typeof setInterval> | undefined

/** Keeps the process (or worker) alive until the matching `releaseHost`. */
export function holdHost(): void {
  holders += 1
  if (timer === undefined) timer = setInterval(nothing, LONGEST_MS)
  else if (holders === 1) timer.ref()
}

/** Ends one `holdHost`. */
export function releaseHost(): void {
  if (holders === 0) throw new Error('assertion failed: releaseHost without holdHost')
  holders -= 1
  // Kept and only unreferenced: making a timer costs ten times more than switching it.
  if (holders === 0) timer?.unref()
}

/** How many holders there are; 0 at rest. */
export function hostHolders(): number {
  return holders
}

function nothing(): void {}
