/**
 * Jobs between memory disks against a plain copy loop over the same buffers.
 *
 * Invariants:
 * - The plain loop runs in a worker thread, as the jobs do, in pieces of a job's size.
 * - Every way writes memory that was written before, so that none pays for fresh pages.
 */
import { randomFillSync } from 'node:crypto'
import { Worker } from 'node:worker_threads'
import {
  type RunningJob,
  Runtime,
  startBackup,
  startCommit,
  startMirror,
  startStream,
} from '../src/index.ts'
import type { BenchRow } from './measure.ts'

const MiB = 1024 * 1024
const SIZE = 512 * MiB
const ROUNDS = 7

const PLAIN = `
const { parentPort, workerData: { from, to, piece } } = require('node:worker_threads')
const pairs = from.map((buffer, i) => [new Uint8Array(buffer), new Uint8Array(to[i])])
parentPort.on('message', () => {
  for (const [a, b] of pairs)
    for (let at = 0; at < a.length; at += piece) b.set(a.subarray(at, at + piece), at)
  parentPort.postMessage(0)
})`

/** The buffers behind a memory disk. */
function buffersOf(runtime: Runtime, name: string): readonly SharedArrayBuffer[] {
  const description = runtime.graph.find(name)?.driver?.describe?.()
  return description?.chunks as readonly SharedArrayBuffer[]
}

function plainCopy(runtime: Runtime): { worker: Worker; run(): Promise<number> } {
  const [from, to] = ['top', 'target'].map((name) => buffersOf(runtime, name))
  const worker = new Worker(PLAIN, { eval: true, workerData: { from, to, piece: MiB } })
  const run = async (): Promise<number> => {
    const start = performance.now()
    worker.postMessage(0)
    await new Promise((resolve) => worker.once('message', resolve))
    return performance.now() - start
  }
  return { worker, run }
}

async function fill(runtime: Runtime, name: string): Promise<void> {
  const disk = await runtime.openBackend(name)
  const bytes = randomFillSync(new Uint8Array(MiB))
  for (let at = 0; at < SIZE; at += MiB) await disk.pwrite(at, bytes)
  await disk.close()
}

/** Starts a job and answers milliseconds until everything is copied; ends it if it goes on. */
async function timed(start: () => Promise<RunningJob>, over: 'done' | 'ready'): Promise<number> {
  const begin = performance.now()
  const job = await start()
  await job[over]
  const ms = performance.now() - begin
  if (over === 'ready') await job.cancel()
  return ms
}

/** A stream needs a layer that holds nothing yet; its memory is fresh, so the first writes pay. */
async function timeStream(runtime: Runtime): Promise<number> {
  await runtime.addNode({ driver: 'memory', 'node-name': 'thin', size: SIZE, backing: 'base' })
  const ms = await timed(() => startStream(runtime, { top: 'thin' }), 'done')
  await runtime.removeNode('thin')
  return ms
}

/** Each job that copies the whole disk. */
function waysOf(runtime: Runtime): Record<string, () => Promise<number>> {
  const pair = { source: 'top', target: 'target' }
  return {
    backup: () => timed(() => startBackup(runtime, pair), 'done'),
    'commit (active)': () => timed(() => startCommit(runtime, { top: 'top' }), 'ready'),
    mirror: () => timed(() => startMirror(runtime, pair), 'ready'),
    stream: () => timeStream(runtime),
  }
}

/** Rows: throughput of jobs between memory disks as a share of the plain loop. */
export async function memoryRows(): Promise<BenchRow[]> {
  await using runtime = await Runtime.create()
  const memory = { driver: 'memory', size: SIZE }
  await runtime.addNode({ ...memory, 'node-name': 'base' })
  await runtime.addNode({ ...memory, 'node-name': 'top', backing: 'base' })
  await runtime.addNode({ ...memory, 'node-name': 'target' })
  for (const name of ['base', 'top', 'target']) await fill(runtime, name)
  const plain = plainCopy(runtime)
  const jobs = waysOf(runtime)
  const best = await bestMs({ plain: plain.run, ...jobs }, ROUNDS)
  await plain.worker.terminate()
  const base = best.plain ?? Number.NaN
  return Object.keys(jobs).map((name) => {
    const ms = best[name] ?? Number.NaN
    return {
      what: `${name}, memory to memory / plain copy loop in a worker (bytes a second)`,
      ratio: base / ms,
      ...(name === 'backup' || name.startsWith('commit') ? { goal: '>= 0.8' } : {}),
      detail: `${rate(ms, SIZE)} / ${rate(base, SIZE)}`,
    }
  })
}

/** Milliseconds of each way, best of rounds in which they alternate. */
export async function bestMs(
  ways: Readonly<Record<string, () => Promise<number>>>,
  rounds: number,
): Promise<Record<string, number>> {
  const best: Record<string, number> = {}
  for (let round = 0; round < rounds; round++)
    for (const [name, run] of Object.entries(ways))
      best[name] = Math.min(best[name] ?? Number.POSITIVE_INFINITY, await run())
  return best
}

/** A rate for humans. */
export function rate(ms: number, bytes: number): string {
  return `${(bytes / MiB / (ms / 1000)).toFixed(0)} MiB/s`
}
