import { connect } from 'node:net'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { infoData, metaData, optionRequest } from '../../src/nbd/codec.ts'
import { NBD_OPT } from '../../src/nbd/constants.ts'
import { hostSeed, Random } from '../../src/util/random.ts'
import { RawClient } from '../unit/nbd/raw-client.ts'
import { type Served, serve, until } from '../unit/nbd/support.ts'

const seed = Number(process.env.SEED ?? hostSeed())
let served: Served

beforeAll(async () => {
  served = await serve({ size: 1 << 16 })
})

afterAll(() => served.close())

/** Sends bytes after the greeting and leaves; the server must neither fall nor keep the client. */
async function throwAt(bytes: Buffer, cut: boolean): Promise<void> {
  const socket = connect(served.address.path)
  socket.on('error', () => undefined)
  const gone = new Promise<void>((resolve) => socket.on('close', () => resolve()))
  socket.on('data', () => undefined)
  socket.write(bytes, () => (cut ? socket.destroy() : socket.end()))
  await gone
}

async function stillServes(): Promise<void> {
  await until(() => served.server.connections === 0, 'every client to be gone')
  const c = await RawClient.enter(served.address, 'a')
  expect(c.size).toBe(1 << 16)
  c.close()
  await until(() => served.server.connections === 0, 'the last client to be gone')
}

function randomBytes(random: Random, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  random.bytes(bytes)
  return bytes
}

const FLAGS = Buffer.from([0, 0, 0, 3])

test(`nbd / fuzz / random handshakes leave the server standing (SEED=${seed})`, async () => {
  const random = new Random(seed)
  for (let round = 0; round < 150; round++) {
    const parts: Buffer[] = [FLAGS]
    for (let i = random.int(6); i >= 0; i--) {
      const option = random.int(13)
      const data = randomBytes(random, random.int(40))
      const bytes = optionRequest(option, random.int(2) === 0 ? data : metaData('a', ['base:']))
      if (random.int(3) === 0) bytes[random.int(bytes.length)] = random.int(256)
      parts.push(bytes)
    }
    await throwAt(Buffer.concat(parts), random.int(2) === 0)
  }
  await stillServes()
})

test(`nbd / fuzz / random requests leave the server standing (SEED=${seed})`, async () => {
  const random = new Random(seed + 1)
  for (let round = 0; round < 150; round++) {
    const parts: Buffer[] = [FLAGS]
    if (random.int(2) === 0) parts.push(optionRequest(NBD_OPT.STRUCTURED_REPLY))
    parts.push(optionRequest(NBD_OPT.SET_META_CONTEXT, metaData('a', ['base:allocation'])))
    parts.push(optionRequest(NBD_OPT.GO, infoData('a', [])))
    for (let i = random.int(20); i >= 0; i--) parts.push(randomRequest(random))
    await throwAt(Buffer.concat(parts), random.int(2) === 0)
  }
  await stillServes()
})

/** A request that is mostly sensible. */
function randomRequest(random: Random): Buffer {
  const request = randomBytes(random, 28)
  if (random.int(50) > 0) request.writeUInt32BE(0x25609513, 0)
  request.writeUInt16BE(random.int(3) === 0 ? random.int(0x10000) : 1 << random.int(6), 4)
  const type = random.int(10)
  request.writeUInt16BE(type, 6)
  if (random.int(5) > 0) request.writeBigUInt64BE(BigInt(random.int(1 << 16)), 16)
  const length = random.int(5) > 0 ? random.int(1 << 12) : random.int(0x7fffffff)
  request.writeUInt32BE(length, 24)
  const whole = type === 1 && length < 1 << 12 && random.int(4) > 0
  return whole ? Buffer.concat([request, randomBytes(random, length)]) : request
}
