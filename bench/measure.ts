/**
 * Measuring side by side: two or more ways of doing the same, in turns, best of several rounds.
 *
 * Invariants:
 * - Peers alternate within a round, so that a slow moment of the machine meets all of them.
 */

/** One line of a result. */
export interface BenchRow {
  /** What is compared, as a sentence: "ours / theirs: …". */
  readonly what: string
  /** Ours divided by the peer's; what is better depends on `what`. */
  readonly ratio: number
  /** The bound that the project set itself. */
  readonly goal?: string
  /** Absolute numbers, for context. */
  readonly detail: string
}

/** Runs `count` operations and answers when they are done. */
export type Work = (count: number) => Promise<void>

/** Nanoseconds per operation of each way, best of `rounds` rounds in which they alternate. */
export async function perOp(
  ways: Readonly<Record<string, Work>>,
  count: number,
  rounds = 7,
): Promise<Record<string, number>> {
  const best: Record<string, number> = {}
  for (const work of Object.values(ways)) await work(Math.ceil(count / 10))
  for (let round = 0; round < rounds; round++)
    for (const [name, work] of Object.entries(ways)) {
      const start = process.hrtime.bigint()
      await work(count)
      const ns = Number(process.hrtime.bigint() - start) / count
      best[name] = Math.min(best[name] ?? Number.POSITIVE_INFINITY, ns)
    }
  return best
}

/** The `p`-th percentile (0…1) of a list. */
export function percentile(values: readonly number[], p: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * p))] ?? Number.NaN
}
