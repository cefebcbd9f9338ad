/**
 * Ends worker threads at random moments while they use a primitive, and looks whether what they
 * held comes back. Run by a test as a process of its own, because the engine's flags that keep the
 * code unoptimised (many more places where a thread can end) are the process's.
 *
 * `node --no-opt --no-sparkplug victims.mjs PRIMITIVE ROUNDS SEED`; prints what went wrong, or `ok`.
 */
import { isMainThread, Worker, workerData } from 'node:worker_threads'

const dist = new URL('../../../dist/src/', import.meta.url).href
const { Gate } = await import(`${dist}sync/gate.js`)
const { ContextLock } = await import(`${dist}sync/context-lock.js`)
const { RangeLock } = await import(`${dist}sync/range-lock.js`)
const { Random } = await import(`${dist}util/random.js`)

/** The survivor, number 2, has a lane of its own; victims come one after the other. */
const laneOf = (me) => (me === 2 ? 2 : 3)

/** For each primitive: its words, one round of use, giving back, and what is wrong at rest. */
const PRIMITIVES = {
  gate: {
    words: () => Gate.create().words,
    use(words, me) {
      const gate = new Gate(words, 0, laneOf(me))
      return () => {
        gate.enterBlocking()
        gate.end()
      }
    },
    giveBack: (words, thread) => new Gate(words).forgive(laneOf(thread)),
    atRest: (words) => (words[2] === 0 ? undefined : `lanes ${words[2].toString(2)}`),
  },
  'context-lock': {
    words: () => ContextLock.create(1).words,
    use(words, me) {
      const lock = new ContextLock(words, 0, me)
      return () => {
        try {
          lock.acquireBlocking()
          lock.acquireBlocking()
        } catch {
          return
        }
        lock.release()
        lock.release()
      }
    },
    giveBack: (words, thread) => new ContextLock(words, 0, 1).releaseDead(thread),
    atRest: (words) =>
      words[0] === words[1] &&
      words.subarray(5).every((slot) => (slot & 0xffff) === 0) &&
      words[2] === 0
        ? undefined
        : `words ${words.subarray(0, 5).join()}, slots ${words
            .subarray(5)
            .filter((slot) => slot & 0xffff)
            .join()}`,
  },
  'range-lock': {
    words: () => RangeLock.create(1).words,
    use(words, me) {
      const lock = new RangeLock(words, 0, me)
      return () => lock.unlock(lock.lockBlocking(0, 100, true))
    },
    giveBack: (words, thread) => new RangeLock(words, 0, 1).releaseDead(thread),
    atRest: (words) => {
      const { held } = new RangeLock(words, 0, 1)
      return held === 0 ? undefined : `${held} ranges held`
    },
  },
}

/** `state`: [0] stop, then one count of rounds for each thread's number. */
function beThread({ name, words, me, state }) {
  const once = PRIMITIVES[name].use(words, me)
  while (Atomics.load(state, 0) === 0) {
    once()
    Atomics.add(state, me, 1)
    Atomics.notify(state, me)
  }
}

const word = (count) => new Int32Array(new SharedArrayBuffer(count * 4))

function start(data) {
  return new Worker(new URL(import.meta.url), { workerData: data })
}

async function progress(state, me) {
  const seen = Atomics.load(state, me)
  const wait = Atomics.waitAsync(state, me, seen, 3000)
  return wait.async ? (await wait.value) !== 'timed-out' : true
}

async function main([name, rounds, seed]) {
  const primitive = PRIMITIVES[name]
  const random = new Random(Number(seed))
  const words = primitive.words()
  const state = word(3 + Number(rounds))
  const survivor = start({ name, words, me: 2, state })
  const over = new Promise((resolve) => survivor.once('exit', resolve))
  await progress(state, 2)
  for (let round = 0; round < rounds; round += 1) {
    const me = 3 + round
    const victim = start({ name, words, me, state })
    await progress(state, me)
    for (let turns = random.int(4); turns > 0; turns -= 1)
      await new Promise((resolve) => setImmediate(resolve))
    await victim.terminate()
    primitive.giveBack(words, me)
    for (let looks = 0; looks < 3; looks += 1)
      if (!(await progress(state, 2))) return `round ${round}: the survivor hangs`
  }
  Atomics.store(state, 0, 1)
  await over
  return primitive.atRest(words) ?? 'ok'
}

if (isMainThread) {
  console.log(await main(process.argv.slice(2)))
  process.exit()
} else beThread(workerData)
