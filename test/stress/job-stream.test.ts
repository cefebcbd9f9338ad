import { expect, test } from 'vitest'
import { copyOnReadDriver } from '../../src/drivers/copy-on-read.ts'
import { startStream } from '../../src/job/start-stream.ts'
import { hostSeed, Random } from '../../src/util/random.ts'
import { bench, pattern, plainDisk, readAt, turn } from '../unit/job/fixture.ts'

const MIB = 1024 * 1024
const SIZE = 2 * MIB
const ROUNDS = 12
const seed = Number(process.env.SEED ?? hostSeed())

test('stress / job / streams that are drained, paused and cancelled lose no write', async () => {
  const random = new Random(seed)
  const plain = plainDisk(SIZE)
  await using b = bench(copyOnReadDriver, plain.definition)
  plain.data.fill(0x11)
  await b.add({ driver: 'plain', 'node-name': 'base' })
  for (let round = 0; round < ROUNDS; round++) {
    const name = `d${round}`
    const top = await b.add({ driver: 'memory', 'node-name': name, size: SIZE, backing: 'base' })
    const guest = await b.guest(top)
    const model = pattern(0x11, SIZE)
    let over = false
    const write = async (): Promise<void> => {
      for (let i = 0; !over; i++) {
        const bytes = 512 * (1 + random.int(32))
        const offset = 512 * random.int((SIZE - bytes) / 512)
        const data = pattern(1 + (i % 255), bytes)
        await guest.pwrite(offset, data)
        model.set(data, offset)
        await turn()
      }
    }
    const writer = write()
    for (let attempt = 0; ; attempt++) {
      const job = await startStream(b.graph, b.registry, {
        jobId: `s${attempt}`,
        top,
        nameOf: (node) => node.name,
        speed: attempt < 3 ? 64 * MIB : 0,
      })
      while (!job.completed && attempt < 3) {
        await turn()
        if (job.completed) break
        const what = random.int(8)
        if (what === 0) job.cancel(true)
        else if (what === 1 && job.status === 'running' && !job.userPaused) job.userPause()
        else if (what === 2 && job.userPaused) job.userResume()
        else if (what < 5) await b.graph.withDrained(top, turn)
      }
      await job.done
      if (job.error === undefined) break
      expect(job.error.code, `SEED=${seed}`).toBe('ECANCELED')
      expect(top.chainNext?.name).toBe('base')
    }
    over = true
    await writer
    expect(top.chainNext).toBeUndefined()
    const now = await readAt(guest, 0, SIZE)
    expect(Buffer.compare(now, model), `SEED=${seed} round ${round}`).toBe(0)
    expect(top.gate.inFlight).toBe(0)
    await guest.close()
    await b.graph.remove(name)
  }
}, 60_000)
