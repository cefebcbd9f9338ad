/**
 * Random monitor commands to our daemon and to the reference at once: every answer and the graph
 * after it must be the same.
 *
 * `SEEDS=a..b` runs those seeds and lists what differs, each kind once.
 */
import { expect, vi } from 'vitest'
import { type Difference, report, runSeed, shrink } from './graph-differential-run.ts'
import { withTools } from './nbd-peers.ts'

const LENGTH = 30

// A sweep takes as long as it takes, and so does finding out which steps matter.
vi.setConfig({ testTimeout: 3_600_000 })

const range = process.env.SEEDS?.split('..').map(Number)
const [first, last] = [range?.[0] ?? 1, range?.[1] ?? 3]

/** Two differences of one kind have the same words but for names and numbers. */
function signature({ kind, step, reference, ours }: Difference): string {
  const plain = (text: string): string =>
    text
      .replace(/'[^']*'/g, "'…'")
      .replace(/\d+/g, '0')
      .slice(0, 160)
  return `${kind} ${step.execute}\n    R ${plain(reference)}\n    O ${plain(ours)}`
}

const tools = ['qemu-system-x86_64', 'qemu-img']

if (range === undefined) {
  withTools(tools, 'graph / differential / random commands are answered alike', async () => {
    for (let seed = first; seed <= last; seed++) {
      const outcome = await runSeed(seed, LENGTH, true)
      if (outcome.differences.length === 0) continue
      expect.fail(report(seed, await shrink(outcome)))
    }
  })
} else {
  withTools(tools, `graph / differential / seeds ${first} to ${last} are answered alike`, sweep)
}

async function sweep(): Promise<void> {
  const kinds = new Map<string, { count: number; seed: number; example: Difference }>()
  let crashes = 0
  let steps = 0
  const start = Date.now()
  for (let seed = first; seed <= last; seed++) {
    const outcome = await runSeed(seed, LENGTH, first === last)
    crashes += outcome.crashes
    steps += outcome.steps.length
    for (const example of outcome.differences) {
      const known = kinds.get(signature(example))
      if (known === undefined) kinds.set(signature(example), { count: 1, seed, example })
      else known.count++
    }
    if (first === last && outcome.differences.length > 0)
      expect.fail(report(seed, await shrink(outcome)))
  }
  const lines = [...kinds].sort(([, a], [, b]) => b.count - a.count)
  const text = lines.map(([kind, { count, seed, example }]) =>
    [
      `${count}× ${kind.split('\n')[0]}`,
      `    R ${example.reference}`,
      `    O ${example.ours}`,
      `    seed ${seed}: ${JSON.stringify(example.step.arguments)}`,
    ].join('\n'),
  )
  const ms = Date.now() - start
  const sum = `${steps} steps, ${crashes} deaths of the reference, ${ms} ms`
  expect(text.length, `${sum}\n${text.join('\n')}`).toBe(0)
}
