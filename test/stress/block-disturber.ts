/** Drains, reopens, and moves filters about under a load, and checks what each of them promises. */
import type { BlockGraph } from '../../src/block/graph.ts'
import type { BlockNode } from '../../src/block/node.ts'
import { type MemoryDescription, MemoryStore } from '../../src/drivers/memory-store.ts'
import type { Random } from '../../src/util/random.ts'
import { type HeldDriver, latch } from '../support/graph.ts'
import { SIZE } from './block-load.ts'

/** What can be done to the disk; each kind has to happen in a run. */
export const KINDS = [
  ...(['drain', 'nested', 'all', 'reopen', 'refuse', 'flip'] as const),
  ...(['insert', 'remove', 'replace', 'hold'] as const),
]

const MOST_FILTERS = 3

/** Another disk, which really becomes read-only while its guests wait. */
export interface FlippedDisk {
  /** Makes it read-only once its writer has gone, looks at it, and lets the writer come back. */
  flip(): Promise<void>
}

/** What a disturber works on. */
export interface DisturberParts {
  readonly graph: BlockGraph
  readonly disk: BlockNode
  readonly held: HeldDriver
  readonly random: Random
  /** How many worker threads are inside a request. */
  readonly inside: Int32Array
  readonly flipped: FlippedDisk
}

/** Disturbs until it is told to end. */
export class Disturber {
  readonly done: Record<string, number> = {}
  readonly #parts: DisturberParts
  readonly #filters: BlockNode[] = []
  readonly #store: MemoryStore

  constructor(parts: DisturberParts) {
    this.#parts = parts
    this.#store = MemoryStore.attach(parts.disk.driver?.describe?.() as MemoryDescription)
  }

  /** One disturbance; the first ones are one of each kind. */
  async step(): Promise<void> {
    const { random, graph, disk } = this.#parts
    const kind = KINDS[Object.keys(this.done).length] ?? random.pick(KINDS)
    const steps: Record<(typeof KINDS)[number], () => Promise<void>> = {
      drain: () => graph.withDrained(disk, this.#quiet),
      nested: () => this.#nested(random.int(3) + 1),
      all: () => this.#all(),
      reopen: () => graph.reopen([{ node: disk, options: disk.options }]),
      refuse: () => this.#refuse(),
      flip: () => this.#parts.flipped.flip(),
      insert: () => this.#insert(),
      remove: () => this.#remove(),
      replace: () => this.#replace(),
      hold: () => this.#hold(),
    }
    this.done[kind] = (this.done[kind] ?? 0) + 1
    await steps[kind]()
  }

  /** Takes the filters out. */
  async end(): Promise<void> {
    for (const filter of this.#filters.splice(0).reverse())
      await this.#parts.graph.removeFilter(filter)
  }

  get #top(): BlockNode {
    return this.#filters.at(-1) ?? this.#parts.disk
  }

  async #nested(depth: number): Promise<void> {
    const { graph, disk } = this.#parts
    await graph.drainedBegin(disk)
    await graph.withDrained(this.#top, this.#quiet)
    if (depth > 1) await this.#nested(depth - 1)
    await graph.drainAllBegin()
    graph.drainAllEnd()
    // No inner end has opened what the outer one holds.
    await this.#quiet()
    graph.drainedEnd(disk)
  }

  async #all(): Promise<void> {
    const { graph } = this.#parts
    await graph.drainAllBegin()
    await this.#quiet()
    graph.drainAllEnd()
  }

  /** A disk with writers cannot become read-only, and the attempt changes nothing. */
  async #refuse(): Promise<void> {
    const { graph, disk } = this.#parts
    const refused = await graph.setReadOnly(disk, true).then(
      () => 'accepted',
      (error: unknown) => (error instanceof Error ? error.message : 'no error'),
    )
    const expected = `Read-only block node '${disk.name}' cannot support read-write users`
    if (refused !== expected) throw new Error(`read-only under writers: ${refused}`)
    if (disk.readOnly) throw new Error('a refused reopen left the disk read-only')
  }

  async #insert(): Promise<void> {
    if (this.#filters.length >= MOST_FILTERS) return
    const top = this.#top
    const filter = { driver: 'held', file: top.name }
    this.#filters.push(await this.#parts.graph.insertFilter(filter, top))
  }

  async #remove(): Promise<void> {
    const { graph, random } = this.#parts
    const [filter] = this.#filters.splice(random.int(this.#filters.length), 1)
    if (filter !== undefined) await graph.removeFilter(filter)
  }

  /** Another filter over the same disk takes the place of one. */
  async #replace(): Promise<void> {
    const { graph, random } = this.#parts
    const index = random.int(this.#filters.length)
    const before = this.#filters[index]
    const below = before?.chainNext
    if (before === undefined || below === undefined) return
    const next = await graph.open({ driver: 'held', file: below.name })
    await graph.replace(before, next)
    graph.unref(before)
    await graph.settled()
    this.#filters[index] = next
  }

  /** Requests hang above the disk while it is being drained. */
  async #hold(): Promise<void> {
    const { graph, disk, held } = this.#parts
    const gate = latch()
    held.hold = gate
    const drain = graph.withDrained(disk, this.#quiet)
    held.hold = undefined
    gate.open()
    await drain
  }

  /** Inside a drained section nothing moves, in whatever thread. */
  readonly #quiet = async (): Promise<void> => {
    const before = new Uint8Array(SIZE)
    const after = new Uint8Array(SIZE)
    this.#store.read(0, before)
    for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve))
    this.#store.read(0, after)
    if (Buffer.compare(before, after) !== 0) throw new Error('a write inside a drained section')
    // What is in flight right now may be a worker that announced itself, found the gate closed and
    // is about to take it back; so ask who got in.
    const { inside, disk } = this.#parts
    const count = Atomics.load(inside, 0) + disk.tracked.size
    if (count !== 0) throw new Error(`${count} requests inside a drained section`)
    await disk.gate.whenIdle()
  }
}
