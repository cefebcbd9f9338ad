/**
 * Time as something handed in: the host's, or one that moves only when told.
 *
 * Invariants:
 * - Time never goes backwards.
 * - A virtual clock runs what is due in the order of deadline, then of arming; between two callbacks
 *   every promise that can settle has settled, so the same calls give the same history.
 */

/** A timer that was set. */
export interface TimerHandle {
  /** Disarms it; harmless when it fired already. */
  cancel(): void
}

/** What the runtime needs of time. */
export interface Clock {
  /** Monotonic milliseconds, with fraction, from an arbitrary start. */
  nowMs(): number
  /** Monotonic nanoseconds from an arbitrary start. */
  nowNs(): bigint
  /** Milliseconds since the epoch, with fraction; may jump when somebody sets the host's time. */
  epochMs(): number
  /** Calls `fn` once, not before `ms` milliseconds passed; keeps the process alive until then. */
  setTimer(ms: number, fn: () => void): TimerHandle
  /** Calls `fn` after the host had a turn for its own events. */
  setImmediate(fn: () => void): void
}

/** Longest delay a host timer takes; a longer one is set again when it fires. */
const LONGEST_MS = 0x7fff_ffff

/** The clock of the host. */
export class HostClock implements Clock {
  nowMs(): number {
    return performance.now()
  }

  nowNs(): bigint {
    return process.hrtime.bigint()
  }

  epochMs(): number {
    return performance.timeOrigin + performance.now()
  }

  setTimer(ms: number, fn: () => void): TimerHandle {
    const deadline = performance.now() + ms
    let timer = setTimeout(fire, Math.min(Math.max(ms, 0), LONGEST_MS))
    // The host may fire up to a millisecond early, and cuts long delays.
    function fire(): void {
      const left = deadline - performance.now()
      if (left > 0) timer = setTimeout(fire, Math.min(Math.ceil(left), LONGEST_MS))
      else fn()
    }
    return { cancel: () => clearTimeout(timer) }
  }

  setImmediate(fn: () => void): void {
    setImmediate(fn)
  }
}

interface VirtualTimer {
  readonly deadline: number
  readonly order: number
  readonly fn: () => void
}

/** A clock that stands still until `advance` or `runUntilIdle` moves it. */
export class VirtualClock implements Clock {
  #now: number
  #order = 0
  #immediates: (() => void)[] = []
  readonly #timers = new Set<VirtualTimer>()

  /** Starts at `startMs`. */
  constructor(startMs = 0) {
    this.#now = startMs
  }

  nowMs(): number {
    return this.#now
  }

  nowNs(): bigint {
    return BigInt(Math.round(this.#now * 1e6))
  }

  epochMs(): number {
    return this.#now
  }

  setTimer(ms: number, fn: () => void): TimerHandle {
    this.#order += 1
    const timer = { deadline: this.#now + Math.max(ms, 0), order: this.#order, fn }
    this.#timers.add(timer)
    return { cancel: () => void this.#timers.delete(timer) }
  }

  setImmediate(fn: () => void): void {
    this.#immediates.push(fn)
  }

  /** How many timers are armed. */
  get armed(): number {
    return this.#timers.size
  }

  /** Moves time forward by `ms`, running what falls due on the way. */
  async advance(ms: number): Promise<void> {
    const until = this.#now + ms
    await this.#run(until)
    this.#now = Math.max(this.#now, until)
  }

  /**
   * Runs until nothing is armed, moving time from deadline to deadline; stops at `limitMs` past now
   * with later timers still armed.
   */
  async runUntilIdle(limitMs: number = Number.POSITIVE_INFINITY): Promise<void> {
    await this.#run(this.#now + limitMs)
  }

  async #run(until: number): Promise<void> {
    for (;;) {
      await settle()
      if (this.#immediates.length > 0) {
        const batch = this.#immediates
        this.#immediates = []
        for (const fn of batch) fn()
        continue
      }
      const next = this.#nextTimer()
      if (next === undefined || next.deadline > until) return
      this.#timers.delete(next)
      this.#now = Math.max(this.#now, next.deadline)
      next.fn()
    }
  }

  #nextTimer(): VirtualTimer | undefined {
    let next: VirtualTimer | undefined
    for (const timer of this.#timers) {
      if (next === undefined || timer.deadline < next.deadline) next = timer
    }
    // Insertion order of the set is the order of arming, so the first of equals wins.
    return next
  }
}

/** One turn of the host loop: every promise that can settle without it has settled. */
function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
