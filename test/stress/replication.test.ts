/**
 * Threads write over NBD what a primary would forward, coroutines write as the secondary's guest,
 * and meanwhile checkpoints and a failover happen; every sector must be explained by some history.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { expect, test } from 'vitest'
import type { BlockBackend } from '../../src/block/backend.ts'
import type { Coroutine } from '../../src/coroutine/coroutine.ts'
import { Runtime } from '../../src/runtime/runtime.ts'
import { Random } from '../../src/util/random.ts'
import type { DiskKind } from '../support/replication-proof.ts'
import { addSecondary } from '../support/secondary.ts'
import { History, type Read, ReplicationModel, type Span, type Write } from './replication-model.ts'

const SECTOR = 512
const SECTORS = 8192
const SIZE = SECTORS * SECTOR
const WORKERS = 3
const GUESTS = 3
/** Sectors of a stripe: small enough that a copied cluster has parts of several writers. */
const EXPORT_STRIPE = 24
const GUEST_STRIPE = 10
/** Rounds played at most until a judge who misses checkpoints has objected once. */
const MOST_ROUNDS = 50
const CHECKPOINTS = 12
const SEED = Number(process.env.SEED ?? Math.floor(Math.random() * 0x1_0000_0000))

/** What a thread reports. */
interface Report {
  readonly writes: readonly number[]
  readonly refused?: { readonly code: string; readonly message: string; readonly began: number }
}

/** A secondary with its two exports, and everything that happens to it. */
class Round {
  readonly words = new Int32Array(new SharedArrayBuffer(8))
  readonly forwarded = new History()
  readonly guest = new History()
  readonly reads: Read[] = []
  readonly checkpoints: Span[] = []
  readonly runtime: Runtime
  readonly folder: string
  readonly random: Random
  guestWrites = 0
  #stopped = false
  #waiting: { readonly target: number; readonly resolve: () => void }[] = []

  constructor(runtime: Runtime, folder: string, seed: number) {
    this.runtime = runtime
    this.folder = folder
    this.random = new Random(seed)
  }

  tick(): number {
    return Atomics.add(this.words, 0, 1)
  }

  async span(work: () => Promise<unknown>): Promise<Span> {
    const start = this.tick()
    await work()
    return { start, end: this.tick() }
  }

  /** Waits until the guest has done so many more writes. */
  guestWritesMore(count: number): Promise<void> {
    const target = this.guestWrites + count
    return new Promise((resolve) => this.#waiting.push({ target, resolve }))
  }

  /** One coroutine of the guest: writes its own stripes and reads back what it finds there. */
  async *coGuest(disk: BlockBackend, index: number, seed: number): Coroutine<void> {
    const random = new Random(seed)
    const words = new Uint32Array((GUEST_STRIPE * SECTOR) / 4)
    const bytes = new Uint8Array(words.buffer)
    const stripes = Math.floor(SECTORS / GUEST_STRIPE / GUESTS)
    for (let n = 1; !this.#stopped; n++) {
      const start = random.int(GUEST_STRIPE)
      const sector = (index + GUESTS * random.int(stripes)) * GUEST_STRIPE + start
      const count = 1 + random.int(GUEST_STRIPE - start)
      const tag = (((0x80 + index) << 24) | n) >>> 0
      const part = bytes.subarray(0, count * SECTOR)
      words.fill(tag)
      const began = this.tick()
      yield* disk.coPwrite(sector * SECTOR, part)
      this.guest.add(sector, count, { tag, start: began, end: this.tick() })
      this.#written()
      if (random.chance(0.3)) {
        const start = this.tick()
        yield* disk.coPread(sector * SECTOR, part)
        const span = { start, end: this.tick() }
        for (const [i, tag] of tagsOf(part).entries())
          this.reads.push({ sector: sector + i, tag, ...span })
      }
      yield
    }
  }

  stop(): void {
    this.#stopped = true
    Atomics.store(this.words, 1, 1)
  }

  #written(): void {
    this.guestWrites++
    this.#waiting = this.#waiting.filter(({ target, resolve }) => {
      if (this.guestWrites < target) return true
      resolve()
      return false
    })
  }
}

/** The tag of each sector; a sector with more than one content counts as -1. */
function tagsOf(bytes: Uint8Array): number[] {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
  const perSector = SECTOR / 4
  return Array.from({ length: words.length / perSector }, (_, sector) => {
    const part = words.subarray(sector * perSector, (sector + 1) * perSector)
    return part.every((word) => word === part[0]) ? (part[0] as number) : -1
  })
}

/** Starts a thread; answers once it is connected, with its report to come. */
async function startWriter(
  round: Round,
  socket: string,
  worker: number,
): Promise<{ readonly report: Promise<Report> }> {
  const workerData = {
    path: socket,
    exportName: 'local',
    shared: round.words.buffer,
    worker,
    workers: WORKERS,
    sectors: SECTORS,
    stripe: EXPORT_STRIPE,
    seed: round.random.uint32(),
  }
  const thread = new Worker(new URL('./replication-writer.mjs', import.meta.url), { workerData })
  const failed = new Promise<never>((_, reject) => {
    thread.once('error', reject)
    thread.once('exit', (code) => reject(new Error(`writer ${worker} ended with ${code}`)))
  })
  const message = <T>(): Promise<T> => new Promise((resolve) => thread.once('message', resolve))
  await Promise.race([message<string>(), failed])
  return { report: Promise.race([message<Report>(), failed]) }
}

