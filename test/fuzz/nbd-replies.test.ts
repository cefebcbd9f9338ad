import { expect, test } from 'vitest'
import { NBD_CMD } from '../../src/nbd/constants.ts'
import { type AwaitedReply, type ReplyHost, ReplyParser } from '../../src/nbd/reply-parser.ts'
import { BlockError } from '../../src/util/errors.ts'
import { hostSeed, Random } from '../../src/util/random.ts'

const seed = Number(process.env.SEED ?? hostSeed())

function awaiting(type: number, bytes: number): AwaitedReply {
  const buf = type === NBD_CMD.READ ? Buffer.alloc(bytes) : undefined
  return { type, offset: 4096, length: bytes, buf, filled: 0, error: undefined, extent: undefined }
}

/** A chunk that is nearly right. */
function randomReply(random: Random): Buffer {
  const reply = Buffer.alloc(28 + random.int(64))
  random.bytes(reply)
  reply.writeUInt32BE(random.int(3) === 0 ? 0x67446698 : 0x668e33ef, 0)
  if (random.int(40) === 0) reply.writeUInt32BE(random.int(0x7fffffff), 0)
  reply.writeUInt16BE(random.int(2), 4)
  reply.writeUInt16BE([0, 1, 2, 5, 0x8001, 0x8002, 9][random.int(7)] ?? 0, 6)
  if (reply.readUInt32BE(0) === 0x67446698) reply.writeUInt32BE(random.int(2) * 5, 4)
  reply.writeUInt32BE(0, 8)
  reply.writeUInt32BE(random.int(4), 12)
  reply.writeUInt32BE(random.int(10) === 0 ? random.int(0x7fffffff) : random.int(64), 16)
  if (random.int(2) === 0) reply.writeBigUInt64BE(BigInt(4096 + random.int(40)), 20)
  return reply
}

test(`nbd / fuzz / random replies end in protocol errors at worst (SEED=${seed})`, () => {
  const random = new Random(seed)
  for (let round = 0; round < 4000; round++) {
    const requests = new Map([
      [1, awaiting(NBD_CMD.READ, 32)],
      [2, awaiting(NBD_CMD.WRITE, 32)],
      [3, awaiting(NBD_CMD.BLOCK_STATUS, 32)],
    ])
    let finished = 0
    const host: ReplyHost = {
      structured: random.int(4) > 0,
      allocationContext: random.int(2),
      awaited: (cookie) => requests.get(cookie),
      finished: (cookie) => {
        finished += requests.delete(cookie) ? 1 : 0
      },
    }
    const parser = new ReplyParser(host)
    try {
      for (let i = 0; i < 6; i++) {
        const reply = randomReply(random)
        const cut = random.int(reply.length)
        parser.feed(reply.subarray(0, cut))
        parser.feed(reply.subarray(cut))
      }
    } catch (error) {
      expect(error).toBeInstanceOf(BlockError)
      expect(error).toMatchObject({ code: 'EPROTO' })
    }
    expect(finished).toBeLessThanOrEqual(3)
  }
})
