/**
 * A bottom half that other threads schedule: they ring its bell, it runs in its home thread.
 *
 * Invariants:
 * - However often the bell rings before it runs, it runs once; after a ring it runs at least once.
 * - It keeps the thread alive until it is closed.
 */
import { Doorbell } from '../sync/doorbell.ts'
import type { BottomHalf } from './bottom-half.ts'

/** Made by `AioContext.listen`. */
export class SharedBottomHalf {
  /** Its bell; another thread rings `new Doorbell(words)` over the same words. */
  readonly bell: Doorbell
  readonly #bh: BottomHalf
  #closed = false

  /** Listens to the bell in `words`; `bh` is what a ring schedules. */
  constructor(words: Int32Array, bh: BottomHalf) {
    this.bell = new Doorbell(words)
    this.#bh = bh
    void this.#listen()
  }

  /** Stops listening; the callback never runs again. */
  close(): void {
    this.#closed = true
    this.#bh.delete()
    // Ends the wait that is under way.
    this.bell.ring()
    this.bell.dispose()
  }

  async #listen(): Promise<void> {
    // From zero, so that a ring before the first look counts.
    for (let seen = 0; !this.#closed; ) {
      const wait = this.bell.whenRung(seen)
      if (wait !== undefined) await wait
      seen = this.bell.count
      this.#bh.schedule()
    }
  }
}
