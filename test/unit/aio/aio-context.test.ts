import { afterEach, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import type { Coroutine } from '../../../src/coroutine/coroutine.ts'
import { VirtualClock } from '../../../src/util/clock.ts'
import { BlockError } from '../../../src/util/errors.ts'

const open: AioContext[] = []

function make(clock: VirtualClock = new VirtualClock()): AioContext {
  const ctx = new AioContext({ clock, name: 'test' })
  open.push(ctx)
  return ctx
}

afterEach(async () => {
  for (const ctx of open.splice(0)) {
    expect(ctx.report()).toEqual({ coroutines: [], timers: 0, queued: 0 })
    await ctx.close()
  }
})

async function settle(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve))
}

test('aio / bottom half / many schedules are one run, self-schedule runs in a later slice', async () => {
  const ctx = make()
  const log: string[] = []
  const bh = ctx.newBh(() => {
    log.push('self')
    if (log.length < 3) bh.schedule()
  })
  bh.schedule()
  bh.schedule()
  ctx.scheduleBh(() => log.push('other'))
  expect(log).toEqual([])
  await settle()
  expect(log).toEqual(['self', 'other', 'self'])
})

test('aio / bottom half / cancel takes back, delete is for ever', async () => {
  const ctx = make()
  let runs = 0
  const bh = ctx.newBh(() => {
    runs += 1
  })
  bh.schedule()
  bh.cancel()
  await settle()
  expect(runs).toBe(0)
  bh.schedule()
  bh.cancel()
  bh.schedule()
  await settle()
  expect(runs).toBe(1)
  bh.schedule()
  bh.delete()
  bh.schedule()
  await settle()
  expect(runs).toBe(1)
})

test('aio / bottom half / idle one runs with other work or after 10 ms', async () => {
  const clock = new VirtualClock()
  const ctx = make(clock)
  let runs = 0
  const bh = ctx.newBh(() => {
    runs += 1
  })
  bh.scheduleIdle()
  await settle()
  expect(runs).toBe(0)
  await clock.advance(10)
  expect(runs).toBe(1)
  bh.scheduleIdle()
  ctx.scheduleBh(() => undefined)
  await settle()
  expect(runs).toBe(2)
  await clock.advance(10)
  expect(runs).toBe(2)
})

test('aio / timer / re-armed, deleted, deleted after its deadline passed', async () => {
  const clock = new VirtualClock(100)
  const ctx = make(clock)
  const log: number[] = []
  const timer = ctx.timer(() => log.push(clock.nowMs()))
  timer.mod(150)
  timer.mod(120)
  await clock.advance(100)
  expect(log).toEqual([120])
  timer.mod(300)
  timer.del()
  timer.del()
  await clock.advance(200)
  expect(log).toEqual([120])
  timer.mod(0)
  await clock.advance(0)
  expect(log).toEqual([120, 400])
})

test('aio / coroutine / starts inside spawn, later turns alternate first come first served', async () => {
  const ctx = make()
  const log: string[] = []
  async function* work(name: string): Coroutine<string> {
    for (let i = 0; i < 2; i += 1) {
      log.push(`${name}${i}`)
      yield
    }
    return name
  }
  const a = ctx.spawn(work('a'))
  const b = ctx.spawn(() => work('b'))
  expect(log).toEqual(['a0', 'b0'])
  expect(await Promise.all([a.join(), b.join()])).toEqual(['a', 'b'])
  expect(log).toEqual(['a0', 'b0', 'a1', 'b1'])
  expect(await a.join()).toBe('a')
  expect(a.id).not.toBe(b.id)
})

test('aio / coroutine / a wake-up made inside a coroutine runs after its turn', async () => {
  const ctx = make()
  const log: string[] = []
  let wake: () => void = () => undefined
  async function* sleeper(): Coroutine<void> {
    yield new Promise<void>((resolve) => {
      wake = resolve
    })
    log.push('woken')
  }
  async function* waker(): Coroutine<void> {
    yield
    wake()
    log.push('still mine')
    yield
    log.push('later')
  }
  await Promise.all([ctx.spawn(sleeper()).join(), ctx.spawn(waker()).join()])
  expect(log[0]).toBe('still mine')
  expect(log).toContain('woken')
})

