/** Guests in coroutines and worker threads over one disk, and the judge of what they see. */
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import type { BlockBackend } from '../../src/block/backend.ts'
import type { BlockNode } from '../../src/block/node.ts'
import type { Coroutine } from '../../src/coroutine/coroutine.ts'
import type { Random } from '../../src/util/random.ts'
import { SECTOR, SectorHistory, tagged } from './sector-history.ts'

export const CLUSTER = 4096
const PER_CLUSTER = CLUSTER / SECTOR
/** Clusters of the coroutines, each the own one of a guest. */
export const GUEST_CLUSTERS = 64
export const WORKER_CLUSTERS = 32
export const WORKERS = 2
export const GUESTS = 6
export const SIZE = (GUEST_CLUSTERS + WORKERS * WORKER_CLUSTERS) * CLUSTER

/** How many requests of each kind were made. */
export type Counts = Record<'writes' | 'reads' | 'zeroes' | 'discards' | 'flushes', number>

const noCounts = (): Counts => ({ writes: 0, reads: 0, zeroes: 0, discards: 0, flushes: 0 })

/** Who writes for the guests now; nobody for a while where a disk becomes read-only. */
export interface Users {
  readonly reader: BlockBackend
  /** The writer, at once or when there is one again. */
  writer(): BlockBackend | Promise<BlockBackend>
}

/** The coroutines. */
export class Load {
  readonly history: SectorHistory = new SectorHistory(GUEST_CLUSTERS * PER_CLUSTER)
  readonly counts: Counts = noCounts()
  stopped = false
  readonly #users: Users
  readonly #random: Random

  constructor(users: Users, random: Random) {
    this.#users = users
    this.#random = random
  }

  /** One guest: changes its own clusters, reads anybody's. */
  async *coGuest(index: number): Coroutine<void> {
    while (!this.stopped) {
      const own = this.#random.int(Math.floor(GUEST_CLUSTERS / GUESTS)) * GUESTS + index
      const sector = own * PER_CLUSTER + this.#random.int(PER_CLUSTER)
      const choice = this.#random.int(20)
      if (choice < 8) yield* this.#coWrite(sector)
      else if (choice < 10) yield* this.#coZero(sector)
      else if (choice < 11) yield* this.#coDiscard(own)
      else if (choice < 12) yield* this.#coFlush()
      else yield* this.#coRead(this.#random.int(GUEST_CLUSTERS * PER_CLUSTER))
      yield
    }
  }

  /** Judges the whole disk once nothing is on its way. */
  judge(disk: Uint8Array): void {
    this.history.judgeAll(disk)
  }

  async *#coWrite(sector: number): Coroutine<void> {
    const writer = await this.#users.writer()
    const tag = this.history.beginWrite(sector)
    yield* writer.coPwrite(sector * SECTOR, tagged(tag))
    this.history.acknowledge(sector, tag)
    this.counts.writes++
  }

  async *#coZero(sector: number): Coroutine<void> {
    const writer = await this.#users.writer()
    const tag = this.history.beginZero(sector)
    yield* writer.coPwriteZeroes(sector * SECTOR, SECTOR)
    this.history.acknowledge(sector, tag)
    this.counts.zeroes++
  }

  async *#coDiscard(cluster: number): Coroutine<void> {
    const writer = await this.#users.writer()
    for (let n = 0; n < PER_CLUSTER; n++) this.history.beginDiscard(cluster * PER_CLUSTER + n)
    yield* writer.coPdiscard(cluster * CLUSTER, CLUSTER)
    this.counts.discards++
  }

  async *#coFlush(): Coroutine<void> {
    yield* (await this.#users.writer()).coFlush()
    this.counts.flushes++
  }

  async *#coRead(sector: number): Coroutine<void> {
    const reading = this.history.beginRead(sector)
    const buf = new Uint8Array(SECTOR)
    yield* this.#users.reader.coPread(sector * SECTOR, buf)
    this.history.endRead(reading, buf)
    this.counts.reads++
  }
}

/** What a worker says at its end. */
export interface WorkerReport {
  readonly done: Counts
  readonly complaints: readonly string[]
  /** What each of its clusters may show. */
  readonly last: readonly (readonly number[])[]
}

/** The worker threads over a memory disk. */
export class Workers {
  /** How many requests of workers got past the gate and have not ended. */
  readonly inside = new Int32Array(new SharedArrayBuffer(4))
  readonly #stop = new Int32Array(new SharedArrayBuffer(4))
  readonly #reports: Promise<WorkerReport>[]

  constructor(disk: BlockNode, user: BlockBackend, seed: number) {
    this.#reports = Array.from({ length: WORKERS }, (_, index) =>
      this.#start(disk, user, seed, index),
    )
  }

  /** Tells them to stop and waits for what they saw. */
  end(): Promise<WorkerReport[]> {
    Atomics.store(this.#stop, 0, 1)
    return Promise.all(this.#reports)
  }

  #start(disk: BlockNode, user: BlockBackend, seed: number, index: number): Promise<WorkerReport> {
    const dist = (path: string): string => new URL(`../../dist/src/${path}`, import.meta.url).href
    const reply = new Int32Array(new SharedArrayBuffer(4))
    const worker = new Worker(fileURLToPath(new URL('block-writer.mjs', import.meta.url)), {
      workerData: {
        storeUrl: dist('drivers/memory-store.js'),
        gateUrl: dist('sync/gate.js'),
        randomUrl: dist('util/random.js'),
        mapUrl: dist('sync/allocation-map.js'),
        disk: disk.driver?.describe?.(),
        gate: disk.gate.words,
        inside: this.inside,
        stop: this.#stop,
        lane: index + 1,
        from: GUEST_CLUSTERS + index * WORKER_CLUSTERS,
        clusters: WORKER_CLUSTERS,
        seed: seed + index,
        reply,
      },
    })
    return new Promise((resolve, reject) => {
      worker.on('error', reject)
      worker.on('message', (message: WorkerReport | Ask) => {
        if ('op' in message) void serve(user, message, reply)
        else resolve(message)
      })
    })
  }
}

interface Ask {
  readonly op: 'flush' | 'discard'
  readonly offset: number
  readonly bytes: number
}

/** Does for a worker what it cannot do itself, and wakes it. */
async function serve(
  user: BlockBackend,
  { op, offset, bytes }: Ask,
  reply: Int32Array,
): Promise<void> {
  let outcome = 1
  try {
    await (op === 'flush' ? user.flush() : user.pdiscard(offset, bytes))
  } catch {
    outcome = 2
  }
  Atomics.store(reply, 0, outcome)
  Atomics.notify(reply, 0)
}
