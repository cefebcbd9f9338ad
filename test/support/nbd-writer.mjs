/**
 * What writer threads over NBD share: chance under a seed, ticks of a shared clock, a client, and
 * runs of sectors with one tag within stripes that belong to one writer.
 */
import { workerData } from 'node:worker_threads'
import { HostClock, NbdClient } from '../../dist/src/index.js'

const { path, exportName, shared, worker, workers, sectors, stripe, seed } = workerData
const SECTOR = 512
const stripes = Math.floor(sectors / stripe / workers)
const buf = new Uint32Array((stripe * SECTOR) / 4)

/** Shared words: 0 the clock, 1 not zero when it is time to stop. */
export const words = new Int32Array(shared)
/** The data of the next write, from its start. */
export const bytes = new Uint8Array(buf.buffer)
/** The next moment. */
export const tick = () => Atomics.add(words, 0, 1)
/** Whether it is time to stop. */
export const stopped = () => Atomics.load(words, 1) !== 0

let state = (seed ^ Math.imul(worker + 1, 0x9e3779b9)) >>> 0
/** A number from 0 to below n. */
export const below = (n) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return Math.floor((state / 0x1_0000_0000) * n)
}

const address = { type: 'unix', path }
/** A client of the export. */
export const client = await NbdClient.connect({
  ctx: { clock: new HostClock() },
  address,
  exportName,
})

/** Chooses a run of sectors in a stripe of this writer's own and fills the data with the tag. */
export function nextRun(tag) {
  const first = (worker + workers * below(stripes)) * stripe
  const start = below(stripe)
  const count = 1 + below(stripe - start)
  buf.fill(tag, 0, (count * SECTOR) / 4)
  return { sector: first + start, count, data: bytes.subarray(0, count * SECTOR) }
}

/** The tag in the first word of the data. */
export const firstWord = () => buf[0]
