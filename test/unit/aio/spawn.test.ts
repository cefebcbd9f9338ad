/** Starting a coroutine, joining it at any moment, and the seats it is lent. */
import { afterEach, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { Seats, type SeatUser } from '../../../src/aio/seats.ts'
import type { Coroutine } from '../../../src/coroutine/coroutine.ts'
import { VirtualClock } from '../../../src/util/clock.ts'
import { BlockError } from '../../../src/util/errors.ts'

/** More coroutines than the budget of inline work lets start at once. */
const MANY = 10_000

let ctx = new AioContext()

afterEach(async () => {
  expect(ctx.report()).toEqual({ coroutines: [], timers: 0, queued: 0 })
  await ctx.close()
  ctx = new AioContext()
})

async function settle(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve))
}

async function* turns(count: number): Coroutine<number> {
  for (let i = 0; i < count; i += 1) yield
  return count
}

async function* failing(count: number): Coroutine<number> {
  for (let i = 0; i < count; i += 1) yield
  throw new BlockError('ENOSPC', `after ${count}`)
}

test('aio / spawn / a coroutine spawned by a coroutine starts inside it and gives the turn back', async () => {
  const log: string[] = []
  const outer = ctx.spawn(async function* (self): Coroutine<void> {
    log.push('outer')
    const inner = ctx.spawn(async function* (mine): Coroutine<void> {
      log.push(ctx.current === mine ? 'inner' : 'wrong')
      yield
      log.push('inner again')
    })
    log.push(ctx.current === self ? 'outer again' : 'wrong')
    yield inner.join()
  })
  expect(log).toEqual(['outer', 'inner', 'outer again'])
  await outer.join()
  expect(log).toEqual(['outer', 'inner', 'outer again', 'inner again'])
})

for (const count of [0, 1, 2, 3])
  test(`aio / spawn / ${count} yields: joined at once, late, twice and after the end`, async () => {
    const first = ctx.spawn(turns(count))
    const promise = first.join()
    expect(first.join()).toBe(promise)
    expect(await promise).toBe(count)
    expect(first.join()).toBe(promise)
    for (let ticks = 0; ticks < 12; ticks += 1) {
      const handle = ctx.spawn(turns(count))
      for (let i = 0; i < ticks; i += 1) await undefined
      expect(await handle.join()).toBe(count)
      expect(handle.state).toBe('finished')
    }
    const unjoined = ctx.spawn(turns(count))
    while (unjoined.state !== 'finished') await settle()
    expect(await unjoined.join()).toBe(count)
  })

for (const count of [0, 1, 2, 3])
  test(`aio / spawn / ${count} yields and an error: every join rejects with it`, async () => {
    const joins = ctx.spawn(failing(count), { name: 'fragile' })
    const errors = await Promise.allSettled([joins.join(), joins.join()])
    expect(errors.map((end) => end.status)).toEqual(['rejected', 'rejected'])
    const late = await joins.join().catch((error: unknown) => error)
    expect((late as BlockError).code).toBe('ENOSPC')
    expect((late as Error).stack?.split("in coroutine 'fragile'").length).toBe(2)
    expect((late as Error).stack).toContain('spawn.test.ts')
    expect(joins.state).toBe('failed')
    for (let ticks = 0; ticks < 6; ticks += 1) {
      const handle = ctx.spawn(failing(count))
      for (let i = 0; i < ticks; i += 1) await undefined
      await expect(handle.join()).rejects.toThrow(`after ${count}`)
    }
  })

test('aio / spawn / an error of a later turn that nobody joins for is an unhandled rejection', async () => {
  const listeners = process.listeners('unhandledRejection')
  process.removeAllListeners('unhandledRejection')
  try {
    const seen = new Promise((resolve) => process.once('unhandledRejection', resolve))
    ctx.spawn(failing(2))
    expect(((await seen) as Error).message).toContain('after 2')
  } finally {
    for (const listener of listeners) process.on('unhandledRejection', listener)
  }
})

test('aio / spawn / past its budget of inline work a coroutine is queued and the host turns', async () => {
  const clock = new VirtualClock()
  const slow = new AioContext({ clock })
  let started = 0
  const start = async function* (): Coroutine<void> {
    started += 1
  }
  const handles = Array.from({ length: MANY }, () => slow.spawn(start))
  expect(started).toBeLessThan(MANY)
  expect(handles.at(-1)?.state).toBe('queued')
  await clock.advance(0)
  await Promise.all(handles.map((handle) => handle.join()))
  expect(started).toBe(MANY)
  await slow.close()
})

