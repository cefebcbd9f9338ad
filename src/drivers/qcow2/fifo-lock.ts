/**
 * A lock that is handed over in the order of asking.
 *
 * Invariants:
 * - `run` bodies never overlap; a body that fails hands the lock on like any other.
 */
export class FifoLock {
  #tail: Promise<unknown> | undefined

  /** Somebody holds or awaits it. */
  get busy(): boolean {
    return this.#tail !== undefined
  }

  /** Runs `body` once everything asked for earlier has ended. */
  async run<T>(body: () => Promise<T>): Promise<T> {
    const before = this.#tail
    const mine = before === undefined ? body() : before.then(body, body)
    this.#tail = mine
    try {
      return await mine
    } finally {
      if (this.#tail === mine) this.#tail = undefined
    }
  }
}
