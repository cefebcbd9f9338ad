/**
 * A writer of the replication stress test in a thread of its own: writes sectors to an export over
 * NBD until it is refused or told to stop, and notes when each write began and was acknowledged.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { client, nextRun, stopped, tick } from '../support/nbd-writer.mjs'

const { worker } = workerData
const SECTOR = 512
const writes = []
let refused
parentPort.postMessage('ready')

for (let n = 1; !stopped(); n++) {
  const tag = ((worker + 1) << 24) | n
  const { sector, count, data } = nextRun(tag)
  const began = tick()
  try {
    await client.write(sector * SECTOR, data)
  } catch (error) {
    refused = { code: error.code, message: error.message, began }
    break
  }
  writes.push(sector, count, tag, began, tick())
}

await client.disconnect()
parentPort.postMessage({ writes, refused })