test('aio / spawn / spawning without end inside spawned coroutines does not overflow the stack', async () => {
  const clock = new VirtualClock()
  const still = new AioContext({ clock })
  let depth = 0
  const nest = async function* (): Coroutine<void> {
    depth += 1
    if (depth < 20_000) still.spawn(nest)
  }
  still.spawn(nest)
  while (depth < 20_000) await clock.advance(0)
  await settle()
  await still.close()
})

test('aio / spawn / a function that is no generator is the coroutine, and knows itself', async () => {
  const seen: boolean[] = []
  const inline = ctx.spawn((self) => {
    seen.push(ctx.current === self)
    return 7
  })
  expect(inline.state).toBe('finished')
  expect(await inline.join()).toBe(7)
  expect(inline.join()).toBe(inline.join())
  expect(await ctx.spawn(() => undefined).join()).toBeUndefined()
  let settle: (value: string) => void = () => undefined
  const waits = ctx.spawn(
    (self) => {
      seen.push(ctx.current === self)
      return new Promise<string>((resolve) => {
        settle = resolve
      })
    },
    { name: 'op' },
  )
  expect(waits.state).toBe('waiting')
  expect(ctx.report().coroutines[0]).toContain('op (waiting)')
  settle('done')
  expect(await waits.join()).toBe('done')
  expect(waits.state).toBe('finished')
  expect(seen).toEqual([true, true])
  expect(ctx.current).toBeUndefined()
})

test('aio / spawn / what a function throws or rejects with goes to whoever joins', async () => {
  const thrown = ctx.spawn((): void => {
    throw new BlockError('EINVAL', 'bad start')
  })
  expect(thrown.state).toBe('failed')
  expect(ctx.current).toBeUndefined()
  await expect(thrown.join()).rejects.toThrow('bad start')
  const rejected = ctx.spawn(() => Promise.reject<void>(new BlockError('EIO', 'bad end')), {
    name: 'op',
  })
  const error = await rejected.join().catch((reason: unknown) => reason)
  expect((error as Error).stack).toContain("in coroutine 'op'")
  expect(rejected.state).toBe('failed')
})

test('aio / spawn / functions past the budget are called later, and joins made before hold', async () => {
  const clock = new VirtualClock()
  const slow = new AioContext({ clock })
  const joins = Array.from({ length: MANY }, (_, i) => slow.spawn(() => i).join())
  const fails = slow.spawn((): void => {
    throw new BlockError('EINVAL', 'late')
  })
  expect(fails.state).toBe('queued')
  const late = fails.join().catch((error: unknown) => (error as BlockError).code)
  await clock.advance(0)
  expect(await Promise.all(joins)).toEqual(Array.from({ length: MANY }, (_, i) => i))
  expect(await late).toBe('EINVAL')
  await slow.close()
})

test('aio / spawn / the report names who runs, oldest first, whatever seats they have', async () => {
  const gates: (() => void)[] = []
  const wait = async function* (): Coroutine<void> {
    await new Promise<void>((resolve) => gates.push(resolve))
  }
  ctx.spawn(wait, { name: 'a' })
  const b = ctx.spawn(wait, { name: 'b' })
  ctx.spawn(wait, { name: 'c' })
  gates[1]?.()
  await b.join()
  ctx.spawn(wait, { name: 'd' })
  expect(ctx.report().coroutines.map((line) => line.slice(0, 11))).toEqual([
    'a (waiting)',
    'c (waiting)',
    'd (waiting)',
  ])
  for (const open of gates) open()
  await settle()
})

test('aio / seats / a burst gives its seats back, but for the ones that are kept', () => {
  const seats = new Seats<SeatUser>(() => undefined)
  const user: SeatUser = {
    run: () => undefined,
    again: () => undefined,
    finish: () => undefined,
    fail: () => undefined,
  }
  const burst = Array.from({ length: 5000 }, () => seats.take(user))
  expect(seats.taken).toBe(5000)
  expect(seats.users().length).toBe(5000)
  // Every second one first, so that seats move in the list while others are taken.
  for (const seat of burst.filter((_, i) => i % 2 === 0)) seats.give(seat)
  expect(seats.users().length).toBe(2500)
  expect(seats.size).toBe(2500 + 1024)
  for (const seat of burst.filter((_, i) => i % 2 === 1)) seats.give(seat)
  expect(seats.taken).toBe(0)
  expect(seats.size).toBe(1024)
  expect(new Set(Array.from({ length: 2000 }, () => seats.take(user))).size).toBe(2000)
  expect(seats.users().length).toBe(2000)
})