test('aio / coroutine / a rejected wait is thrown at the yield', async () => {
  const ctx = make()
  async function* work(): Coroutine<string> {
    try {
      yield Promise.reject(new BlockError('ENOSPC', 'full'))
    } catch (error) {
      return (error as BlockError).code
    }
    return 'none'
  }
  expect(await ctx.spawn(work()).join()).toBe('ENOSPC')
})

test('aio / coroutine / an error keeps where the coroutine was spawned', async () => {
  const ctx = make()
  async function* work(): Coroutine<void> {
    yield
    throw new BlockError('EIO', 'broken')
  }
  const error = await ctx
    .spawn(work(), { name: 'fragile' })
    .join()
    .catch((e: unknown) => e)
  expect((error as BlockError).code).toBe('EIO')
  expect((error as Error).stack).toContain("in coroutine 'fragile'")
  expect((error as Error).stack).toContain('aio-context.test.ts')
})

test('aio / coroutine / current and cancel', async () => {
  const ctx = make()
  const seen: unknown[] = []
  const handle = ctx.spawn(async function* (self): Coroutine<number> {
    let turns = 0
    while (!self.cancelled) {
      seen.push(ctx.current === self)
      turns += 1
      yield
    }
    return turns
  })
  await Promise.resolve()
  handle.cancel()
  expect(await handle.join()).toBeGreaterThan(0)
  expect(new Set(seen)).toEqual(new Set([true]))
  expect(ctx.current).toBeUndefined()
})

test('aio / sleep / on the virtual clock, wakeable once', async () => {
  const clock = new VirtualClock()
  const ctx = make(clock)
  const log: string[] = []
  void ctx.sleep(5).then(() => log.push('five'))
  const wakeable = ctx.wakeableSleep(1000)
  void wakeable.done.then(() => log.push('woken'))
  await clock.advance(4)
  expect(log).toEqual([])
  await clock.advance(1)
  expect(log).toEqual(['five'])
  wakeable.wake()
  wakeable.wake()
  await settle()
  expect(log).toEqual(['five', 'woken'])
})

test('aio / budget / endless inline work lets the host loop turn', async () => {
  const ctx = new AioContext({ name: 'host' })
  open.push(ctx)
  let stop = false
  setTimeout(() => {
    stop = true
  }, 5)
  const handle = ctx.spawn(async function* (): Coroutine<void> {
    while (!stop) yield
  })
  await handle.join()
  let rounds = 0
  setImmediate(() => {
    stop = false
  })
  while (stop) {
    rounds += 1
    const wait = ctx.breathe()
    if (wait !== undefined) await wait
  }
  expect(rounds).toBeGreaterThan(0)
})

test('aio / acquire / recursive, visible, released by await using', async () => {
  const ctx = make()
  {
    await using _outer = await ctx.acquire()
    await using _inner = await ctx.acquire()
    expect(ctx.lock.depth).toBe(2)
    expect(ctx.lock.held).toBe(true)
  }
  expect(ctx.lock.owner).toBe(0)
  expect(ctx.lock.depth).toBe(0)
})

test('aio / close / ends sleepers with ECANCELED and lets them clean up', async () => {
  const ctx = new AioContext({ clock: new VirtualClock() })
  const log: string[] = []
  const handle = ctx.spawn(async function* (): Coroutine<void> {
    try {
      yield ctx.sleep(1e9)
    } finally {
      yield
      log.push('cleaned')
    }
  })
  const end = handle.join().catch((error: unknown) => (error as BlockError).code)
  await settle()
  await ctx.close()
  expect(await end).toBe('ECANCELED')
  expect(log).toEqual(['cleaned'])
  const late = async function* (): Coroutine<void> {
    yield
  }
  expect(() => ctx.spawn(late())).toThrow('is closed')
})

test('aio / close / names what hangs instead of hanging', async () => {
  const ctx = new AioContext({ name: 'stuck' })
  let end = (): void => undefined
  const never = new Promise<void>((resolve) => {
    end = resolve
  })
  const handle = ctx.spawn(
    async function* (): Coroutine<void> {
      yield never
    },
    { name: 'forgotten' },
  )
  const error = await ctx.close().catch((e: unknown) => e)
  end()
  await handle.join()
  expect((error as BlockError).code).toBe('EBUSY')
  expect((error as Error).message).toContain('forgotten (waiting)')
})
