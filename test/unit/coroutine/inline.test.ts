import { expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { CoMutex } from '../../../src/coroutine/co-mutex.ts'
import { CoRwLock } from '../../../src/coroutine/co-rw-lock.ts'
import { CoSemaphore } from '../../../src/coroutine/co-semaphore.ts'
import type { Coroutine } from '../../../src/coroutine/coroutine.ts'
import { PauseControl } from '../../../src/coroutine/pause.ts'
import { TaskPool } from '../../../src/coroutine/task-pool.ts'

test('coroutine / inline / what nobody contends for makes no promise', () => {
  const mutex = new CoMutex()
  const lock = new CoRwLock()
  const stock = new CoSemaphore(3)
  const pool = new TaskPool(1)
  const pause = new PauseControl()
  expect(mutex.lock()).toBeUndefined()
  mutex.unlock()
  expect([lock.readLock(), lock.readLock()]).toEqual([undefined, undefined])
  lock.unlock()
  expect(lock.upgrade()).toBeUndefined()
  lock.downgrade()
  lock.unlock()
  expect(lock.writeLock()).toBeUndefined()
  lock.unlock()
  expect([stock.get(2), stock.get()]).toEqual([undefined, undefined])
  stock.put(3)
  expect([pool.waitSlot(), pool.start(() => undefined)]).toEqual([undefined, undefined])
  expect(pool.busy).toBe(0)
  expect(pause.hold()).toBeUndefined()
})

test('coroutine / inline / a task pool without a free place starts the task later, in order', async () => {
  const pool = new TaskPool(1)
  const ends: (() => void)[] = []
  const started: string[] = []
  const task = (name: string) => (): Promise<void> => {
    started.push(name)
    return new Promise((resolve) => ends.push(resolve))
  }
  expect(pool.start(task('a'))).toBeUndefined()
  const waits = [pool.start(task('b')), pool.start(task('c'))]
  for (const wait of waits) expect(wait).toBeInstanceOf(Promise)
  ends.shift()?.()
  await waits[0]
  expect(started).toEqual(['a', 'b'])
  ends.shift()?.()
  await waits[1]
  ends.shift()?.()
  await pool.waitAll()
  expect(started).toEqual(['a', 'b', 'c'])
})

test('coroutine / end / nothing is torn down from outside: neither return nor throw is called', async () => {
  const ctx = new AioContext({ name: 'closing' })
  const torn: string[] = []
  let end = (): void => undefined
  const wait = new Promise<void>((resolve) => {
    end = resolve
  })
  const inner = (async function* (): Coroutine<string> {
    yield wait
    return 'my own end'
  })()
  const watched: Coroutine<string> = {
    next: () => inner.next(),
    return: (value) => {
      torn.push('return')
      return inner.return(value)
    },
    throw: (reason) => {
      torn.push('throw')
      return inner.throw(reason)
    },
    [Symbol.asyncIterator]: () => watched,
    [Symbol.asyncDispose]: async () => {
      torn.push('dispose')
    },
  }
  const handle = ctx.spawn(watched)
  handle.cancel()
  await ctx.close().catch(() => undefined)
  expect([handle.cancelled, handle.state, torn]).toEqual([true, 'waiting', []])
  end()
  expect(await handle.join()).toBe('my own end')
  expect(torn).toEqual([])
})

test('coroutine / budget / a bottom half that never rests lets the host loop turn', async () => {
  const ctx = new AioContext()
  let runs = 0
  let runsAtTurn = 0
  const bh = ctx.newBh(() => {
    runs += 1
    if (runsAtTurn === 0) bh.schedule()
  })
  bh.schedule()
  await new Promise<void>((resolve) => {
    setImmediate(() => {
      runsAtTurn = runs
      resolve()
    })
  })
  // About a millisecond of work, or 512 tasks, and not one host loop more.
  expect(runsAtTurn).toBeGreaterThan(0)
  expect(runsAtTurn).toBeLessThanOrEqual(600)
  await new Promise((resolve) => setImmediate(resolve))
  await ctx.close()
})
