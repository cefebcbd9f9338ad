/**
 * Runs simulated pairs: `node scripts/sim.mjs --seed N`, or `--seeds A..B` for a sweep. With
 * `--trace FILE` the trace of the last history is written there.
 *
 * Invariants:
 * - The exit status is that of the test run: 0 when every history was explained.
 */
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const USAGE = 'usage: node scripts/sim.mjs --seed N | --seeds A..B [--trace FILE]'

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    seeds: { type: 'string' },
    trace: { type: 'string' },
  },
})

const one = /^\d+$/.test(values.seed ?? '')
const range = /^\d+\.\.\d+$/.test(values.seeds ?? '')
if (one === range) {
  console.error(USAGE)
  process.exit(2)
}

const env = { ...process.env }
if (one) env.SIM_SEED = values.seed
else env.SIM_SEEDS = values.seeds
if (values.trace !== undefined) env.SIM_TRACE = values.trace

const root = fileURLToPath(new URL('..', import.meta.url))
const args = ['vitest', 'run', 'test/sim', '-t', 'every history']
const { status } = spawnSync('npx', args, { cwd: root, env, stdio: 'inherit' })
process.exit(status ?? 1)
