/**
 * Runs what writes from many threads for longer: `node scripts/stress.mjs --minutes N`, with `--seed N`
 * to repeat a plan.
 *
 * Invariants:
 * - Runs until the time is over or the first failure; the exit status is that of the last run.
 */
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const USAGE = 'usage: node scripts/stress.mjs --minutes N [--seed N]'
/** Longest that one kind of disk is loaded in one run, in seconds. */
const MOST_SECONDS = 120

const { values } = parseArgs({
  options: { minutes: { type: 'string' }, seed: { type: 'string' } },
})
const minutes = Number(values.minutes)
if (!(minutes > 0) || (values.seed !== undefined && !/^\d+$/.test(values.seed))) {
  console.error(USAGE)
  process.exit(2)
}

const root = fileURLToPath(new URL('..', import.meta.url))
const args = ['vitest', 'run', 'test/stress', 'test/replication']
const end = performance.now() + minutes * 60_000
let status = 0
do {
  const seconds = Math.max(10, Math.min(MOST_SECONDS, (end - performance.now()) / 2000))
  const env = { ...process.env, STRESS_SECONDS: String(Math.ceil(seconds)) }
  if (values.seed !== undefined) env.SEED = values.seed
  status = spawnSync('npx', args, { cwd: root, env, stdio: 'inherit' }).status ?? 1
} while (status === 0 && performance.now() < end)
process.exit(status)
