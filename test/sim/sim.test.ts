/**
 * Whole pairs on a virtual clock, from seeds. `SIM_SEED=N` replays one; `SIM_SEEDS=A..B` sweeps;
 * `SIM_TRACE=FILE` keeps the trace of the last, `SIM_CELLS=FILE` the cells of the matrix that were met.
 */
import { writeFileSync } from 'node:fs'
import { describe, expect, it, vi } from 'vitest'
import { CELLS } from './coverage.ts'
import { runHistory } from './history.ts'
import type { Canary } from './machinery.ts'
import type { Verdict } from './outcome.ts'

vi.mock('node:net', async (original) => {
  const { connect, createServer } = await import('./host-net.ts')
  return { ...(await original<typeof import('node:net')>()), connect, createServer }
})

/** How long the sweep of an ordinary test run goes on, in milliseconds. */
const SWEEP_MS = 12_000
const SWEEP_SEEDS = 400
/** A canary is caught within so many seeds. */
const MOST_SEEDS = 200

function seeds(): { readonly list: readonly number[]; readonly bounded: boolean } {
  const { SIM_SEED, SIM_SEEDS } = process.env
  if (SIM_SEED !== undefined) return { list: [Number(SIM_SEED)], bounded: false }
  const [first = 1, last = SWEEP_SEEDS] = (SIM_SEEDS ?? `1..${SWEEP_SEEDS}`).split('..').map(Number)
  const list = Array.from({ length: last - first + 1 }, (_, i) => first + i)
  return { list, bounded: SIM_SEEDS === undefined }
}

function complaint({ seed, finale, problems }: Verdict): string {
  const first = problems.slice(0, 4).join('\n    ')
  return `seed ${seed} (${finale}): ${first}\n  replay: SIM_SEED=${seed} npx vitest run test/sim`
}

describe('sim', () => {
  const { list, bounded } = seeds()

  it('sim / every history of the sweep is explained', { timeout: 3_600_000 }, async () => {
    const begin = performance.now()
    const bad: Verdict[] = []
    let judged = 0
    let requests = 0
    let checkpoints = 0
    let interrupted = 0
    const cells = new Set<string>()
    for (const seed of list) {
      if (bounded && performance.now() - begin > SWEEP_MS) break
      const verdict = await runHistory(seed)
      judged += 1
      requests += verdict.requests
      checkpoints += verdict.checkpoints
      interrupted += verdict.interrupted
      for (const cell of verdict.cells) cells.add(cell)
      if (verdict.problems.length > 0) bad.push(verdict)
      if (process.env.SIM_TRACE !== undefined)
        writeFileSync(process.env.SIM_TRACE, `${verdict.trace.join('\n')}\n`)
    }
    console.log(
      `sim: ${judged} histories judged, ${requests} guest requests, ${checkpoints} checkpoints, ` +
        `${interrupted} of them broken off, ${cells.size} of ${CELLS} cells of the matrix met, ` +
        `${bad.length} bad`,
    )
    if (process.env.SIM_CELLS !== undefined)
      writeFileSync(process.env.SIM_CELLS, `${[...cells].toSorted().join('\n')}\n`)
    expect(bad.map(complaint).join('\n')).toBe('')
  })

  it('sim / the same seed gives the same history, line by line', async () => {
    for (const seed of [3, 11, 19]) {
      const [once, again] = [await runHistory(seed), await runHistory(seed)]
      expect(once.trace.length).toBeGreaterThan(100)
      expect(again.trace).toEqual(once.trace)
    }
  })

  /** A fault of ours, what it looks like, and the first seed to look at: near one that shows it. */
  const canaries: readonly (readonly [Canary, RegExp, number])[] = [
    ['skip-copy', /hidden over secondary/, 1],
    ['forget-reset', /hidden over secondary/, 1],
    ['lying-disk', /page 5 arrived as/, 1],
    ['blind-merge', /not merged|of secondary found/, 1],
    ['many-connections', /arrived as/, 26],
    ['open-fence', /changed while nobody is served/, 1],
  ]
  it.each(canaries)(
    'sim / canary / %s is caught',
    { timeout: 120_000 },
    async (canary, words, from) => {
      const found: string[] = []
      for (
        let seed = from;
        seed <= from + MOST_SEEDS && !found.some((each) => words.test(each));
        seed++
      ) {
        found.push(...(await runHistory(seed, canary)).problems)
      }
      expect(found.find((each) => words.test(each))).toBeDefined()
    },
  )
})
