/** The coroutine and event loop scenarios of the field, by their numbers C01 to C16. */
import { afterEach, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { CoMutex } from '../../../src/coroutine/co-mutex.ts'
import type { Coroutine } from '../../../src/coroutine/coroutine.ts'

let ctx = new AioContext()

afterEach(async () => {
  expect(ctx.report()).toEqual({ coroutines: [], timers: 0, queued: 0 })
  await ctx.close()
  ctx = new AioContext()
})

async function settle(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve))
}

test('aio / C01 / a coroutine knows itself, inside, outside and after a yield', async () => {
  expect(ctx.current).toBeUndefined()
  const seen: boolean[] = []
  const outer = ctx.spawn(async function* (self): Coroutine<void> {
    seen.push(ctx.current === self)
    const inner = ctx.spawn(async function* (mine): Coroutine<void> {
      seen.push(ctx.current === mine)
      yield
      seen.push(ctx.current === mine)
    })
    seen.push(ctx.current === self)
    yield inner.join()
    seen.push(ctx.current === self)
  })
  await outer.join()
  expect(seen).toEqual([true, true, true, true, true])
  expect(ctx.current).toBeUndefined()
})

test('aio / C02 / five yields are five re-entries', async () => {
  let entries = 0
  await ctx
    .spawn(
      (async function* (): Coroutine<void> {
        for (let i = 0; i < 5; i += 1) {
          yield
          entries += 1
        }
      })(),
    )
    .join()
  expect(entries).toBe(5)
})

test('aio / C03 / 128 levels of nesting', async () => {
  const counts = { entered: 0, returned: 0 }
  async function* nest(level: number): Coroutine<void> {
    counts.entered += 1
    if (level > 1) yield ctx.spawn(nest(level - 1)).join()
    counts.returned += 1
  }
  await ctx.spawn(nest(128)).join()
  expect(counts).toEqual({ entered: 128, returned: 128 })
})

test('aio / C05 / a coroutine that ended is never touched again', async () => {
  const log: string[] = []
  async function* second(): Coroutine<void> {
    yield
    log.push('second')
  }
  const first = ctx.spawn(async function* (): Coroutine<ReturnType<typeof ctx.spawn<void>>> {
    log.push('first')
    yield
    return ctx.spawn(second())
  })
  const handle = await first.join()
  expect(first.state).toBe('finished')
  await handle.join()
  first.cancel()
  expect(await first.join()).toBe(handle)
  expect(log).toEqual(['first', 'second'])
})

test('aio / C06 / a mutex is handed over and its waiter starts by itself', async () => {
  const mutex = new CoMutex()
  const log: string[] = []
  async function* user(name: string): Coroutine<void> {
    const wait = mutex.lock()
    if (wait !== undefined) yield wait
    log.push(`${name} in`)
    yield
    yield
    log.push(`${name} out`)
    mutex.unlock()
  }
  await Promise.all(['a', 'b', 'c'].map((name) => ctx.spawn(user(name)).join()))
  expect(log).toEqual(['a in', 'a out', 'b in', 'b out', 'c in', 'c out'])
  expect(mutex.locked).toBe(false)
})

test('aio / C09 / the same function run twice keeps nothing of the first run', async () => {
  async function* work(): Coroutine<number> {
    let turns = 0
    yield
    turns += 1
    return turns
  }
  expect(await ctx.spawn(work()).join()).toBe(1)
  expect(await ctx.spawn(work()).join()).toBe(1)
})

test('aio / C10 / a bottom half that schedules itself ten times takes ten slices', async () => {
  let runs = 0
  let slices = 0
  const bh = ctx.newBh(() => {
    runs += 1
    if (runs < 10) bh.schedule()
    ctx.scheduleBh(() => {
      slices += 1
    })
  })
  bh.schedule()
  await settle()
  await settle()
  expect(runs).toBe(10)
  expect(slices).toBe(10)
})

test('aio / C11 / bottom halves deleted inside their own callback after 1, 3, 2, 4 runs', async () => {
  const counts = [0, 0, 0, 0]
  for (const [i, limit] of [1, 3, 2, 4].entries()) {
    const bh = ctx.newBh(() => {
      counts[i] = (counts[i] ?? 0) + 1
      if (counts[i] === limit) bh.delete()
      bh.schedule()
    })
    bh.schedule()
  }
  await settle()
  await settle()
  expect(counts).toEqual([1, 3, 2, 4])
})

test('aio / order / what was queued first runs first, whoever queues it', async () => {
  const log: number[] = []
  for (let i = 0; i < 50; i += 1) {
    if (i % 2 === 0) ctx.scheduleBh(() => log.push(i))
    else ctx.newBh(() => log.push(i)).schedule()
  }
  await settle()
  expect(log).toEqual(Array.from({ length: 50 }, (_, i) => i))
})

test('aio / errors / one that nobody joins for is an unhandled rejection, not silence', async () => {
  const listeners = process.listeners('unhandledRejection')
  process.removeAllListeners('unhandledRejection')
  try {
    const seen = new Promise((resolve) => process.once('unhandledRejection', resolve))
    ctx.spawn(
      (async function* (): Coroutine<void> {
        throw new Error('nobody asked')
      })(),
    )
    expect(((await seen) as Error).message).toBe('nobody asked')
  } finally {
    for (const listener of listeners) process.on('unhandledRejection', listener)
  }
})

test('aio / errors / a callback that throws does not stop the queue', async () => {
  const listeners = process.listeners('uncaughtException')
  process.removeAllListeners('uncaughtException')
  try {
    const seen = new Promise((resolve) => process.once('uncaughtException', resolve))
    let later = false
    ctx.scheduleBh(() => {
      throw new Error('broken callback')
    })
    ctx.scheduleBh(() => {
      later = true
    })
    expect(((await seen) as Error).message).toBe('broken callback')
    expect(later).toBe(true)
  } finally {
    for (const listener of listeners) process.on('uncaughtException', listener)
  }
})
