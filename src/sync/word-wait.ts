/**
 * Waiting for a shared word without blocking: all waiters of one thread share one host wait.
 *
 * Invariants:
 * - At most one host wait is pending per object. It outlives the waiter it was made for, because a
 *   host wait cannot be taken back and each forgotten one would leak.
 * - A change made by this thread itself is noticed at once through `poke`, not a loop turn later.
 */
import { shared } from './atomics.ts'
import { waitBegin, waitEnd } from './keep-alive.ts'

/** What a `WordWait` waits for. */
export interface WordCondition {
  /** Whether a value of the word ends the wait. */
  ready(value: number): boolean
  /** Called before the word is looked at for a new wait: tells other threads to notify. */
  register?(): void
  /** Called when the wait is over. */
  unregister?(): void
}

/** The waiters of this thread on one word. */
export class WordWait {
  readonly #words: Int32Array
  readonly #index: number
  readonly #condition: WordCondition
  #armed = false
  #promise: Promise<void> | undefined
  #resolve: (() => void) | undefined

  constructor(words: Int32Array, index: number, condition: WordCondition) {
    this.#words = words
    this.#index = index
    this.#condition = condition
  }

  /** Whether somebody of this thread waits. */
  get waiting(): boolean {
    return this.#promise !== undefined
  }

  /** `undefined` when the condition holds, else a promise for the moment when it is seen to hold. */
  wait(): Promise<void> | undefined {
    if (this.#promise !== undefined) return this.#promise
    if (this.#condition.ready(shared.load(this.#words, this.#index))) return undefined
    this.#promise = new Promise<void>((resolve) => {
      this.#resolve = resolve
    })
    waitBegin()
    this.#condition.register?.()
    this.#look()
    // The word may have become ready between the two looks; then the wait is over already.
    return this.#promise
  }

  /** This thread changed the word. */
  poke(): void {
    if (this.#promise !== undefined) this.#look()
  }

  /** Lets a leftover host wait go; for the end of the word's life. */
  release(): void {
    if (this.#armed) shared.notify(this.#words, this.#index)
  }

  #look(): void {
    for (;;) {
      const value = shared.load(this.#words, this.#index)
      if (this.#condition.ready(value)) {
        this.#settle()
        return
      }
      if (this.#armed) return
      const wait = shared.waitAsync(this.#words, this.#index, value)
      if (!wait.async) continue
      this.#armed = true
      void wait.value.then(this.#woken)
      return
    }
  }

  readonly #woken = (): void => {
    this.#armed = false
    if (this.#promise !== undefined) this.#look()
  }

  #settle(): void {
    const resolve = this.#resolve
    this.#promise = undefined
    this.#resolve = undefined
    this.#condition.unregister?.()
    waitEnd()
    resolve?.()
  }
}

/** Waits for a word to become anything but what was seen; whoever changes it must notify. */
export class ChangeWait {
  readonly #wait: WordWait
  #seen = 0

  constructor(words: Int32Array, index: number) {
    this.#wait = new WordWait(words, index, { ready: (value) => value !== this.#seen })
  }

  /**
   * `undefined` when the word is not `seen` any more. May be over early: who waits looks at its
   * reason again.
   */
  wait(seen: number): Promise<void> | undefined {
    if (!this.#wait.waiting) this.#seen = seen
    return this.#wait.wait()
  }

  /** This thread changed the word. */
  poke(): void {
    this.#wait.poke()
  }

  /** Lets a leftover host wait go; for the end of the word's life. */
  release(): void {
    this.#wait.release()
  }
}
