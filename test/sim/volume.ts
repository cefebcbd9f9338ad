/**
 * One replicated disk of a pair while a history runs: its guests on both sides, and its model.
 *
 * Invariants:
 * - While replication runs, hidden over secondary disk equals the last checkpoint.
 * - While a broken checkpoint is not completed, the secondary disk does not change at all.
 */
import type { BlockBackend } from '../../src/block/backend.ts'
import { PAGE } from './disk.ts'
import { type GuestHost, Guests } from './guest.ts'
import { PrimaryModel, SecondaryModel } from './model.ts'
import { PAGES, type SimPair } from './pair.ts'

/** What all volumes of a history share. */
export interface VolumeOptions {
  readonly pair: SimPair
  readonly host: GuestHost
  /** False while an order changes the view, which is not judged then. */
  readonly watching: () => boolean
}

/** One disk. */
export class Volume {
  /** Before every name of this disk. */
  readonly prefix: string
  readonly model: SecondaryModel = new SecondaryModel(PAGES)
  /** Of the primary. */
  readonly writers: Guests
  /** Of the secondary. */
  readonly guests: Guests
  readonly #primary = new PrimaryModel(PAGES)
  readonly #options: VolumeOptions
  #moved: number[] | undefined

  private constructor(
    prefix: string,
    options: VolumeOptions,
    colo: BlockBackend,
    top: BlockBackend,
  ) {
    this.prefix = prefix
    this.#options = options
    const { host, pair } = options
    const own = (): GuestHost => ({ ...host, random: host.random.fork() })
    this.writers = new Guests(`${prefix}primary`, colo, this.#primary, own())
    this.guests = new Guests(`${prefix}secondary`, top, this.model, own())
    pair.secondary.events.on('REPLICATION_CHECKPOINT', (data) => {
      if (data['node-name'] === `${prefix}top`) this.#moved = this.words()
    })
    pair.disk(`${prefix}local`).applied = (offset, bytes) => this.#changed(offset, bytes)
  }

  /** Opens both sides of a disk. */
  static async open(prefix: string, options: VolumeOptions): Promise<Volume> {
    const { primary, secondary } = options.pair
    const colo = await primary.openBackend(`${prefix}colo`)
    return new Volume(prefix, options, colo, await secondary.openBackend(`${prefix}top`))
  }

  get stage(): string {
    return this.#options.pair.stageOf(`${this.prefix}top`)
  }

  /** The secondary disk now. */
  words(): number[] {
    return this.#options.pair.words(`${this.prefix}local`)
  }

  /** The secondary disk at the checkpoint that just moved it, whatever came after that. */
  checkpointWords(): number[] {
    const words = this.#moved ?? this.words()
    this.#moved = undefined
    return words
  }

  /** What the primary calls complete is complete. */
  judgeArrived(): void {
    for (const [page, word] of this.words().entries()) {
      const allowed = this.#primary.of(page)
      if (allowed.has(word)) continue
      const wanted = [...allowed].join(' or ')
      this.#problem(`${this.prefix}page ${page} arrived as ${word}, not ${wanted}`)
    }
  }

  /** Hidden disk over secondary disk. */
  judgeFrozen(when: string, offset = 0, bytes: number = PAGES * PAGE): void {
    const { pair, watching } = this.#options
    if (!watching() || this.stage !== 'running') return
    const end = Math.ceil((offset + bytes) / PAGE)
    for (let page = Math.floor(offset / PAGE); page < end; page++) {
      const word = pair.frozenWord(this.prefix, page)
      const wanted = this.model.checkpoint[page]
      if (word === wanted) continue
      const what = `${this.prefix}hidden over secondary is ${word} in page ${page}`
      this.#problem(`after ${when} ${what}, not ${wanted}`)
      return
    }
  }

  /** After a merge the secondary disk is the view; the guests are held. */
  async judgeMerged(): Promise<void> {
    const view = await this.guests.judgeAll('the end')
    for (const [page, word] of this.words().entries())
      if (word !== view[page]) this.#problem(`page ${page} was not merged: ${word}, ${view[page]}`)
  }

  #changed(offset: number, bytes: number): void {
    if (this.stage === 'interrupted')
      this.#problem(`${this.prefix}secondary disk changed while nobody is served`)
    this.judgeFrozen('a write', offset, bytes)
  }

  #problem(sentence: string): void {
    this.#options.host.problem(sentence)
  }
}
