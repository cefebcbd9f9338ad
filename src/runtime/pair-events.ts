/**
 * What the two sides of a pair tell, in types of their own.
 *
 * Invariants:
 * - Each is made of one event of the runtime; nothing is invented here.
 */
import type { BlockEvents } from '../block/events.ts'
import type { Stage } from '../replication/stage.ts'

/** A write that did not reach the secondary. */
export interface ForwardError {
  /** First byte. */
  readonly offset: number
  /** Bytes. */
  readonly length: number
  /** Why. */
  readonly error: string
}

/** A side entered another stage. */
export interface StageChange {
  /** The stage it is in now. */
  readonly stage: Stage
  /** What went wrong, for stages that a failure leads to. */
  readonly error?: string
}

/** How a failover ended. */
export interface FailoverEnd {
  /** The merge is complete. */
  readonly success: boolean
  /** Why not. */
  readonly error?: string
}

/** The view of the secondary moved. */
export interface CheckpointDone {
  /** Checkpoints since the start, this one included. */
  readonly epoch: number
}

/** The hidden disk fills up: time for a checkpoint, which empties it. */
export interface HiddenWatermark {
  /** Bytes that it holds. */
  readonly bytes: number
  /** Bytes at which this is told. */
  readonly watermark: number
}

/** A buffer that is out of use could not be emptied: what it holds means nothing any more. */
export interface BufferStale {
  /** `active` or `hidden`. */
  readonly buffer: string
  /** Why it was not emptied. */
  readonly error: string
}

/** What a primary tells. */
export interface PrimaryEvents {
  /** A write did not reach the secondary; checkpoints are refused from now on. */
  readonly 'forward-error': ForwardError
  /** It entered another stage. */
  readonly stage: StageChange
}

/** What a secondary tells. */
export interface SecondaryEvents {
  /** A checkpoint was taken. */
  readonly checkpoint: CheckpointDone
  /** The merge after a failover ended. */
  readonly 'failover-end': FailoverEnd
  /** Once between two checkpoints, when the hidden disk holds `hiddenWatermark` bytes. */
  readonly 'hidden-watermark': HiddenWatermark
  /** A buffer keeps old data after failover or stop. */
  readonly 'buffer-stale': BufferStale
  /** It entered another stage. */
  readonly stage: StageChange
}

type Data = Readonly<Record<string, unknown>>

/** Name of each event in the runtime, and how it is read. */
type Readers<E> = { readonly [K in keyof E]: readonly [event: string, read: (data: Data) => E[K]] }

const STAGE: readonly [string, (data: Data) => StageChange] = [
  'REPLICATION_STATE_CHANGE',
  ({ stage, error }) => ({ stage: stage as Stage, ...textOf(error) }),
]

/** Of a primary. */
export const PRIMARY_EVENTS: Readers<PrimaryEvents> = {
  'forward-error': [
    'REPLICATION_ERROR',
    ({ offset, length, error }) => ({
      offset: Number(offset),
      length: Number(length),
      error: String(error),
    }),
  ],
  stage: STAGE,
}

/** Of a secondary. */
export const SECONDARY_EVENTS: Readers<SecondaryEvents> = {
  checkpoint: ['REPLICATION_CHECKPOINT', ({ epoch }) => ({ epoch: Number(epoch) })],
  'failover-end': [
    'REPLICATION_FAILOVER_DONE',
    ({ success, error }) => ({ success: success === true, ...textOf(error) }),
  ],
  'hidden-watermark': [
    'REPLICATION_HIDDEN_WATERMARK',
    ({ bytes, watermark }) => ({ bytes: Number(bytes), watermark: Number(watermark) }),
  ],
  'buffer-stale': [
    'REPLICATION_BUFFER_STALE',
    (data) => ({ buffer: String(data['node-name']), error: String(data.error) }),
  ],
  stage: STAGE,
}

/**
 * Hears one kind of event until the answer is called. What the listener throws is the program's own
 * unhandled rejection; it does not disturb the order that caused the event.
 */
export function hear<E, K extends keyof E>(
  events: BlockEvents,
  readers: Readers<E>,
  name: K,
  heard: (data: E[K]) => void,
): () => void {
  const [event, read] = readers[name]
  return events.on(event, (data) => {
    try {
      heard(read(data))
    } catch (error) {
      void Promise.reject(error)
    }
  })
}

function textOf(error: unknown): { readonly error?: string } {
  return error === undefined ? {} : { error: String(error) }
}
