/**
 * What other threads may do to a context: schedule its bottom halves and wake its coroutines.
 *
 * Invariants:
 * - Nothing of the home thread runs in another one: a call only marks shared words, and a bottom
 *   half of the home thread does the rest.
 * - Coroutines are woken in the order in which they were scheduled.
 * - The home thread is kept alive exactly as long as there is a bottom half or a parked coroutine.
 *
 * Words: those of its `CallList`.
 */
import { CallList } from '../sync/call-list.ts'
import { assert, type BlockError } from '../util/errors.ts'
import type { BottomHalf } from './bottom-half.ts'

/** What it needs of a context. */
export interface RemoteCallsHost {
  /** Makes a bottom half. */
  newBh(fn: () => void): BottomHalf
}

/** A coroutine's place to wait for another thread. */
export interface Parked {
  /** What the other thread passes to `coSchedule`; good for one wake-up. */
  readonly call: number
  /** Settles in the home thread; to be yielded. */
  readonly woken: Promise<void>
  /** Nobody will wake it any more: `woken` fails, unless it was woken. Home thread only. */
  fail(error: BlockError): void
}

/** A bottom half that other threads schedule by its number. */
export interface RemoteBottomHalf {
  /** What other threads pass to `schedule`, `scheduleIdle` and `delete`. */
  readonly call: number
  /** Takes a schedule back; home thread only. */
  cancel(): void
  /** The end: never runs again. */
  delete(): void
}

interface Entry {
  readonly bh: BottomHalf
  /** Runs once and is gone: a parked coroutine. */
  readonly once: boolean
}

/** Calls a context takes at a time unless told otherwise. */
const CAPACITY = 64

/** The home side. */
export class RemoteCalls {
  readonly #host: RemoteCallsHost
  readonly #list: CallList
  readonly #entries: (Entry | undefined)[] = []
  #used = 0
  #listening = false

  /** `capacity`: most bottom halves and parked coroutines at a time, up to 256. */
  constructor(host: RemoteCallsHost, capacity: number = CAPACITY) {
    this.#host = host
    this.#list = CallList.create(capacity)
  }

  /** What another thread makes its `RemoteContext` of. */
  get words(): Int32Array {
    return this.#list.words
  }

  /** Bottom halves and parked coroutines that there are. */
  get size(): number {
    return this.#used
  }

  /** A bottom half that any thread schedules. */
  newBh(fn: () => void): RemoteBottomHalf {
    const slot = this.#add({ bh: this.#host.newBh(fn), once: false })
    const call = this.#list.numberOf(slot)
    return {
      call,
      cancel: () => {
        this.#list.cancel(slot)
        this.#entries[slot]?.bh.cancel()
      },
      delete: () => {
        if (this.#list.numberOf(slot) === call) this.#remove(slot)
      },
    }
  }

  /** Parks the calling coroutine: `yield parked.woken`, once another thread has its number. */
  park(): Parked {
    let wake = (): void => undefined
    let refuse: (error: BlockError) => void = () => undefined
    const woken = new Promise<void>((resolve, reject) => {
      wake = resolve
      refuse = reject
    })
    const slot = this.#add({ bh: this.#host.newBh(() => wake()), once: true })
    const call = this.#list.numberOf(slot)
    const fail = (error: BlockError): void => {
      // A number that is good no more was woken, though that may not have run yet.
      if (this.#list.numberOf(slot) !== call) return
      this.#remove(slot)
      refuse(error)
    }
    return { call, woken, fail }
  }

  #add(entry: Entry): number {
    let slot = 0
    while (this.#entries[slot] !== undefined) slot += 1
    assert(slot < this.#list.capacity, 'a context has a slot for every remote call')
    this.#entries[slot] = entry
    this.#used += 1
    if (!this.#listening) void this.#listen()
    return slot
  }

  #remove(slot: number): void {
    const entry = this.#entries[slot]
    if (entry === undefined) return
    this.#entries[slot] = undefined
    this.#used -= 1
    this.#list.retire(slot)
    // A woken coroutine's bottom half still has to run; it is not known to anybody else.
    if (!entry.once) entry.bh.delete()
    // Ends the wait that is under way.
    if (this.#used === 0) this.#list.bell.ring()
  }

  async #listen(): Promise<void> {
    this.#listening = true
    while (this.#used > 0) {
      const seen = this.#list.bell.count
      this.#run()
      const wait = this.#list.bell.whenRung(seen)
      if (wait !== undefined) await wait
    }
    this.#listening = false
    this.#list.bell.dispose()
  }

  #run(): void {
    for (const { slot, kind } of this.#list.take(this.#entries.length)) {
      const entry = this.#entries[slot]
      if (entry === undefined || kind === 'nothing') continue
      if (kind === 'run') entry.bh.schedule()
      else if (kind === 'idle') entry.bh.scheduleIdle()
      if (kind === 'delete' || entry.once) this.#remove(slot)
    }
  }
}

/** The same context, as another thread sees it. */
export class RemoteContext {
  readonly #list: CallList

  /** Over the words of the home thread's `RemoteCalls`. */
  constructor(words: Int32Array) {
    this.#list = new CallList(words)
  }

  /** Schedules a bottom half; many schedules before it runs are one run. */
  schedule(call: number): void {
    this.#list.schedule(call)
  }

  /** Schedules it with other work of its thread, within 10 ms. */
  scheduleIdle(call: number): void {
    this.#list.scheduleIdle(call)
  }

  /** Deletes a bottom half: a schedule that did not run yet is void. */
  delete(call: number): void {
    this.#list.delete(call)
  }

  /** Wakes a parked coroutine in its home thread. It is a mistake of ours to do that twice. */
  coSchedule(call: number): void {
    assert(this.#list.schedule(call), 'a parked coroutine is scheduled once')
  }
}
