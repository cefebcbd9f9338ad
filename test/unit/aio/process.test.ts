/** What keeps a process alive, and what lets it end: whole processes that run the built library. */
import { execFile } from 'node:child_process'
import { expect, test } from 'vitest'

const DIST = new URL('../../../dist/src/', import.meta.url).href

interface Ended {
  readonly code: number | string | null | undefined
  readonly out: string
  readonly err: string
}

/** Runs a module with `lib(file)`; a process that hangs is killed, and has no exit code. */
function run(code: string, ...flags: string[]): Promise<Ended> {
  const source = `const lib = (file) => import(${JSON.stringify(DIST)} + file + '.js')\n${code}`
  const args = [...flags, '--input-type=module', '-e', source]
  return new Promise((resolve) => {
    execFile(process.execPath, args, { timeout: 15_000 }, (error, out, err) => {
      resolve({ code: error === null ? 0 : error.code, out: out.trim(), err })
    })
  })
}

test('aio / process / ends at once when nobody waits, whatever was made', async () => {
  const ended = await run(`
    const { AioContext } = await lib('aio/aio-context')
    const { Gate } = await lib('sync/gate')
    const { Doorbell } = await lib('sync/doorbell')
    const ctx = new AioContext()
    ctx.remoteCalls()
    ctx.newBh(() => {}).schedule()
    Gate.create().quiesce()
    Doorbell.create()
    console.log('made')`)
  expect(ended).toEqual({ code: 0, out: 'made', err: '' })
})

test('aio / process / lives as long as it waits for a word, though nothing else keeps it', async () => {
  const ended = await run(`
    import { Worker } from 'node:worker_threads'
    const { Gate } = await lib('sync/gate')
    const gate = Gate.create()
    gate.begin()
    const worker = new Worker(\`
      const { workerData: { url, words } } = require('node:worker_threads')
      import(url).then(({ Gate }) => setTimeout(() => new Gate(words).end(), 50))\`,
      { eval: true, execArgv: [], workerData: { url: ${JSON.stringify(`${DIST}sync/gate.js`)}, words: gate.words } })
    worker.unref()
    await gate.whenIdle()
    console.log('idle')`)
  expect(ended).toEqual({ code: 0, out: 'idle', err: '' })
})

test('aio / process / a host wait that is left over keeps nobody alive', async () => {
  const ended = await run(`
    const { Gate } = await lib('sync/gate')
    const { ContextLock } = await lib('sync/context-lock')
    const gate = Gate.create()
    gate.begin()
    const idle = gate.whenIdle()
    gate.end()
    await idle
    const lock = ContextLock.create(1)
    const other = new ContextLock(lock.words, 0, 2)
    other.acquireBlocking()
    const mine = lock.acquire()
    other.release()
    await mine
    console.log(lock.owner)`)
  expect(ended).toEqual({ code: 0, out: '1', err: '' })
})

test('aio / process / a listener and a parked coroutine keep it alive until they are gone', async () => {
  const ended = await run(`
    const { AioContext } = await lib('aio/aio-context')
    const { RemoteContext } = await lib('aio/remote-calls')
    const { Doorbell } = await lib('sync/doorbell')
    const ctx = new AioContext()
    const bell = Doorbell.create()
    const listener = ctx.listen(bell.words, () => console.log('rung'))
    const calls = ctx.remoteCalls()
    const parked = calls.park()
    // Neither of these timers keeps the process alive.
    setTimeout(() => bell.ring(), 20).unref()
    setTimeout(() => listener.close(), 40).unref()
    setTimeout(() => new RemoteContext(calls.words).coSchedule(parked.call), 60).unref()
    await parked.woken
    console.log('woken')
    process.on('exit', () => console.log('end'))`)
  expect(ended).toEqual({ code: 0, out: 'rung\nwoken\nend', err: '' })
})

test('aio / process / a shutdown that cannot end names what runs, and the process ends', async () => {
  const ended = await run(`
    const { AioContext } = await lib('aio/aio-context')
    const ctx = new AioContext({ name: 'main' })
    ctx.spawn((async function* () { yield new Promise(() => {}) })(), { name: 'stuck one' })
    ctx.spawn((async function* () { yield ctx.sleep(1e9) })(), { name: 'sleeper' }).join()
      .catch((error) => console.log(error.code))
    ctx.timer(() => {}).mod(ctx.clock.nowMs() + 1e9)
    await ctx.close().catch((error) => {
      console.log(error.code, error.message.split('\\n')[0])
      process.exitCode = 3
    })`)
  expect(ended.code).toBe(3)
  expect(ended.out).toBe(
    "ECANCELED\nEBUSY Context 'main' closed with coroutines running: stuck one (waiting) spawned",
  )
})

test('aio / process / the hot paths of shared words allocate nothing', async () => {
  const ended = await run(
    `
    const { Gate } = await lib('sync/gate')
    const { ContextLock } = await lib('sync/context-lock')
    const { RangeLock } = await lib('sync/range-lock')
    const { CopyMap } = await lib('sync/copy-map')
    const { DirtyBitmap } = await lib('sync/dirty-bitmap')
    const { AllocationMap } = await lib('sync/allocation-map')
    const { JobWords } = await lib('sync/job-words')
    const { Doorbell } = await lib('sync/doorbell')
    const { Ring } = await lib('sync/ring')
    const gate = Gate.create()
    const lane = new Gate(gate.words, 0, 1)
    const lock = ContextLock.create(1)
    const ranges = RangeLock.create(1)
    const map = CopyMap.create(4)
    map.claim(1)
    map.complete(1)
    const dirty = DirtyBitmap.create(1 << 20, 4096)
    const allocated = AllocationMap.create(8)
    const job = JobWords.create()
    const bell = Doorbell.create()
    const ring = Ring.create(4, 2)
    const record = new Float64Array(2)
    const paths = {
      gate: () => { gate.begin(); gate.end() },
      lane: () => { lane.enterBlocking(); lane.end() },
      drain: () => { gate.quiesce(); gate.whenIdle(); gate.unquiesce() },
      lock: () => { lock.acquireBlocking(); lock.acquireBlocking(); lock.release(); lock.release() },
      ranges: () => ranges.unlock(ranges.lockBlocking(4096, 512, true)),
      map: () => map.claim(1),
      dirty: () => { dirty.setRange(8192, 4096); dirty.clearRange(8192, 4096) },
      allocated: () => { allocated.set(2, 1); allocated.state(2) },
      job: () => { job.addDone(4096); job.paused },
      bell: () => bell.ring(),
      ring: () => { ring.push(record); ring.pop(record) },
    }
    const bytes = {}
    for (const [name, path] of Object.entries(paths)) {
      const many = () => { for (let i = 0; i < 30_000; i += 1) path() }
      // The best of some: a round in which the engine compiles says nothing about the path.
      bytes[name] = Infinity
      for (let turn = 0; turn < 6; turn += 1) {
        gc()
        const before = process.memoryUsage().heapUsed
        many()
        const each = (process.memoryUsage().heapUsed - before) / 30_000
        bytes[name] = Math.min(bytes[name], each)
      }
    }
    console.log(JSON.stringify(bytes))`,
    '--expose-gc',
  )
  expect(ended.err).toBe('')
  // An object has 16 bytes at least; the engine itself leaves less than that a round.
  for (const [path, bytes] of Object.entries(JSON.parse(ended.out) as Record<string, number>))
    expect(bytes, `bytes a round: ${path}`).toBeLessThan(15)
})
