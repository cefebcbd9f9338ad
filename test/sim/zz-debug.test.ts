import { appendFileSync } from 'node:fs'
import { it, vi } from 'vitest'
import { runHistory } from './history.ts'

vi.mock('node:net', async (original) => {
  const { connect, createServer } = await import('./host-net.ts')
  return { ...(await original<typeof import('node:net')>()), connect, createServer }
})
it('debug', { timeout: 1e6 }, async () => {
  const counts: Record<string, number> = {}
  const [a = 1, b = 1] = (process.env.SIM_SEEDS ?? '').split('..').map(Number)
  for (let seed = a; seed <= b; seed++) {
    const v = await runHistory(seed)
    for (const line of v.trace) {
      const m = /^\S+ ((order|resync|refused|event|done) .*|PROBLEM)/.exec(line)
      if (m) counts[m[1]!] = (counts[m[1]!] ?? 0) + 1
      const n = /^\S+ (primary|secondary) (\w+) \S+( E\w+)?$/.exec(line)
      if (n) {
        const k = `${n[1]} ${n[2]}${n[3] ?? ''}`
        counts[k] = (counts[k] ?? 0) + 1
      }
    }
    if (v.problems.length)
      appendFileSync(
        '/tmp/sim.log',
        `seed ${seed} ${v.finale} ${v.problems.slice(0, 3).join(' | ')}\n`,
      )
  }
  appendFileSync('/tmp/sim.log', JSON.stringify(counts, null, 1))
})
