/**
 * Events of the block layer, under the names a monitor shows them by.
 *
 * Invariants:
 * - `any` listeners hear every event, in the order in which they happened.
 * - A listener must not throw; it runs inside whatever caused the event.
 */
import { EventEmitter } from 'node:events'

/** Data of an event: plain, JSON-like. */
export type EventData = Readonly<Record<string, unknown>>

/** Hears every event. */
export type AnyListener = (name: string, data: EventData) => void

/** Where events are sent and heard. Main thread only. */
export class BlockEvents {
  readonly #emitter = new EventEmitter()
  readonly #any = new Set<AnyListener>()

  constructor() {
    this.#emitter.setMaxListeners(0)
  }

  /** Sends an event. */
  emit(name: string, data: EventData = {}): void {
    for (const heard of [...this.#any]) heard(name, data)
    this.#emitter.emit(name, data)
  }

  /** Hears one kind of event until the answer is called. */
  on(name: string, listener: (data: EventData) => void): () => void {
    this.#emitter.on(name, listener)
    return () => this.#emitter.off(name, listener)
  }

  /** Hears all of them until the answer is called. */
  onAny(listener: AnyListener): () => void {
    this.#any.add(listener)
    return () => this.#any.delete(listener)
  }

  /** Waits for the next event of that name. */
  once(name: string): Promise<EventData> {
    return new Promise((resolve) => this.#emitter.once(name, resolve))
  }
}
