/**
 * A writer of the replication stress test in a thread of its own: writes sectors to an export over
 * NBD until it is refused or told to stop, and notes when each write began and was acknowledged.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { HostClock, NbdClient } from '../../dist/src/index.js'

const { path, exportName, shared, worker, workers, sectors, stripe, seed } = workerData
const words = new Int32Array(shared)
const TICK = 0
const STOP = 1
const tick = () => Atomics.add(words, TICK, 1)

let state = (seed ^ Math.imul(worker + 1, 0x9e3779b9)) >>> 0
const below = (n) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return Math.floor((state / 0x1_0000_0000) * n)
}

const SECTOR = 512
const address = { type: 'unix', path }
const client = await NbdClient.connect({ ctx: { clock: new HostClock() }, address, exportName })
const buf = new Uint32Array((stripe * SECTOR) / 4)
const bytes = new Uint8Array(buf.buffer)
const stripes = Math.floor(sectors / stripe / workers)
const writes = []
let refused
parentPort.postMessage('ready')

for (let n = 1; Atomics.load(words, STOP) === 0; n++) {
  const first = (worker + workers * below(stripes)) * stripe
  const start = below(stripe)
  const count = 1 + below(stripe - start)
  const tag = ((worker + 1) << 24) | n
  buf.fill(tag, 0, (count * SECTOR) / 4)
  const began = tick()
  try {
    await client.write((first + start) * SECTOR, bytes.subarray(0, count * SECTOR))
  } catch (error) {
    refused = { code: error.code, message: error.message, began }
    break
  }
  writes.push(first + start, count, tag, began, tick())
}

await client.disconnect()
parentPort.postMessage({ writes, refused })
