import { writeFileSync } from 'node:fs'
import { it, vi } from 'vitest'
import { runHistory } from './history.ts'

vi.mock('node:net', async (original) => {
  const { connect, createServer } = await import('./host-net.ts')
  return { ...(await original<typeof import('node:net')>()), connect, createServer }
})
it('one', { timeout: 1e6 }, async () => {
  for (const seed of (process.env.SIM_LIST ?? '').split(',').map(Number)) {
    const v = await runHistory(seed)
    writeFileSync(`/tmp/sim-${seed}.log`, v.trace.join('\n'))
  }
})
