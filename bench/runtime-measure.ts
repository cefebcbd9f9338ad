/**
 * Measuring ways whose costs lie far apart: each gets as many operations as fill its time slice.
 *
 * Invariants:
 * - Ways alternate within a round, so that a slow moment of the machine meets all of them.
 * - Costs are processor time, of all threads of the process: the other programs of the machine are
 *   not in it, the collector's threads are.
 * - A way that did not do the work it was asked for fails the measurement.
 */
import type { Work } from './measure.ts'

/** What the measured operations add to: one for each operation. */
export const tally: { done: number } = { done: 0 }

/** How long a way runs in one round; long enough that it pays for its own garbage. */
const SLICE_MS = 20

/** How many rounds; the best one counts. */
const ROUNDS = 12

/** Nanoseconds of processor time per operation of each way, best of the rounds. */
export async function perOpTimed(
  ways: Readonly<Record<string, Work>>,
): Promise<Record<string, number>> {
  const best: Record<string, number> = {}
  const counts = new Map<string, number>()
  for (const [name, work] of Object.entries(ways)) counts.set(name, await fitting(name, work))
  for (let round = 0; round < ROUNDS; round++)
    for (const [name, work] of Object.entries(ways)) {
      const ns = await timed(name, work, counts.get(name) ?? 1)
      best[name] = Math.min(best[name] ?? Number.POSITIVE_INFINITY, ns)
    }
  return best
}

/** Nanoseconds of processor time per operation of one round. */
async function timed(name: string, work: Work, count: number): Promise<number> {
  // What the way before left for the host loop must not run on this one's time.
  await new Promise((resolve) => setImmediate(resolve))
  const before = tally.done
  const start = process.cpuUsage()
  await work(count)
  const { user, system } = process.cpuUsage(start)
  const done = tally.done - before
  if (done !== count) throw new Error(`'${name}' did ${done} of ${count} operations`)
  return ((user + system) * 1000) / count
}

/** How many operations fill a slice, found by doubling, which also warms the way up. */
async function fitting(name: string, work: Work): Promise<number> {
  for (let count = 256; ; count *= 2) {
    const ns = await timed(name, work, count)
    if (ns * count >= SLICE_MS * 1e6) return Math.ceil((SLICE_MS * 1e6) / ns)
  }
}
