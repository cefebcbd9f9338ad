/**
 * Checkpoints in a row while clients in threads write both sides over NBD. `STRESS_SECONDS` says how
 * long for each kind of disk; rounds are short, and each is judged as a whole.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { expect, it } from 'vitest'
import { Runtime } from '../../src/runtime/runtime.ts'
import { Random } from '../../src/util/random.ts'
import { History, type Read, ReplicationModel, type Span } from '../stress/replication-model.ts'
import type { DiskKind } from '../support/replication-proof.ts'
import { addSecondary } from '../support/secondary.ts'
import { turn } from '../support/tap.ts'

const SECTOR = 512
const SECTORS = 8192
const SIZE = SECTORS * SECTOR
const ROUND_MS = 3000
const SECONDS = Number(process.env.STRESS_SECONDS ?? 3)
const SEED = Number(process.env.SEED ?? Math.floor(Math.random() * 0x1_0000_0000))
/** Clients of each side, the sectors of a stripe, and where their tags begin. */
const SIDES = {
  local: { workers: 2, stripe: 24, tagBase: 1 },
  top: { workers: 2, stripe: 10, tagBase: 0x81 },
} as const

interface Report {
  readonly writes: readonly number[]
  readonly reads: readonly number[]
  readonly failure?: string
}

/** What a round counted. */
interface Counts {
  checkpoints: number
  writes: number
  reads: number
}

async function build(runtime: Runtime, folder: string, kind: DiskKind): Promise<void> {
  await addSecondary(runtime, folder, { kind, size: SIZE }, ['local', 'top'])
  await runtime.replication.startAll('secondary')
}

async function startClients(path: string, shared: SharedArrayBuffer, random: Random) {
  const reports: { side: keyof typeof SIDES; report: Promise<Report> }[] = []
  for (const side of ['local', 'top'] as const)
    for (let worker = 0; worker < SIDES[side].workers; worker++) {
      const about = { path, exportName: side, shared, worker, sectors: SECTORS, ...SIDES[side] }
      const workerData = { ...about, seed: random.uint32() }
      const thread = new Worker(new URL('./loop-writer.mjs', import.meta.url), { workerData })
      const failed = new Promise<never>((_, reject) => thread.once('error', reject))
      const message = <T>(): Promise<T> => new Promise((done) => thread.once('message', done))
      await Promise.race([message<string>(), failed])
      reports.push({ side, report: Promise.race([message<Report>(), failed]) })
    }
  return reports
}

/** The tag of each sector; -1 where there is more than one content. */
async function tagsOf(runtime: Runtime, node: string): Promise<number[]> {
  const disk = await runtime.openBackend(node, { perm: 1, shared: 15 })
  const bytes = new Uint8Array(SIZE)
  await disk.pread(0, bytes)
  await disk.close()
  const words = new Uint32Array(bytes.buffer)
  return Array.from({ length: SECTORS }, (_, sector) => {
    const part = words.subarray(sector * 128, (sector + 1) * 128)
    return part.every((word) => word === part[0]) ? (part[0] ?? -1) : -1
  })
}

