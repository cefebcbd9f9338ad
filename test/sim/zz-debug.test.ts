import { it, vi } from 'vitest'
import { appendFileSync } from 'node:fs'
const writeSync = (_: number, s: string): void => appendFileSync('/tmp/sim.log', s)
import { runHistory } from './history.ts'
vi.mock('node:net', async (original) => {
  const { connect, createServer } = await import('./host-net.ts')
  return { ...(await original<typeof import('node:net')>()), connect, createServer }
})
it('debug', async () => {
  Object.assign(globalThis, { simLog: (l: string) => writeSync(2, l + '\n') })
  const v = await runHistory(Number(process.env.SIM_SEED))
  writeSync(2, JSON.stringify(v.problems, null, 1) + '\n')
})
