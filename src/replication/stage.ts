/**
 * The stages of replication as data: what a request meets in each, and what a command may do.
 *
 * Invariants:
 * - Every pair of stage and operation has one answer here and nowhere else.
 * - `done` is final; `failover-failed` ends only when its merge is tried again, which no monitor
 *   command does: managers know that stage as final.
 */

/** What a replication node is for. */
export type ReplicationMode = 'primary' | 'secondary'

/**
 * Where it is in its life. `interrupted`: a checkpoint of the disks of this process broke off after
 * it had begun to drop buffers; no disk is served, to neither side, until a checkpoint, failover or
 * stop brings all of them to the point in time of that checkpoint.
 */
export type Stage = 'none' | 'running' | 'interrupted' | 'failover' | 'failover-failed' | 'done'

/**
 * What happens to a request: `refuse` fails it with EIO; `pass` gives it to the file child;
 * `forward` does so and records a failure instead of reporting it; `split` writes where the chain
 * will find the data.
 */
export type IoRule = 'refuse' | 'pass' | 'forward' | 'split'

/** Rules for reads and writes. */
export interface IoRules {
  readonly read: IoRule
  readonly write: IoRule
}

const REFUSE: IoRules = { read: 'refuse', write: 'refuse' }
const PASS: IoRules = { read: 'pass', write: 'pass' }

/** Mode × stage → what requests meet. A primary never reads: its quorum must use the local disk. */
export const IO_RULES: Readonly<Record<ReplicationMode, Readonly<Record<Stage, IoRules>>>> = {
  primary: {
    none: REFUSE,
    running: { read: 'refuse', write: 'forward' },
    interrupted: REFUSE,
    failover: REFUSE,
    'failover-failed': REFUSE,
    done: REFUSE,
  },
  secondary: {
    none: REFUSE,
    running: PASS,
    interrupted: REFUSE,
    failover: PASS,
    'failover-failed': { read: 'pass', write: 'split' },
    done: PASS,
  },
}

/** What an order does in a stage: it runs, it succeeds without effect, or it is refused. */
export type VerbRule = 'run' | 'ignore' | { readonly refuse: string }

/** Orders to a replication node. */
export type ReplicationVerb = 'start' | 'checkpoint' | 'stop' | 'failover'

const NOT_RUNNING = { refuse: 'Block replication is not running' } as const
const RUNNING_OR_DONE = { refuse: 'Block replication is running or done' } as const
const NO_BACKUP = { refuse: 'Backup job was cancelled unexpectedly' } as const

/** Order × stage → what becomes of it. */
export const VERB_RULES: Readonly<Record<ReplicationVerb, Readonly<Record<Stage, VerbRule>>>> = {
  start: {
    none: 'run',
    running: RUNNING_OR_DONE,
    interrupted: RUNNING_OR_DONE,
    failover: 'ignore',
    'failover-failed': RUNNING_OR_DONE,
    done: 'ignore',
  },
  checkpoint: {
    none: NO_BACKUP,
    running: 'run',
    interrupted: 'run',
    failover: 'ignore',
    'failover-failed': NO_BACKUP,
    done: 'ignore',
  },
  stop: {
    none: NOT_RUNNING,
    running: 'run',
    interrupted: 'run',
    failover: 'ignore',
    'failover-failed': NOT_RUNNING,
    done: 'ignore',
  },
  failover: {
    none: NOT_RUNNING,
    running: 'run',
    interrupted: 'run',
    failover: 'ignore',
    'failover-failed': NOT_RUNNING,
    done: 'ignore',
  },
}

/** The numbers that messages use for modes. */
export const MODE_NUMBER: Readonly<Record<ReplicationMode, number>> = { primary: 0, secondary: 1 }
