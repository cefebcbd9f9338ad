/** A thread that works on a node behind the main thread's back, as the rules allow it. */
import { closeSync, openSync, readSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'

const { MemoryStore } = await import(workerData.storeUrl)
const { Gate } = await import(workerData.gateUrl)
const { RangeLock } = await import(workerData.rangeUrl)
const { DirtyBitmap } = await import(workerData.bitmapUrl)

const { disk, gateWords, ranges, me, dirty, stop } = workerData
const gate = new Gate(gateWords, 0, me)
const lock = new RangeLock(ranges, 0, me)
const bitmap = new DirtyBitmap(dirty.words, dirty.size, dirty.granularity)

/** Adds one to the first word of a cluster, as a read and a write that nobody may come between. */
function count(store, cluster) {
  const offset = cluster * store.clusterSize
  const buf = new Uint8Array(store.clusterSize)
  gate.enterBlocking()
  const slot = lock.lockBlocking(offset, store.clusterSize, true)
  store.read(offset, buf)
  new Uint32Array(buf.buffer)[0] += 1
  store.writeClusters(offset, buf)
  bitmap.setRange(offset, store.clusterSize)
  lock.unlock(slot)
  gate.end()
}

/** The first byte of a file that a description leads to. */
function firstByte({ filename, offset = 0 }) {
  const fd = openSync(filename, 'r')
  const buf = new Uint8Array(1)
  readSync(fd, buf, 0, 1, offset)
  closeSync(fd)
  return buf[0]
}

parentPort.on('message', ({ view }) => parentPort.postMessage({ first: firstByte(view) }))
if (disk === undefined) parentPort.postMessage({ ready: true })
else {
  const store = MemoryStore.attach(disk)
  let counted = 0
  parentPort.postMessage({ ready: true })
  for (; Atomics.load(stop, 0) === 0; counted++) count(store, counted % workerData.clusters)
  parentPort.postMessage({ counted })
  parentPort.close()
}
