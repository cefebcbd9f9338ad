/** A worker thread that writes to a shared memory disk, between drains, until it is told to stop. */
import { parentPort, workerData } from 'node:worker_threads'

const { MemoryStore } = await import(workerData.storeUrl)
const { Gate } = await import(workerData.gateUrl)

const store = MemoryStore.attach(workerData.disk)
const gate = new Gate(workerData.gate, 0, workerData.ledger)
const { from, clusters, inside, stop } = workerData
const buf = new Uint8Array(store.clusterSize)
let writes = 0
for (let n = 1; Atomics.load(stop, 0) === 0; n++) {
  gate.enterBlocking()
  Atomics.add(inside, 0, 1)
  buf.fill(n & 0xff)
  store.writeClusters((from + (n % clusters)) * store.clusterSize, buf)
  writes++
  Atomics.sub(inside, 0, 1)
  gate.end()
}
parentPort.postMessage(writes)
