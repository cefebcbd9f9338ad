/**
 * Guests: writers and readers of one side, under a seed.
 *
 * Invariants:
 * - Requests of one guest's side never overlap in a page, so every read has one right answer.
 * - A guest can be held at rest: then none of its requests is on its way.
 */
import type { BlockBackend } from '../../src/block/backend.ts'
import type { Clock } from '../../src/util/clock.ts'
import { asBlockError } from '../../src/util/errors.ts'
import type { Random } from '../../src/util/random.ts'
import { PAGE, pagesOf, tagIn } from './disk.ts'
import { INITIAL } from './model.ts'

/** What a guest tells the model. */
export interface GuestModel {
  begin(page: number, tag: number): void
  acknowledged(page: number, tag: number): void
  failed?(page: number): void
  of(page: number): Set<number>
  /** A read that overlaps a change of the whole view is not judged. */
  readonly moving?: boolean
}

/** Who hears of what happens. */
export interface GuestHost {
  readonly clock: Clock
  readonly random: Random
  readonly trace: (line: string) => void
  /** A word that was never written before. */
  newTag(): number
  /** Something is wrong. */
  problem(sentence: string): void
  /** Whether an error of a request has a cause in what was done to this side. */
  mayFail(): boolean
}

/** Longest run of pages in one request: over two clusters of a protection. */
const LONGEST_RUN = 20

const KINDS = [
  'write',
  'write',
  'write',
  'write',
  'zeroes',
  'zeroes',
  'read',
  'read',
  'read',
  'flush',
  'discard',
] as const

/** The guests of one side. */
export class Guests {
  readonly name: string
  readonly backend: BlockBackend
  readonly #model: GuestModel
  readonly #host: GuestHost
  readonly #pages: number
  readonly #busy = new Set<number>()
  readonly #writers: Promise<void>[] = []
  #held = 0
  #resume: (() => void)[] = []
  #idle: (() => void)[] = []
  #running = 0
  readonly #underway: string[] = []
  #stopped = false
  /** Requests that were done. */
  requests = 0

  constructor(name: string, backend: BlockBackend, model: GuestModel, host: GuestHost) {
    this.name = name
    this.backend = backend
    this.#model = model
    this.#host = host
    this.#pages = backend.length() / PAGE
  }

  /** Kinds of the requests that are on their way. */
  underway(): readonly string[] {
    return this.#underway
  }

  /** Starts guests that go on until `stop`. */
  start(count: number, pauseMs: number): void {
    for (let i = 0; i < count; i++) this.#writers.push(this.#loop(pauseMs))
  }

  /** Waits until nothing is on its way, and keeps it so. */
  async hold(): Promise<void> {
    this.#held += 1
    while (this.#running > 0) await new Promise<void>((resolve) => this.#idle.push(resolve))
  }

  release(): void {
    this.#held -= 1
    if (this.#held > 0) return
    for (const resume of this.#resume.splice(0)) resume()
  }

  /** Ends the guests; settles when their last request did. */
  async stop(): Promise<void> {
    this.#stopped = true
    for (const resume of this.#resume.splice(0)) resume()
    await Promise.all(this.#writers)
  }

  /** Reads the whole disk and judges it; the guests are held. */
  async judgeAll(what: string): Promise<number[]> {
    const buf = new Uint8Array(this.#pages * PAGE)
    const pending = this.backend.pread(0, buf)
    if (pending !== undefined) await pending
    const words = Array.from({ length: this.#pages }, (_, page) => tagIn(buf, page))
    for (const [page, word] of words.entries()) this.#judge(what, page, word)
    return words
  }

  async #loop(pauseMs: number): Promise<void> {
    const { clock, random } = this.#host
    while (!this.#stopped) {
      await new Promise<void>((resolve) => void clock.setTimer(random.next() * pauseMs, resolve))
      while (this.#held > 0 && !this.#stopped)
        await new Promise<void>((resolve) => this.#resume.push(resolve))
      if (this.#stopped) return
      await this.#request()
    }
  }

  async #request(): Promise<void> {
    const { random, trace } = this.#host
    const run = this.#pickRun()
    if (run === undefined) return
    const [first, count] = run
    for (let page = first; page < first + count; page++) this.#busy.add(page)
    this.#running += 1
    const kind = random.pick(KINDS)
    this.#underway.push(kind)
    try {
      if (kind === 'read') await this.#read(first, count)
      else if (kind === 'flush') await this.backend.flush()
      else if (kind === 'discard') await this.#discard(first, count)
      else await this.#write(first, count, kind === 'zeroes' ? INITIAL : this.#host.newTag())
      trace(`${this.name} ${kind} ${first}+${count}`)
    } catch (thrown) {
      const { code, message } = asBlockError(thrown)
      trace(`${this.name} ${kind} ${first}+${count} ${code}`)
      if (!this.#host.mayFail())
        this.#host.problem(`${this.name} ${kind} failed without a cause: ${message}`)
    } finally {
      this.requests += 1
      this.#running -= 1
      this.#underway.splice(this.#underway.indexOf(kind), 1)
      for (let page = first; page < first + count; page++) this.#busy.delete(page)
      if (this.#running === 0) for (const idle of this.#idle.splice(0)) idle()
    }
  }

  #pickRun(): readonly [first: number, count: number] | undefined {
    const { random } = this.#host
    const first = random.int(this.#pages)
    const most = Math.min(1 + random.int(LONGEST_RUN), this.#pages - first)
    let count = 0
    while (count < most && !this.#busy.has(first + count)) count += 1
    return count === 0 ? undefined : [first, count]
  }

  async #write(first: number, count: number, tag: number): Promise<void> {
    const pages = Array.from({ length: count }, (_, i) => first + i)
    for (const page of pages) this.#model.begin(page, tag)
    try {
      const { backend } = this
      const pending =
        tag === INITIAL
          ? backend.pwriteZeroes(first * PAGE, count * PAGE)
          : backend.pwrite(first * PAGE, pagesOf(tag, count))
      if (pending !== undefined) await pending
    } catch (thrown) {
      for (const page of pages) this.#model.failed?.(page)
      throw thrown
    }
    for (const page of pages) this.#model.acknowledged(page, tag)
  }

  /** What was given up may be as it was, or zero. */
  async #discard(first: number, count: number): Promise<void> {
    for (let page = first; page < first + count; page++) this.#model.begin(page, INITIAL)
    try {
      await this.backend.pdiscard(first * PAGE, count * PAGE)
    } finally {
      for (let page = first; page < first + count; page++) this.#model.failed?.(page)
    }
  }

  async #read(first: number, count: number): Promise<void> {
    const buf = new Uint8Array(count * PAGE)
    const before = this.#moving()
    const version = this.version
    const pending = this.backend.pread(first * PAGE, buf)
    if (pending !== undefined) await pending
    if (before || this.#moving() || version !== this.version) return
    for (let i = 0; i < count; i++) this.#judge('a read', first + i, tagIn(buf, i))
  }

  #moving(): boolean {
    return this.#model.moving === true
  }

  /** Counts changes of the whole view, each of which makes running reads not judged. */
  version = 0

  #judge(what: string, page: number, word: number): void {
    const allowed = this.#model.of(page)
    if (allowed.has(word)) return
    const wanted = [...allowed].join(' or ')
    this.#host.problem(`${what} of ${this.name} found ${word} in page ${page}, not ${wanted}`)
  }
}
