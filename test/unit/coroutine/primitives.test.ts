import { expect, test } from 'vitest'
import { CoMutex } from '../../../src/coroutine/co-mutex.ts'
import { CoQueue } from '../../../src/coroutine/co-queue.ts'
import { CoRwLock } from '../../../src/coroutine/co-rw-lock.ts'
import { CoSemaphore } from '../../../src/coroutine/co-semaphore.ts'
import type { Coroutine, Pending } from '../../../src/coroutine/coroutine.ts'
import { run, runValue } from '../../../src/coroutine/inline.ts'
import { PauseControl, pausePoint } from '../../../src/coroutine/pause.ts'
import { TaskPool } from '../../../src/coroutine/task-pool.ts'
import { BlockError } from '../../../src/util/errors.ts'

/** Follows an operation: writes its name down when it is done. */
function follow(log: string[], name: string, op: Pending): void {
  if (op === undefined) log.push(name)
  else void op.then(() => log.push(name))
}

async function settle(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve))
}

test('coroutine / co-mutex / free mutex is taken inline', () => {
  const mutex = new CoMutex()
  expect(mutex.lock()).toBeUndefined()
  expect(mutex.tryLock()).toBe(false)
  mutex.unlock()
  expect(mutex.locked).toBe(false)
  expect(() => mutex.unlock()).toThrow('unlock follows lock')
})

test('coroutine / co-mutex / contended unlock hands over, nobody gets in between', async () => {
  const mutex = new CoMutex()
  const log: string[] = []
  mutex.lock()
  follow(log, 'a', mutex.lock())
  follow(log, 'b', mutex.lock())
  mutex.unlock()
  // The mutex belongs to a already, though a did not run yet.
  expect(mutex.tryLock()).toBe(false)
  follow(log, 'c', mutex.lock())
  await settle()
  expect(log).toEqual(['a'])
  mutex.unlock()
  mutex.unlock()
  await settle()
  expect(log).toEqual(['a', 'b', 'c'])
  mutex.unlock()
  expect(mutex.locked).toBe(false)
})

test('coroutine / co-mutex / withLock unlocks after an error', async () => {
  const mutex = new CoMutex()
  await expect(
    mutex.withLock(() => {
      throw new Error('no')
    }),
  ).rejects.toThrow('no')
  expect(mutex.locked).toBe(false)
})

test('coroutine / co-queue / waiter is queued before its lock is free', async () => {
  const mutex = new CoMutex()
  const queue = new CoQueue()
  const log: string[] = []
  mutex.lock()
  follow(log, 'woken', queue.wait(mutex))
  expect(mutex.locked).toBe(false)
  expect(queue.length).toBe(1)
  expect(queue.next()).toBe(true)
  expect(log).toEqual([])
  await settle()
  expect(log).toEqual(['woken'])
  expect(mutex.locked).toBe(true)
  expect(queue.next()).toBe(false)
})

test('coroutine / co-queue / restartAll wakes in order and not who comes later', async () => {
  const queue = new CoQueue()
  const log: string[] = []
  for (const name of ['a', 'b', 'c']) follow(log, name, queue.wait())
  expect(queue.restartAll()).toBe(3)
  follow(log, 'd', queue.wait())
  await settle()
  expect(log).toEqual(['a', 'b', 'c'])
  expect(queue.length).toBe(1)
  queue.next()
})

test('coroutine / co-rw-lock / readers share, a waiting writer keeps later readers out', async () => {
  const lock = new CoRwLock()
  const log: string[] = []
  follow(log, 'r1', lock.readLock())
  follow(log, 'r2', lock.readLock())
  follow(log, 'w1', lock.writeLock())
  follow(log, 'r3', lock.readLock())
  follow(log, 'r4', lock.readLock())
  follow(log, 'w2', lock.writeLock())
  expect(log).toEqual(['r1', 'r2'])
  lock.unlock()
  await settle()
  expect(log).toEqual(['r1', 'r2'])
  lock.unlock()
  await settle()
  expect(log).toEqual(['r1', 'r2', 'w1'])
  lock.unlock()
  await settle()
  expect(log).toEqual(['r1', 'r2', 'w1', 'r3', 'r4'])
  lock.unlock()
  lock.unlock()
  await settle()
  expect(log.at(-1)).toBe('w2')
  expect(lock.writing).toBe(true)
})

