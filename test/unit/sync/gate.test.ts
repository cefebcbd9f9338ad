import { Worker } from 'node:worker_threads'
import { expect, test } from 'vitest'
import { Gate } from '../../../src/sync/gate.ts'
import { pendingWaits } from '../../../src/sync/keep-alive.ts'

test('sync / gate / idle gate answers inline', () => {
  const gate = Gate.create()
  expect(gate.whenIdle()).toBeUndefined()
  expect(gate.whenOpen()).toBeUndefined()
  gate.begin()
  expect(gate.inFlight).toBe(1)
  gate.end()
  expect(gate.inFlight).toBe(0)
  expect(pendingWaits()).toBe(0)
})

test('sync / gate / all waiters of a thread share one wait and wake on the last end', async () => {
  const gate = Gate.create()
  gate.begin()
  gate.begin()
  const first = gate.whenIdle()
  expect(gate.whenIdle()).toBe(first)
  expect(pendingWaits()).toBe(1)
  gate.end()
  expect(pendingWaits()).toBe(1)
  gate.end()
  expect(pendingWaits()).toBe(0)
  await first
  expect([...gate.words]).toEqual([0, 0, 0])
})

test('sync / gate / quiesce nests, keeps workers out and lets the owner in', async () => {
  const gate = Gate.create()
  expect(gate.quiesce()).toBe(1)
  expect(gate.quiesce()).toBe(2)
  expect(gate.tryEnter()).toBe(false)
  expect(gate.inFlight).toBe(0)
  gate.begin()
  expect(gate.inFlight).toBe(1)
  gate.end()
  const open = gate.whenOpen()
  expect(gate.unquiesce()).toBe(1)
  expect(gate.tryEnter()).toBe(false)
  expect(gate.unquiesce()).toBe(0)
  await open
  expect(gate.tryEnter()).toBe(true)
  gate.end()
})

test('sync / gate / two views in one thread wake each other', async () => {
  const gate = Gate.create()
  const other = new Gate(gate.words)
  gate.begin()
  const idle = gate.whenIdle()
  other.end()
  await idle
  gate.begin()
  const both = [gate.whenIdle(), other.whenIdle()]
  gate.end()
  await Promise.all(both)
  expect([...gate.words]).toEqual([0, 0, 0])
})

test('sync / gate / a missing begin is a mistake of ours', () => {
  const gate = Gate.create()
  expect(() => gate.unquiesce()).toThrow('unquiesce follows quiesce')
})

test('sync / gate / forgive ends what a dead worker held', async () => {
  const gate = Gate.create()
  const worker = new Gate(gate.words, 0, 5)
  expect(worker.tryEnter()).toBe(true)
  expect(worker.tryEnter()).toBe(true)
  worker.end()
  expect(gate.inFlight).toBe(1)
  const idle = gate.whenIdle()
  expect(gate.forgive(5)).toBe(true)
  await idle
  expect(gate.forgive(5)).toBe(false)
  expect([...gate.words]).toEqual([0, 0, 0])
})

const WORKER = `
const { workerData, parentPort } = require('node:worker_threads')
import(workerData.url).then(({ Gate }) => {
  const gate = new Gate(workerData.words)
  const state = workerData.state
  parentPort.postMessage('up')
  while (Atomics.load(state, 0) === 0) {
    gate.enterBlocking()
    Atomics.store(state, 1, 1)
    Atomics.add(state, 2, 1)
    Atomics.store(state, 1, 0)
    gate.end()
  }
})
`

test('sync / gate / a real worker is outside whenever the gate is drained', async () => {
  const gate = Gate.create()
  const state = new Int32Array(new SharedArrayBuffer(12))
  const url = new URL('../../../dist/src/sync/gate.js', import.meta.url).href
  const worker = new Worker(WORKER, { eval: true, workerData: { url, words: gate.words, state } })
  await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
  for (let round = 0; round < 200; round += 1) {
    gate.quiesce()
    await gate.whenIdle()
    expect(Atomics.load(state, 1)).toBe(0)
    const before = Atomics.load(state, 2)
    await new Promise((resolve) => setImmediate(resolve))
    expect(Atomics.load(state, 2)).toBe(before)
    gate.unquiesce()
  }
  Atomics.store(state, 0, 1)
  await new Promise((resolve) => worker.once('exit', resolve))
  expect([...gate.words]).toEqual([0, 0, 0])
  expect(pendingWaits()).toBe(0)
})
