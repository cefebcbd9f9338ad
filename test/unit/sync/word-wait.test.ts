import { afterEach, expect, test, vi } from 'vitest'
import { shared } from '../../../src/sync/atomics.ts'
import { ContextLock } from '../../../src/sync/context-lock.ts'
import { Gate } from '../../../src/sync/gate.ts'
import { pendingWaits } from '../../../src/sync/keep-alive.ts'
import { ChangeWait, WordWait } from '../../../src/sync/word-wait.ts'

afterEach(() => {
  vi.restoreAllMocks()
  expect(pendingWaits()).toBe(0)
})

test('sync / word wait / a thousand waits on one word are one host wait', async () => {
  const host = vi.spyOn(shared, 'waitAsync')
  const gate = Gate.create()
  for (let round = 0; round < 1000; round += 1) {
    gate.begin()
    const waits = [gate.whenIdle(), gate.whenIdle()]
    gate.end()
    await Promise.all(waits)
  }
  expect(host).toHaveBeenCalledTimes(1)
  gate.dispose()
})

test('sync / word wait / a lock waited for again and again has one host wait, too', async () => {
  const host = vi.spyOn(shared, 'waitAsync')
  const lock = ContextLock.create(1)
  const other = new ContextLock(lock.words, 0, 2)
  for (let round = 0; round < 200; round += 1) {
    other.acquireBlocking()
    const wait = lock.acquire()
    expect(wait).toBeInstanceOf(Promise)
    // Another view of the same thread: the host tells it, so a host wait is used up each time.
    other.release()
    await wait
    lock.release()
  }
  expect(host.mock.calls.length).toBeLessThanOrEqual(200)
  lock.dispose()
})

test('sync / word wait / registers before the last look and unregisters once', async () => {
  const words = new Int32Array(new SharedArrayBuffer(4))
  const log: string[] = []
  const wait = new WordWait(words, 0, {
    ready: (value) => value > 0,
    // The change comes in between the two looks; the wait is over at once.
    register: () => {
      log.push('register')
      words[0] = 1
    },
    unregister: () => log.push('unregister'),
  })
  expect(wait.wait()).toBeUndefined()
  expect([wait.waiting, pendingWaits()]).toEqual([false, 0])
  expect(wait.wait()).toBeUndefined()
  expect(log).toEqual(['register', 'unregister'])
})

test('sync / word wait / a change wait is over when the word is not what was seen', async () => {
  const words = new Int32Array(new SharedArrayBuffer(4))
  const wait = new ChangeWait(words, 0)
  expect(wait.wait(7)).toBeUndefined()
  const pending = wait.wait(0)
  expect(pending).toBeInstanceOf(Promise)
  shared.add(words, 0, 1)
  shared.notify(words, 0)
  await pending
  const again = wait.wait(1)
  shared.add(words, 0, 1)
  wait.poke()
  await again
  wait.release()
})
