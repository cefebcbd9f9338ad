/**
 * One client of the checkpoint loop, in a thread of its own: writes its own stripes of an export
 * over NBD, reads some of them back, and notes when each began and ended.
 */
import { parentPort, workerData } from 'node:worker_threads'
import {
  below,
  bytes,
  client,
  firstWord,
  nextRun,
  stopped,
  tick,
  words,
} from '../support/nbd-writer.mjs'

const { worker, tagBase } = workerData
const SECTOR = 512
const writes = []
const reads = []
let failure
parentPort.postMessage('ready')

try {
  for (let n = 1; !stopped(); n++) {
    const tag = (((tagBase + worker) << 24) | n) >>> 0
    const { sector, count, data } = nextRun(tag)
    const began = tick()
    await client.write(sector * SECTOR, data)
    writes.push(sector, count, tag, began, tick())
    Atomics.add(words, 2, 1)
    if (below(8) !== 0) continue
    const from = tick()
    await client.read(sector * SECTOR, bytes.subarray(0, SECTOR))
    reads.push(sector, firstWord(), from, tick())
  }
} catch (error) {
  failure = `${error.code}: ${error.message}`
}
await client.disconnect()
parentPort.postMessage({ writes, reads, failure })
