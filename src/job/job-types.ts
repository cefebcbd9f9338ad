/**
 * The parts a job is made of: its driver, its body, its surroundings, its options.
 *
 * Invariants:
 * - Every hook of a driver runs on the main thread; only a body may work elsewhere.
 */
import type { MaybePromise } from '../coroutine/coroutine.ts'
import type { BlockError } from '../util/errors.ts'
import type { JobEvents } from './events.ts'
import type { Job } from './job.ts'
import type { Transaction } from './transaction.ts'

/** Kinds of jobs, as QMP names them. */
export type JobType = 'commit' | 'stream' | 'mirror' | 'backup' | 'create' | 'amend'

/** When a mirror copies what a guest writes: later, or before the write ends. */
export type CopyMode = 'background' | 'write-blocking'

/** The part of a job that does the work elsewhere; told of pauses while `Job.runBody` waits. */
export interface JobBody {
  /** Asks for rest; settles when no I/O of the body is in flight and none will start. */
  pause(): Promise<void>
  /** Lets it go on. */
  resume(): void
  /** Tells it to stop within one piece of work. */
  cancel(): void
  /** Bytes a second, 0 = unlimited. */
  setSpeed(bytesPerSecond: number): void
}

/** What a kind of job does; every hook runs on the main thread. */
export interface JobDriver {
  /** Kind of the job. */
  readonly type: JobType
  /** The work. Rejects with the error that ends the job; returns early when cancelled. */
  run(job: Job): Promise<void>
  /** Before the point of no return; may fail, which aborts the whole transaction. */
  prepare?(job: Job): MaybePromise<void>
  /** After every job of the transaction prepared; must not fail. */
  commit?(job: Job): MaybePromise<void>
  /** Instead of `commit` when the transaction failed; must not fail. */
  abort?(job: Job): MaybePromise<void>
  /** After `commit` or `abort`; must not fail. */
  clean?(job: Job): MaybePromise<void>
  /** The verb `complete`; absent: the job cannot be completed. */
  complete?(job: Job): void
  /** A pause was asked for: whoever waits for the job's progress has to be let go. */
  pausing?(): void
  /** Changes how a running job copies; absent: nothing can be changed. Error: EINVAL. */
  change?(job: Job, copyMode: CopyMode): void
  /** Of a mirror: both disks hold the same, and every write goes to both before it ends. */
  readonly activelySynced?: boolean | undefined
  /** Whether a cancel stops the work (default) or lets the job end in order. */
  cancelIsHard?(job: Job, force: boolean): boolean
}

/** What a job needs of its surroundings. */
export interface JobHost {
  /** Publishes an event. */
  emit<K extends keyof JobEvents>(name: K, data: JobEvents[K]): void
  /** Runs the driver's work on the home context; default: at once. */
  spawn?(work: () => Promise<void>, name: string): Promise<void>
  /** A job came to rest or ended: whoever drains may look again. */
  quiet?(): void
}

/** How a job is created. */
export interface JobOptions {
  /** Identity of the job; `undefined` for internal jobs. */
  readonly id?: string | undefined
  /** The work. */
  readonly driver: JobDriver
  /** Finish without waiting for `finalize`; default true. */
  readonly autoFinalize?: boolean | undefined
  /** Vanish when concluded; default true. */
  readonly autoDismiss?: boolean | undefined
  /** Bytes a second; 0 = unlimited, the default. */
  readonly speed?: number | undefined
  /** The group that completes together; default: a group of its own. */
  readonly transaction?: Transaction | undefined
  /** Called once with the result, after filters are removed and before the job is concluded. */
  readonly onDone?: ((error: BlockError | undefined) => MaybePromise<void>) | undefined
}
