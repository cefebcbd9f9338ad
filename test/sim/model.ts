/**
 * What the disks of a pair may hold, page by page, written from what replication promises.
 *
 * Invariants:
 * - A page has a set of possible words: more than one only while a write is on its way, after one
 *   that failed, or when a checkpoint and a write overlapped.
 * - Within one side a page has at most one write on its way.
 */

/** The word of pages that were never written. */
export const INITIAL = 0
/** In a set of the secondary guest's: the page shows what lies below. */
const BELOW = -2

type Words = Set<number>

const both = (words: Words, tag: number): Words => new Set([...words, tag])

/** The disk of the primary's guest. */
export class PrimaryModel {
  readonly #pages: Words[]

  constructor(pages: number) {
    this.#pages = Array.from({ length: pages }, () => new Set([INITIAL]))
  }

  begin(page: number, tag: number): void {
    this.#pages[page] = both(this.of(page), tag)
  }

  /** An acknowledged write leaves one possibility. */
  acknowledged(page: number, tag: number): void {
    this.#pages[page] = new Set([tag])
  }

  of(page: number): Words {
    return this.#pages[page] ?? new Set()
  }
}

/** The view of the secondary's guest: its own writes over the last checkpoint. */
export class SecondaryModel {
  /** The secondary disk at the last checkpoint. */
  checkpoint: number[]
  readonly #own: Words[]
  /** Writes on their way, by page. */
  readonly #running = new Map<number, number>()
  /** Pages that were written while the present checkpoint runs. */
  #during: Set<number> | undefined

  constructor(pages: number) {
    this.checkpoint = Array.from({ length: pages }, () => INITIAL)
    this.#own = Array.from({ length: pages }, () => new Set([BELOW]))
  }

  begin(page: number, tag: number): void {
    this.#running.set(page, tag)
    this.#own[page] = both(this.#of(page), tag)
    this.#during?.add(page)
  }

  acknowledged(page: number, tag: number): void {
    this.#running.delete(page)
    // A write that overlapped a checkpoint may have been before it, and gone with it.
    this.#own[page] =
      this.#during?.has(page) || this.#torn.has(page) ? both(this.#of(page), tag) : new Set([tag])
    this.#torn.delete(page)
  }

  failed(page: number): void {
    this.#running.delete(page)
    this.#torn.delete(page)
  }

  /** Pages whose running write began before the last checkpoint ended. */
  readonly #torn = new Set<number>()

  /** A checkpoint is about to begin. */
  checkpointBegins(): void {
    this.#during = new Set(this.#running.keys())
  }

  /** It ended; `content` is the secondary disk then. */
  checkpointEnds(content: number[]): void {
    const during = this.#during ?? new Set()
    this.#during = undefined
    for (const page of this.#running.keys()) this.#torn.add(page)
    this.checkpoint = content
    for (let page = 0; page < this.#own.length; page++)
      this.#own[page] = during.has(page) ? both(this.#of(page), BELOW) : new Set([BELOW])
  }

  /** It failed and nothing has changed. */
  checkpointFailed(): void {
    this.#during = undefined
  }

  /** What a read of the page may find. */
  of(page: number): Words {
    const below = this.checkpoint[page] ?? INITIAL
    return new Set([...this.#of(page)].map((word) => (word === BELOW ? below : word)))
  }

  /** A checkpoint runs. */
  get moving(): boolean {
    return this.#during !== undefined
  }

  #of(page: number): Words {
    return this.#own[page] ?? new Set()
  }
}
