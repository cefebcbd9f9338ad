/**
 * Every request × everything that may happen meanwhile × every fault. A cell does not exist where
 * `whyNot` says why: a secondary's guest has no connection that could be lost.
 */
import { afterAll, describe, expect, it } from 'vitest'
import { copyBeforeWriteOf } from '../../src/job/cbw.ts'
import { WorkerPool } from '../../src/job/pool.ts'
import type { ReplicationMachinery } from '../../src/replication/machinery.ts'
import { ACTIONS, FAULTS, OPERATIONS, whyNot } from '../support/replication-cells.ts'
import { type Outcome, playCell } from '../support/replication-matrix.ts'

const pool = new WorkerPool()
const totals = { cells: 0, overlapped: 0, faults: 0, impossible: 0 }

afterAll(async () => {
  await pool.close()
  const { cells, overlapped, faults, impossible } = totals
  console.log(
    `matrix: ${cells} cells played, ${overlapped} with the request under way when the action ` +
      `began, ${faults} requests hit by a fault, ${impossible} cells do not exist`,
  )
})

const only = process.env.CELL?.split(',').map((each) => each.trim())

async function playAll(action: (typeof ACTIONS)[number]): Promise<string[]> {
  const bad: string[] = []
  for (const operation of OPERATIONS)
    for (const fault of FAULTS) {
      const name = `${operation}, ${action}, ${fault}`
      if (only !== undefined && only.join(', ') !== name) continue
      if (whyNot(operation, fault) !== undefined) {
        totals.impossible++
        continue
      }
      const { problems, overlapped, faults }: Outcome = await playCell(operation, action, fault, {
        pool,
      })
      totals.cells++
      if (overlapped) totals.overlapped++
      totals.faults += faults
      for (const problem of problems) bad.push(`${problem}\n  replay: CELL='${name}'`)
    }
  return bad
}

describe('replication / matrix', () => {
  it.each(ACTIONS)(
    'every request and every fault during %s',
    { timeout: 60_000 },
    async (action) => {
      expect((await playAll(action)).join('\n')).toBe('')
    },
  )
})

/** Broken machinery. */
const broken: Readonly<Record<string, (right: ReplicationMachinery) => ReplicationMachinery>> = {
  'a protection that copies nothing': (right) => ({
    ...right,
    async protect(source, target) {
      const protection = await right.protect(source, target)
      copyBeforeWriteOf(protection.filter).setCopier({ copy: async () => undefined })
      return protection
    },
  }),
  'a checkpoint that forgets the new epoch': (right) => ({
    ...right,
    async protect(source, target) {
      const protection = await right.protect(source, target)
      const { reset: _, ...rest } = protection
      return Object.assign(Object.create(protection), { ...rest, reset: () => undefined })
    },
  }),
  'a merge that ends at once': (right) => ({
    ...right,
    merge: async () => ({ ended: Promise.resolve(undefined), cancel: async () => undefined }),
  }),
  'a lost protection that lets writes pass': (right) => ({
    ...right,
    async protect(source, target) {
      const protection = await right.protect(source, target)
      copyBeforeWriteOf(protection.filter).loseProtection = () => undefined
      return protection
    },
  }),
}

describe('replication / matrix / canaries', () => {
  it.each(Object.keys(broken))('%s is caught', async (name) => {
    const machinery = broken[name]
    const found: string[] = []
    for (const action of ['checkpoint', 'failover begin', 'drain nesting', 'job cancel'] as const) {
      const options = { pool, ...(machinery === undefined ? {} : { machinery }) }
      const { problems } = await playCell('export write', action, 'no fault', options)
      found.push(...problems)
    }
    expect(found).not.toEqual([])
  })
})