async function readAll(disk: BlockBackend): Promise<number[]> {
  const bytes = Buffer.from(new ArrayBuffer(SIZE))
  const pending = disk.pread(0, bytes)
  if (pending !== undefined) await pending
  return tagsOf(bytes)
}

function addReport(round: Round, { writes }: Report): void {
  for (let at = 0; at < writes.length; at += 5) {
    const [sector, count, tag, start, end] = writes.slice(at, at + 5) as [
      number,
      number,
      number,
      number,
      number,
    ]
    const write: Write = { tag: tag >>> 0, start, end }
    round.forwarded.add(sector, count, write)
  }
}

/** Judges everything that was seen; a sentence when no history explains it. */
function judge(
  round: Round,
  checkpoints: readonly Span[],
  top: number[],
  local: number[],
): string | undefined {
  const model = new ReplicationModel(round.forwarded, round.guest, checkpoints)
  const start = round.tick()
  const view = top.map((tag, sector): Read => ({ sector, tag, start, end: start + 1 }))
  const differs = top.findIndex((tag, sector) => tag !== local[sector])
  if (differs >= 0)
    return `after the merge sector ${differs} of the disk is not what the guest sees`
  return model.judge(round.reads) ?? model.judge(view) ?? model.oneInstant(top)
}

async function playRound(
  kind: DiskKind,
  seed: number,
): Promise<{ round: Round; reports: Report[]; failover: Span; blind: string | undefined }> {
  const folder = mkdtempSync(join(tmpdir(), 'stress-'))
  const socket = join(folder, 'nbd')
  const runtime = await Runtime.create()
  try {
    const round = new Round(runtime, folder, seed)
    await addSecondary(runtime, folder, { kind: kind, size: SIZE }, ['local'])
    const disk = await runtime.openBackend('top')
    await runtime.replication.startAll('secondary')
    const writers: Promise<Report>[] = []
    for (let worker = 0; worker < WORKERS; worker++) {
      writers.push((await startWriter(round, socket, worker)).report)
    }
    const guests = Array.from({ length: GUESTS }, (_, index) => {
      const guestSeed = round.random.uint32()
      return runtime.ctx.spawn(() => round.coGuest(disk, index, guestSeed), {
        name: `guest ${index}`,
      })
    })
    for (let n = 0; n < CHECKPOINTS; n++) {
      await round.guestWritesMore(1 + round.random.int(200))
      round.checkpoints.push(await round.span(() => runtime.replication.checkpointAll()))
    }
    await round.guestWritesMore(200)
    const failover = await round.span(() => runtime.replication.stopAll(true))
    await round.guestWritesMore(100)
    await runtime.replication.settled()
    round.stop()
    for (const guest of guests) await guest.join()
    const reports = await Promise.all(writers)
    for (const report of reports) addReport(round, report)
    const top = await readAll(disk)
    const base = await runtime.openBackend('local', { perm: 1, shared: 15 })
    const local = await readAll(base)
    const sentence = judge(round, round.checkpoints, top, local)
    // A judge that missed the later checkpoints objects, unless the threads wrote little since.
    const blind = judge(round, round.checkpoints.slice(0, CHECKPOINTS / 2), top, local)
    if (sentence !== undefined) throw new Error(`${sentence}; replay with SEED=${SEED}`)
    await base.close()
    await disk.close()
    return { round, reports, failover, blind }
  } finally {
    await runtime.close()
    rmSync(folder, { recursive: true, force: true })
  }
}

test.each(['memory', 'qcow2'] as const)(
  'replication / stress / %s / every sector has a history through checkpoints and failovers',
  async (kind) => {
    const seeds = new Random(SEED)
    const limit = performance.now() + 5_000
    let rounds = 0
    let objections = 0
    do {
      const { round, reports, failover, blind } = await playRound(kind, seeds.uint32())
      expect(round.checkpoints).toHaveLength(CHECKPOINTS)
      expect(round.guestWrites).toBeGreaterThan(CHECKPOINTS)
      for (const { writes, refused } of reports) {
        expect(writes.length, 'a thread wrote nothing').toBeGreaterThan(0)
        expect(refused, 'a late write of the primary was accepted').toBeDefined()
        for (let at = 0; at < writes.length; at += 5) {
          const began = writes[at + 3] as number
          expect(began, 'acknowledged after the failover').toBeLessThan(failover.end)
        }
      }
      rounds++
      if (blind !== undefined) objections++
    } while (performance.now() < limit || (objections === 0 && rounds < MOST_ROUNDS))
    expect(objections, `a blind judge never objected; SEED=${SEED}`).toBeGreaterThan(0)
    console.log(`replication stress, ${kind}: ${rounds} rounds, SEED=${SEED}`)
  },
  60_000,
)