async function playRound(kind: DiskKind, seed: number, ms: number): Promise<Counts> {
  const folder = mkdtempSync(join(tmpdir(), 'loop-'))
  const runtime = await Runtime.create()
  const words = new Int32Array(new SharedArrayBuffer(12))
  const tick = (): number => Atomics.add(words, 0, 1)
  const random = new Random(seed)
  const spans: Span[] = []
  const histories = { local: new History(), top: new History() }
  const reads: Read[] = []
  const counts = { checkpoints: 0, writes: 0, reads: 0 }
  try {
    await build(runtime, folder, kind)
    const clients = await startClients(
      join(folder, 'nbd'),
      words.buffer as SharedArrayBuffer,
      random,
    )
    for (const until = performance.now() + ms; performance.now() < until; ) {
      const seen = Atomics.load(words, 2)
      const wanted = 1 + random.int(60)
      while (Atomics.load(words, 2) - seen < wanted && performance.now() < until) await turn()
      const start = tick()
      await runtime.replication.checkpointAll()
      spans.push({ start, end: tick() })
    }
    Atomics.store(words, 1, 1)
    for (const { side, report } of clients) {
      const { writes, reads: own, failure } = await report
      expect(failure).toBeUndefined()
      counts.writes += writes.length / 5
      for (let at = 0; at < writes.length; at += 5) {
        const [sector, count, tag, start, end] = writes.slice(at, at + 5) as [number, ...number[]]
        const write = { tag: (tag ?? 0) >>> 0, start: start ?? 0, end: end ?? 0 }
        histories[side].add(sector, count ?? 0, write)
      }
      if (side === 'local') continue
      for (let at = 0; at < own.length; at += 4) {
        const [sector = 0, tag = 0, start = 0, end = 0] = own.slice(at, at + 4)
        reads.push({ sector, tag, start, end })
      }
    }
    counts.checkpoints = spans.length
    counts.reads = reads.length
    const model = new ReplicationModel(histories.local, histories.top, spans)
    const now = tick()
    const view = (await tagsOf(runtime, 'top')).map(
      (tag, sector): Read => ({ sector, tag, start: now, end: now + 1 }),
    )
    const say = `replay with SEED=${SEED}`
    expect(model.judge(reads), say).toBeUndefined()
    expect(model.judge(view), say).toBeUndefined()
    // A judge that missed the later checkpoints must object, or it would never object.
    const blind = new ReplicationModel(histories.local, histories.top, spans.slice(0, 1))
    expect(blind.judge(view), say).toBeDefined()
    const local = await tagsOf(runtime, 'local')
    const newest = local.map((_, sector) => histories.local.of(sector).at(-1)?.tag ?? 0)
    expect(local, say).toEqual(newest)
    await runtime.replication.checkpointAll()
    expect(await tagsOf(runtime, 'top'), say).toEqual(local)
    runtime.replication.getErrorAll()
    for (const node of runtime.graph.nodes())
      expect([node.gate.quiesceCount, node.gate.inFlight, node.tracked.size]).toEqual([0, 0, 0])
    await runtime.close()
    if (kind === 'qcow2') checkImages(folder)
    return counts
  } finally {
    await runtime.close()
    rmSync(folder, { recursive: true, force: true })
  }
}

function checkImages(folder: string): void {
  for (const name of ['local', 'hidden', 'active']) {
    const args = ['check', '-f', 'qcow2', join(folder, `${name}.qcow2`)]
    const { error, status, stdout, stderr } = spawnSync('qemu-img', args, { encoding: 'utf8' })
    if (error !== undefined && process.env.CI !== 'true') {
      console.log('skipped: qemu-img is missing')
      return
    }
    expect(status, `${name}: ${stdout}${stderr}`).toBe(0)
  }
}

it.each(['memory', 'qcow2'] as const)(
  'replication / checkpoint loop / %s / views stay explained under load from both sides',
  { timeout: SECONDS * 4000 + 30_000 },
  async (kind) => {
    const seeds = new Random(SEED)
    const total: Counts = { checkpoints: 0, writes: 0, reads: 0 }
    const end = performance.now() + SECONDS * 1000
    do {
      const left = Math.max(end - performance.now(), 200)
      const counts = await playRound(kind, seeds.uint32(), Math.min(ROUND_MS, left))
      for (const name of ['checkpoints', 'writes', 'reads'] as const) total[name] += counts[name]
    } while (performance.now() < end)
    const { checkpoints, writes, reads } = total
    console.log(
      `checkpoint loop, ${kind}: ${checkpoints} checkpoints, ${writes} writes, ` +
        `${reads} reads judged, SEED=${SEED}`,
    )
  },
)
