import { describe, expect, test } from 'vitest'
import {
  blockdevOptions,
  blockdevRef,
  socketAddressLegacy,
} from '../../../src/qmp/blockdev-schema.ts'
import { type JsonObject, parseJson } from '../../../src/qmp/json.ts'
import { list, type StructSchema, struct, uint32, validate } from '../../../src/qmp/schema.ts'

function refusal(schema: StructSchema, args: JsonObject): string {
  try {
    validate(schema, args)
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
  return ''
}

const node = (options: JsonObject): string => refusal(blockdevOptions, options)

describe('qmp / schema / node options', () => {
  const cases: readonly (readonly [JsonObject, string])[] = [
    [{}, "Parameter 'driver' is missing"],
    [{ driver: null }, "Invalid parameter type for 'driver', expected: string"],
    [{ driver: 'spaghetti' }, "Parameter 'driver' does not accept value 'spaghetti'"],
    [{ driver: 'qcow2', file: { driver: 'file' } }, "Parameter 'file.filename' is missing"],
    [{ driver: 'qcow2', file: { driver: 'zz' } }, "Parameter 'driver' does not accept value 'zz'"],
    [{ driver: 'qcow2', file: null }, "Invalid parameter type for 'file', expected: BlockdevRef"],
    [
      { driver: 'qcow2', file: 'a', backing: 5 },
      "Invalid parameter type for 'backing', expected: BlockdevRefOrNull",
    ],
    [{ driver: 'qcow2', file: 'a', backing: null }, ''],
    [{ driver: 'qcow2', file: 'a', y: 1 }, "Parameter 'y' is unexpected"],
    [{ driver: 'null-co', cache: { foo: true } }, "Parameter 'cache.foo' is unexpected"],
    [{ driver: 'null-co', cache: true }, "Invalid parameter type for 'cache', expected: object"],
    [{ driver: 'null-co', size: -1.5 }, "Invalid parameter type for 'size', expected: integer"],
    [{ driver: 'null-co', size: '5' }, "Invalid parameter type for 'size', expected: integer"],
    [
      { driver: 'quorum', 'vote-threshold': 1, children: [5] },
      "Invalid parameter type for 'null', expected: BlockdevRef",
    ],
    [{ driver: 'nbd', server: { type: 'bad' } }, "Parameter 'type' does not accept value 'bad'"],
    [{ driver: 'nbd', server: { type: 'inet' } }, "Parameter 'server.host' is missing"],
    [{ driver: 'replication', file: 'a' }, "Parameter 'mode' is missing"],
    [
      {
        driver: 'qcow2',
        file: { driver: 'blkdebug', image: 'a', 'set-state': [{ event: 'none' }] },
      },
      "Parameter 'file.set-state[0].new_state' is missing",
    ],
  ]
  for (const [options, sentence] of cases) {
    test(JSON.stringify(options), () => expect(node(options)).toBe(sentence))
  }

  test('wide integers come out as numbers', () => {
    const args = parseJson('{"driver":"null-co","size":9223372036854775807}') as JsonObject
    expect(validate(blockdevOptions, args).size).toBe(2 ** 63)
  })
})

describe('qmp / schema / shapes', () => {
  const start = struct({ addr: socketAddressLegacy, 'max-connections?': uint32 })

  test('nested members are named by their path', () => {
    expect(refusal(start, { addr: { type: 'unix' } })).toBe("Parameter 'addr.data' is missing")
    expect(refusal(start, { addr: { type: 'inet', data: { host: 'h', port: 10809 } } })).toBe(
      "Invalid parameter type for 'addr.data.port', expected: string",
    )
  })

  test('ranges are named by their type', () => {
    const addr = { type: 'unix', data: { path: 'x' } }
    expect(refusal(start, { addr, 'max-connections': -1 })).toBe(
      "Parameter 'max-connections' expects uint32_t",
    )
    expect(
      refusal(start, { addr: { type: 'inet', data: { host: 'h', port: '1', to: 70000 } } }),
    ).toBe("Parameter 'to' expects uint16_t")
  })

  test('mandatory members are missed before unexpected ones are refused', () => {
    expect(refusal(struct({ a: uint32 }), { b: 1 })).toBe("Parameter 'a' is missing")
  })

  test('list items are named by their index', () => {
    expect(
      refusal(struct({ options: list(blockdevRef) }), {
        options: [{ driver: 'file', filename: null }],
      }),
    ).toBe("Invalid parameter type for 'options[0].filename', expected: string")
  })
})
