import { describe, expect, test } from 'vitest'
import { AioContext } from '../../src/aio/aio-context.ts'
import { command } from '../../src/qmp/command.ts'
import { sessionCommands } from '../../src/qmp/commands/session.ts'
import { JsonStreamParser, type JsonValue, stringifyJson } from '../../src/qmp/json.ts'
import { any } from '../../src/qmp/schema.ts'
import { MonitorSession } from '../../src/qmp/session.ts'
import { hostSeed, Random } from '../../src/util/random.ts'

const seed = process.env.SEED === undefined ? hostSeed() : Number(process.env.SEED)
const ROUNDS = 300

const PIECES = [
  ...['{', '}', '[', ']', ':', ',', '"', "'", '\\', '\\u', 'd800', '\n', ' ', '-', '0', '1e', '.5'],
  ...['true', 'null', 'x', '#', '\u0001', 'é', '😀', '\xff', '{"execute":"echo","arguments":{"v":'],
  ...["{'execute':'query-version'}", '{"exec-oob":"echo"}', '"id"', '18446744073709551616'],
]

function garbage(random: Random): Buffer {
  const parts: Buffer[] = []
  for (let i = random.int(40); i >= 0; i--) {
    if (random.int(8) === 0) {
      const bytes = Buffer.alloc(random.int(6))
      random.bytes(bytes)
      parts.push(bytes)
    } else parts.push(Buffer.from(random.pick(PIECES)))
  }
  return Buffer.concat(parts)
}

function value(random: Random, depth: number): JsonValue {
  const kind = random.int(depth > 4 ? 5 : 7)
  if (kind === 0) return null
  if (kind === 1) return random.int(2) === 0
  if (kind === 2) return BigInt(random.int(1 << 30)) * 2n ** 33n + 9007199254740993n
  if (kind === 3) return (random.next() - 0.5) * 10 ** (random.int(20) - 10)
  if (kind === 4)
    return String.fromCodePoint(random.int(0xd7ff), 0x1f600 + random.int(50), random.int(128))
  if (kind === 5) return Array.from({ length: random.int(5) }, () => value(random, depth + 1))
  const keys = Array.from(
    { length: random.int(5) },
    (_, i) => `${i}${String.fromCodePoint(random.int(300))}`,
  )
  return Object.fromEntries(keys.map((key) => [key, value(random, depth + 1)]))
}

describe(`qmp / fuzz (SEED=${seed})`, () => {
  test('what is written is read back, whatever the cuts', () => {
    const random = new Random(seed)
    for (let round = 0; round < ROUNDS; round++) {
      const written = value(random, 0)
      const found: JsonValue[] = []
      const parser = new JsonStreamParser({
        value: (read) => found.push(read),
        error: (error) => expect.fail(`seed ${seed} round ${round}: ${error.message}`),
      })
      const bytes = Buffer.from(`${stringifyJson(written)} `)
      for (let at = 0; at < bytes.length; ) {
        const step = 1 + random.int(9)
        parser.push(bytes.subarray(at, at + step))
        at += step
      }
      expect(found, `seed ${seed} round ${round}`).toEqual([written])
    }
  })

  test('garbage never throws, never silences, and newline resynchronises', async () => {
    const random = new Random(seed + 1)
    for (let round = 0; round < ROUNDS; round++) {
      const lines: string[] = []
      const session = new MonitorSession(
        {
          ...sessionCommands({ names: () => [], schema: () => [], quit: () => undefined }),
          echo: command({ v: any }, (args) => args.v, true),
        },
        { send: (line) => lines.push(line), pauseInput: () => undefined },
        new AioContext(),
      )
      session.push(Buffer.from("{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}"))
      session.push(garbage(random))
      // Closes whatever the garbage left open: a string, then every list and object.
      session.push(Buffer.from(`\n${']}'.repeat(60)}\n{"execute":"query-version","id":"last"}`))
      await session.finished()
      for (const line of lines) JSON.parse(line)
      expect(lines.at(-1), `seed ${seed} round ${round}`).toMatch(/"id": "last"/)
    }
  })
})
