/**
 * Seats: what a context lends a coroutine while it runs, and so the list of those that run.
 *
 * Invariants:
 * - A coroutine holds one seat from its spawn to its end; a free seat holds nobody.
 * - A seat's two callbacks are made once and used by one coroutine after another: closures made for
 *   each turn cost a quarter of a short coroutine.
 */

import type { RunTask } from './bottom-half.ts'

/** A coroutine as its seat sees it; what the calls answer becomes the value of the turn's promise. */
export interface SeatUser extends RunTask {
  /** The turn ended in a `yield`. */
  again(): unknown
  /** The coroutine ended. */
  finish(value: unknown): unknown
  /** The coroutine threw. */
  fail(reason: unknown): unknown
}

/** Holds every free seat. */
const NOBODY: SeatUser = {
  run: () => undefined,
  again: () => undefined,
  finish: () => undefined,
  fail: () => undefined,
}

/** Free seats that are kept; a burst of more coroutines than this gives its memory back. */
const MOST_FREE = 1024

/** One seat. */
export class Seat<U extends SeatUser> {
  /** Where it stands. */
  readonly seats: Seats<U>
  /** Who sits in it. */
  user: U | typeof NOBODY = NOBODY
  /** Next in the list of free seats. */
  nextFree: Seat<U> | undefined = undefined
  /** Its place in the list of all seats. */
  index: number
  /** What a turn ended in. */
  readonly onStep: (step: IteratorResult<unknown, unknown>) => unknown
  /** What a turn threw. */
  readonly onError: (reason: unknown) => unknown

  constructor(seats: Seats<U>, index: number) {
    this.seats = seats
    this.index = index
    this.onStep = (step) => {
      const user = this.user
      if (step.done !== true) return user.again()
      seats.give(this)
      return user.finish(step.value)
    }
    this.onError = (reason) => {
      const user = this.user
      seats.give(this)
      return user.fail(reason)
    }
  }
}

/** All seats of a context. */
export class Seats<U extends SeatUser> {
  /** Whose turn it is: the seat, as a store of who sits in it would cost a barrier each turn. */
  current: Seat<U> | undefined = undefined
  /** Runs the task in the next slice. */
  readonly enqueue: (task: RunTask) => void
  readonly #all: Seat<U>[] = []
  #free: Seat<U> | undefined
  #taken = 0

  constructor(enqueue: (task: RunTask) => void) {
    this.enqueue = enqueue
  }

  /** Who has the turn. */
  get currentUser(): U | undefined {
    const user = this.current?.user
    return user !== undefined && isSomebody<U>(user) ? user : undefined
  }

  /** How many are taken. */
  get taken(): number {
    return this.#taken
  }

  /** How many there are, free ones too. */
  get size(): number {
    return this.#all.length
  }

  /** Who sits, in no order. */
  users(): U[] {
    return this.#all.flatMap((seat) => (isSomebody<U>(seat.user) ? [seat.user] : []))
  }

  /** A free seat, for `user`. */
  take(user: U): Seat<U> {
    let seat = this.#free
    if (seat === undefined) {
      seat = new Seat(this, this.#all.length)
      this.#all.push(seat)
    } else {
      this.#free = seat.nextFree
    }
    this.#taken += 1
    seat.user = user
    return seat
  }

  /** The seat is free again. */
  give(seat: Seat<U>): void {
    seat.user = NOBODY
    this.#taken -= 1
    if (this.#all.length - this.#taken > MOST_FREE) {
      this.#drop(seat)
      return
    }
    seat.nextFree = this.#free
    this.#free = seat
  }

  #drop(seat: Seat<U>): void {
    const last = this.#all.pop()
    if (last === undefined || last === seat) return
    last.index = seat.index
    this.#all[seat.index] = last
  }
}

function isSomebody<U extends SeatUser>(user: U | typeof NOBODY): user is U {
  return user !== NOBODY
}
