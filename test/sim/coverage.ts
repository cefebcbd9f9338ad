/**
 * Which cells of the matrix a history met: a kind of request on its way, an order that began
 * meanwhile, and a fault that was there.
 */
import { FAULTS } from '../support/replication-cells.ts'
import type { SimPair } from './pair.ts'
import type { Volume } from './volume.ts'

/** A discard is none of them: a replication node forwards none, so it is never on its way. */
const REQUESTS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  primary: {
    write: 'export write',
    flush: 'export flush',
    zeroes: 'zero write',
  },
  secondary: {
    read: 'guest read',
    write: 'guest write',
    zeroes: 'zero write',
  },
}

/** What a history does while requests are on their way; a start comes before the first of them. */
const ACTIONS = [
  'checkpoint',
  'failover begin',
  'commit pivot',
  'stop',
  'close',
  'reopen',
  'drain nesting',
  'job cancel',
] as const

/** One of them. */
export type Action = (typeof ACTIONS)[number]

/** How many cells there are. */
export const CELLS: number = 5 * ACTIONS.length * FAULTS.length

/** The faults of a pair now. */
function faultsOf(pair: SimPair, cuts: number): string[] {
  const found = new Set<string>()
  for (const { faults } of pair.disks.values()) {
    if (faults.read > 0) found.add('read fault')
    if (faults.write > 0) found.add('write fault')
    if (faults.full) found.add('no space')
    if (faults.stall > 0) found.add('slow')
  }
  if (cuts > 0) found.add('lost connection')
  return found.size === 0 ? ['no fault'] : [...found]
}

/** Notes what is on its way at the beginning of an action. */
export function noteCells(
  cells: Set<string>,
  action: Action,
  volumes: readonly Volume[],
  pair: SimPair,
  cuts: number,
): void {
  for (const { writers, guests } of volumes)
    for (const [side, users] of [
      ['primary', writers],
      ['secondary', guests],
    ] as const)
      for (const kind of users.underway()) {
        const request = REQUESTS[side]?.[kind]
        if (request === undefined) continue
        for (const fault of faultsOf(pair, cuts)) cells.add(`${request}, ${action}, ${fault}`)
      }
}
