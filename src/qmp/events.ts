/**
 * Sends events to every negotiated monitor, with their time and their rate limits.
 *
 * Invariants:
 * - The timestamp is the moment of the occurrence, also for an event that the limit held back.
 * - Of a limited event one a second leaves at most; the latest of the held ones is the one sent.
 */
import type { JsonObject } from './json.ts'

/** Time as the hub needs it. */
export interface EventClock {
  /** Microseconds since the epoch. */
  nowMicros(): number
  /** Calls back after that many milliseconds; the answer takes the call back. */
  later(ms: number, fn: () => void): () => void
}

/** Receives finished event messages. */
export type EventSink = (message: JsonObject) => void

/** Shortest distance of two limited events of one kind. */
const LIMIT_MS = 1000

// What tells two limited events apart; undefined: not limited.
function limitKey(name: string, data: JsonObject): string | undefined {
  if (name === 'QUORUM_REPORT_BAD') return `${name}:${String(data['node-name'])}`
  if (name === 'QUORUM_FAILURE') return `${name}:${String(data.reference)}`
  // A job that ignores its errors repeats them without end.
  if (name === 'BLOCK_JOB_ERROR' && data.action === 'ignore') {
    return `${name}:${String(data.device)}:${String(data.operation)}`
  }
  return undefined
}

interface Held {
  pending: JsonObject | undefined
  cancel: () => void
}

/** The one place that events pass on their way to clients. */
export class EventHub {
  readonly #clock: EventClock
  readonly #sinks = new Set<EventSink>()
  readonly #held = new Map<string, Held>()

  constructor(clock: EventClock) {
    this.#clock = clock
  }

  /** Adds a receiver; the answer removes it. */
  subscribe(sink: EventSink): () => void {
    this.#sinks.add(sink)
    return () => this.#sinks.delete(sink)
  }

  /** Calls back after that many milliseconds; the answer takes the call back. */
  later(ms: number, fn: () => void): () => void {
    return this.#clock.later(ms, fn)
  }

  /** Something happened; `data` is absent for events without any. */
  publish(name: string, data?: JsonObject): void {
    const micros = this.#clock.nowMicros()
    const timestamp = { seconds: Math.floor(micros / 1e6), microseconds: Math.floor(micros % 1e6) }
    const message: JsonObject =
      data === undefined ? { timestamp, event: name } : { timestamp, event: name, data }
    const key = data === undefined ? undefined : limitKey(name, data)
    if (key === undefined) this.#deliver(message)
    else this.#limited(key, message)
  }

  /** Sends what is held back and stops all timers. */
  close(): void {
    for (const held of this.#held.values()) {
      held.cancel()
      if (held.pending !== undefined) this.#deliver(held.pending)
    }
    this.#held.clear()
  }

  #limited(key: string, message: JsonObject): void {
    const held = this.#held.get(key)
    if (held !== undefined) {
      held.pending = message
      return
    }
    this.#deliver(message)
    this.#arm(key)
  }

  #arm(key: string): void {
    const cancel = this.#clock.later(LIMIT_MS, () => {
      const pending = this.#held.get(key)?.pending
      this.#held.delete(key)
      if (pending === undefined) return
      this.#deliver(pending)
      this.#arm(key)
    })
    this.#held.set(key, { pending: undefined, cancel })
  }

  #deliver(message: JsonObject): void {
    for (const sink of this.#sinks) sink(message)
  }
}
