/**
 * One client of the checkpoint loop, in a thread of its own: writes its own stripes of an export
 * over NBD, reads some of them back, and notes when each began and ended.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { HostClock, NbdClient } from '../../dist/src/index.js'

const { path, exportName, shared, worker, workers, tagBase, sectors, stripe, seed } = workerData
const words = new Int32Array(shared)
const SECTOR = 512
const tick = () => Atomics.add(words, 0, 1)

let state = (seed ^ Math.imul(worker + 1, 0x9e3779b9)) >>> 0
const below = (n) => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0
  return Math.floor((state / 0x1_0000_0000) * n)
}

const address = { type: 'unix', path }
const client = await NbdClient.connect({ ctx: { clock: new HostClock() }, address, exportName })
const buf = new Uint32Array((stripe * SECTOR) / 4)
const bytes = new Uint8Array(buf.buffer)
const stripes = Math.floor(sectors / stripe / workers)
const writes = []
const reads = []
let failure
parentPort.postMessage('ready')

try {
  for (let n = 1; Atomics.load(words, 1) === 0; n++) {
    const start = below(stripe)
    const sector = (worker + workers * below(stripes)) * stripe + start
    const count = 1 + below(stripe - start)
    const tag = (((tagBase + worker) << 24) | n) >>> 0
    buf.fill(tag, 0, (count * SECTOR) / 4)
    const began = tick()
    await client.write(sector * SECTOR, bytes.subarray(0, count * SECTOR))
    writes.push(sector, count, tag, began, tick())
    Atomics.add(words, 2, 1)
    if (below(8) !== 0) continue
    const from = tick()
    await client.read(sector * SECTOR, bytes.subarray(0, SECTOR))
    reads.push(sector, buf[0], from, tick())
  }
} catch (error) {
  failure = `${error.code}: ${error.message}`
}
await client.disconnect()
parentPort.postMessage({ writes, reads, failure })
