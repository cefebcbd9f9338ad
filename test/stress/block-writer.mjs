/**
 * A worker thread that uses a shared memory disk between drains until it is told to stop: writes, reads
 * and zeroes of its own clusters behind the main thread's back; flushes and discards by way of it.
 *
 * It judges its own reads: nobody else writes to its clusters.
 */
import { parentPort, workerData } from 'node:worker_threads'

const { MemoryStore } = await import(workerData.storeUrl)
const { Gate } = await import(workerData.gateUrl)
const { Random } = await import(workerData.randomUrl)
const { CLUSTER } = await import(workerData.mapUrl)

const { from, clusters, inside, stop, reply, lane, seed } = workerData
const store = MemoryStore.attach(workerData.disk)
const gate = new Gate(workerData.gate, 0, lane)
const random = new Random(seed)
const buf = new Uint8Array(store.clusterSize)
const words = new Uint32Array(buf.buffer)
/** What each cluster may show. */
const last = Array.from({ length: clusters }, () => [0])
const done = { writes: 0, reads: 0, zeroes: 0, discards: 0, flushes: 0 }
const complaints = []
let tag = lane * 0x100_0000

const offsetOf = (cluster) => (from + cluster) * store.clusterSize

/** Runs `act` as one request that a drain waits for, and that no drained section lets in. */
function request(act) {
  gate.enterBlocking()
  Atomics.add(inside, 0, 1)
  act()
  Atomics.sub(inside, 0, 1)
  gate.end()
}

/** Asks the main thread for a request and waits for its end, with nothing in flight here. */
function ask(op, cluster) {
  Atomics.store(reply, 0, 0)
  parentPort.postMessage({ op, offset: offsetOf(cluster), bytes: store.clusterSize })
  Atomics.wait(reply, 0, 0)
  if (Atomics.load(reply, 0) !== 1 && complaints.length < 20) complaints.push(`${op} failed`)
}

function write(cluster) {
  tag++
  words.fill(tag)
  request(() => store.writeClusters(offsetOf(cluster), buf))
  last[cluster] = [tag]
  done.writes++
}

function read(cluster) {
  request(() => store.read(offsetOf(cluster), buf))
  const torn = words.some((word) => word !== words[0])
  if ((torn || !last[cluster].includes(words[0])) && complaints.length < 20)
    complaints.push(
      `cluster ${from + cluster} shows ${words[0]}, not ${last[cluster].join(' or ')}`,
    )
  done.reads++
}

function zero(cluster) {
  request(() => store.map.setRun(from + cluster, 1, CLUSTER.ZERO))
  last[cluster] = [0]
  done.zeroes++
}

while (Atomics.load(stop, 0) === 0) {
  const cluster = random.int(clusters)
  const choice = random.int(200)
  if (choice < 100) write(cluster)
  else if (choice < 180) read(cluster)
  else if (choice < 196) zero(cluster)
  else if (choice < 198) {
    ask('flush', cluster)
    done.flushes++
  } else {
    // Where a filter is in the way a discard does nothing.
    ask('discard', cluster)
    last[cluster] = [...last[cluster], 0]
    done.discards++
  }
}
parentPort.postMessage({ done, complaints, last })
