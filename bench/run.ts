/**
 * Runs one benchmark by name and prints its rows: `npm run bench -- NAME [--json FILE]`.
 *
 * Invariants:
 * - A row is a ratio between peers measured in turns within this run; absolutes are context only.
 * - The machine is printed with the numbers.
 */
import { writeFileSync } from 'node:fs'
import { cpus, totalmem } from 'node:os'
import { parseArgs } from 'node:util'
import type { BenchRow } from './measure.ts'

const NAMES = ['runtime', 'replication', 'jobs'] as const

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { json: { type: 'string' } },
})
const name = NAMES.find((known) => known === positionals[0])
if (name === undefined) {
  console.error(`usage: npm run bench -- NAME [--json FILE]\nNAME is one of: ${NAMES.join(', ')}`)
  process.exit(2)
}

const { bench } = (await import(`./${name}.js`)) as { bench: () => Promise<BenchRow[]> }
const machine = {
  node: process.version,
  cpu: cpus()[0]?.model ?? 'unknown',
  cores: cpus().length,
  memoryGiB: Math.round(totalmem() / 2 ** 30),
}
console.log(`${name} on ${machine.cores} × ${machine.cpu}, Node ${machine.node}`)
const rows = await bench()
for (const row of rows) {
  const goal =
    row.goal === undefined ? '' : `  (must reach ${row.goal}: ${verdict(row.ratio, row.goal)})`
  console.log(`${row.ratio.toFixed(3).padStart(9)}  ${row.what}${goal}  [${row.detail}]`)
}
/** Whether a ratio reaches its goal. */
function verdict(ratio: number, goal: string): 'met' | 'missed' {
  const [sign, bound] = goal.split(' ')
  const above = ratio - Number(bound)
  const met = sign === '>=' ? above >= 0 : sign === '<' ? above < 0 : above <= 0
  return met ? 'met' : 'missed'
}

if (values.json !== undefined)
  writeFileSync(values.json, `${JSON.stringify({ name, machine, rows }, null, 2)}\n`)