test('coroutine / co-rw-lock / downgrade lets queued readers in at once', async () => {
  const lock = new CoRwLock()
  const log: string[] = []
  lock.writeLock()
  follow(log, 'r', lock.readLock())
  follow(log, 'w', lock.writeLock())
  lock.downgrade()
  await settle()
  expect(log).toEqual(['r'])
  expect(lock.readers).toBe(2)
  lock.unlock()
  lock.unlock()
  await settle()
  expect(log).toEqual(['r', 'w'])
})

test('coroutine / co-rw-lock / upgrade of a lone reader is inline, else waits its turn', async () => {
  const lock = new CoRwLock()
  const log: string[] = []
  lock.readLock()
  expect(lock.upgrade()).toBeUndefined()
  lock.downgrade()
  lock.readLock()
  follow(log, 'w', lock.writeLock())
  follow(log, 'up', lock.upgrade())
  expect(lock.readers).toBe(1)
  lock.unlock()
  await settle()
  expect(log).toEqual(['w'])
  lock.unlock()
  await settle()
  expect(log).toEqual(['w', 'up'])
})

test('coroutine / co-semaphore / a big request is not overtaken', async () => {
  const stock = new CoSemaphore(4)
  const log: string[] = []
  expect(stock.get(3)).toBeUndefined()
  follow(log, 'big', stock.get(4))
  follow(log, 'small', stock.get(1))
  stock.put(1)
  await settle()
  expect(log).toEqual([])
  stock.put(2)
  await settle()
  expect(log).toEqual(['big'])
  stock.put(4)
  await settle()
  expect(log).toEqual(['big', 'small'])
  stock.put(1)
  expect(stock.free).toBe(4)
  expect(() => stock.get(5)).toThrow('at most the whole stock')
})

test('coroutine / task-pool / bounded, first error sticks, waitAll leaves nothing running', async () => {
  const pool = new TaskPool(2)
  const ends: ((error?: Error) => void)[] = []
  const task = (): Promise<void> =>
    new Promise((resolve, reject) => ends.push((error) => (error ? reject(error) : resolve())))
  await pool.start(task)
  await pool.start(task)
  const third = pool.start(task)
  await settle()
  expect(ends.length).toBe(2)
  ends[0]?.(new Error('first'))
  await third
  ends[1]?.(new Error('second'))
  ends[2]?.()
  await expect(pool.waitAll()).rejects.toThrow('first')
  expect(pool.busy).toBe(0)
  await pool.start(() => undefined)
  await expect(pool.waitAll()).rejects.toThrow('first')
})

test('coroutine / pause / held at a pause point until resumed; cancel ends it with ECANCELED', async () => {
  const control = new PauseControl()
  const log: string[] = []
  async function work(): Promise<void> {
    for (;;) {
      for await (const _ of pausePoint(control)) log.push('turn')
    }
  }
  control.pause()
  control.pause()
  const end = work()
  await control.whenHeld()
  control.resume()
  await settle()
  expect(control.held).toBe(1)
  control.cancel()
  const error = await end.catch((reason: unknown) => reason)
  expect(error).toBeInstanceOf(BlockError)
  expect((error as BlockError).code).toBe('ECANCELED')
  expect(control.held).toBe(0)
})

test('coroutine / inline / yield* over finished, pending and failing operations', async () => {
  async function* work(): Coroutine<string> {
    yield* run(undefined)
    yield* run(undefined)
    yield* run(Promise.resolve())
    const a = yield* runValue(1)
    const b = yield* runValue(Promise.resolve(2))
    try {
      yield* run(Promise.reject(new Error('bad')))
    } catch (error) {
      return `${a + b} ${(error as Error).message}`
    }
    return 'no error'
  }
  const end = await work().next()
  expect(end).toEqual({ done: true, value: '3 bad' })
})
