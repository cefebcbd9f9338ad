/**
 * What the runtime costs, against plain async functions and other libraries in the same run.
 *
 * Invariants:
 * - All ways of one operation alternate; what is compared was measured side by side.
 */
import type { BenchRow, Work } from './measure.ts'
import { type PeerOp, peers } from './peers.ts'
import { drainRows } from './runtime-drain.ts'
import { perOpTimed } from './runtime-measure.ts'
import { ours, plain } from './runtime-ours.ts'

/** One operation of ours: what it is, and what plain code it is compared with. */
interface Compared {
  readonly what: string
  readonly plain: keyof typeof plain
  readonly plainWhat: string
  readonly goal: string
}

const OPS: Readonly<Record<PeerOp, Compared>> = {
  spawn: {
    what: 'spawn and finish a coroutine (an async generator)',
    plain: 'call',
    plainWhat: 'call and await an async function',
    goal: '<= 3',
  },
  spawnInline: {
    what: 'spawn and finish a coroutine (an operation that ends inline)',
    plain: 'call',
    plainWhat: 'call and await an async function',
    goal: '<= 3',
  },
  inline: {
    what: 'coroutine op, inline through five drivers',
    plain: 'call',
    plainWhat: 'one awaited async function',
    goal: '<= 1.2',
  },
  waiting: {
    what: 'one suspension under five drivers',
    plain: 'waiting',
    plainWhat: 'the same as promise functions',
    goal: '<= 1.5',
  },
  mutex: {
    what: 'lock and unlock a free mutex',
    plain: 'resolved',
    plainWhat: 'await a resolved promise',
    goal: '<= 0.2',
  },
}

/** One operation: against plain code, then against each library. */
async function rowsOf(op: PeerOp): Promise<BenchRow[]> {
  const compared = OPS[op]
  const ways: Record<string, Work> = { ours: ours[op], plain: plain[compared.plain] }
  for (const peer of peers[op]) ways[peer.name] = peer.work
  const ns = await perOpTimed(ways)
  const row = (way: string, against: string, goal: string): BenchRow => ({
    what: `${compared.what} / ${against}`,
    ratio: (ns.ours ?? Number.NaN) / (ns[way] ?? Number.NaN),
    goal,
    detail: `${format(ns.ours)} / ${format(ns[way])}`,
  })
  return [
    row('plain', compared.plainWhat, compared.goal),
    ...peers[op].map((peer) => row(peer.name, peer.name, '< 1')),
  ]
}

function format(ns: number | undefined): string {
  return `${(ns ?? Number.NaN).toFixed(0)} ns`
}

/** The rows of this benchmark. */
export async function bench(): Promise<BenchRow[]> {
  const rows: BenchRow[] = []
  for (const op of ['spawn', 'spawnInline', 'inline', 'waiting', 'mutex'] as const)
    rows.push(...(await rowsOf(op)))
  return [...rows, ...(await drainRows())]
}
