import { expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { NbdClient } from '../../../src/nbd/client.ts'
import { NbdServer } from '../../../src/nbd/server.ts'
import { type Clock, HostClock, type TimerHandle } from '../../../src/util/clock.ts'
import { hostSeed, Random } from '../../../src/util/random.ts'
import { serve } from './support.ts'

/** The host's clock, fifty times as fast. */
class FastClock extends HostClock implements Clock {
  override nowMs(): number {
    return super.nowMs() * 50
  }
  override setTimer(ms: number, fn: () => void): TimerHandle {
    return super.setTimer(ms / 50, fn)
  }
}

const seed = Number(process.env.SEED ?? hostSeed())
const BLOCK = 8192
const LANES = 8

test(`nbd / client / data survive a server that keeps going away (SEED=${seed})`, async () => {
  const random = new Random(seed)
  const served = await serve()
  const ctx = new AioContext({ clock: new FastClock() })
  const { address, disk } = served
  const options = { ctx, address, exportName: 'a', reconnectDelayMs: 600_000, handshakeMs: 60_000 }
  const client = await NbdClient.connect(options)
  disk.slow = true
  let server = served.server
  let stop = false
  const lane = async (n: number): Promise<number> => {
    const mine = Buffer.alloc(BLOCK)
    const back = Buffer.alloc(BLOCK)
    let rounds = 0
    for (; !stop; rounds++) {
      mine.fill(1 + ((rounds * 7 + n) % 255))
      await client.write(n * BLOCK, mine)
      await client.read(n * BLOCK, back)
      expect(back.equals(mine)).toBe(true)
      if (rounds % 16 === 0) await client.flush()
    }
    return rounds
  }
  const lanes = Array.from({ length: LANES }, (_, n) => lane(n))
  for (let i = 0; i < 25; i++) {
    for (let turns = random.int(40); turns >= 0; turns--) await turn()
    await server.close()
    for (let turns = random.int(5); turns > 0; turns--) await turn()
    server = new NbdServer({ ctx })
    server.addExport({ name: 'a', backend: disk, readOnly: false })
    await server.listen(address)
    while (!client.connected) await turn()
  }
  stop = true
  const rounds = await Promise.all(lanes)
  expect(rounds.every((count) => count > 0)).toBe(true)
  await client.disconnect()
  await server.close()
  await served.close()
})

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
