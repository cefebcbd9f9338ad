import { expect, test } from 'vitest'
import {
  assertTransition,
  checkVerb,
  isCompleted,
  type JobStatus,
  type JobVerb,
} from '../../../src/job/status.ts'

const STATUSES: readonly JobStatus[] = [
  'undefined',
  'created',
  'running',
  'paused',
  'ready',
  'standby',
  'waiting',
  'pending',
  'aborting',
  'concluded',
  'null',
]

/** Row: from; `x` where a job may go, in the order of `STATUSES`. */
const TRANSITIONS: Readonly<Record<JobStatus, string>> = {
  undefined: '.x.........',
  created: '..x.....x.x',
  running: '...xx.x.x..',
  paused: '..x........',
  ready: '.....xx.x..',
  standby: '....x......',
  waiting: '.......xx..',
  pending: '........xx.',
  aborting: '........xx.',
  concluded: '..........x',
  null: '...........',
}

/** Row: a verb; `x` where it is taken, in the order of `STATUSES`. */
const VERBS: Readonly<Record<JobVerb, string>> = {
  cancel: '.xxxxxxx...',
  pause: '.xxxxx.....',
  resume: '.xxxxx.....',
  'set-speed': '.xxxxx.....',
  complete: '....xx.....',
  finalize: '.......x...',
  dismiss: '.........x.',
}

const marks = (holds: (status: JobStatus) => boolean): string =>
  STATUSES.map((status) => (holds(status) ? 'x' : '.')).join('')

const passes = (check: () => void): boolean => {
  try {
    check()
    return true
  } catch {
    return false
  }
}

test.each(STATUSES)(
  'job / status / from %s it goes where the table says and nowhere else',
  (from) => {
    expect(marks((to) => passes(() => assertTransition(from, to)))).toBe(TRANSITIONS[from])
  },
)

test.each(Object.keys(VERBS) as JobVerb[])(
  'job / status / the verb %s is taken where the table says',
  (verb) => {
    expect(marks((status) => passes(() => checkVerb('j', status, verb)))).toBe(VERBS[verb])
    const refused = STATUSES.find((status) => !passes(() => checkVerb('j', status, verb)))
    expect(() => checkVerb('j', refused ?? 'null', verb)).toThrow(
      `Job 'j' in state '${refused}' cannot accept command verb '${verb}'`,
    )
  },
)

test('job / status / completed is what comes after the work', () => {
  expect(marks(isCompleted)).toBe('......xxxxx')
})
