import { describe, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { command } from '../../../src/qmp/command.ts'
import { sessionCommands } from '../../../src/qmp/commands/session.ts'
import { MonitorSession } from '../../../src/qmp/session.ts'
import { BlockError } from '../../../src/util/errors.ts'

interface Line {
  readonly [member: string]: unknown
}

class Client {
  readonly lines: Line[] = []
  readonly session: MonitorSession
  release: () => void = () => undefined
  paused = false

  constructor() {
    const commands = {
      ...sessionCommands({ names: () => ['a', 'b'], schema: () => [], quit: () => undefined }),
      slow: command(
        {},
        () => new Promise<undefined>((resolve) => (this.release = () => resolve(undefined))),
      ),
      gone: command({}, () => {
        throw new BlockError('DEVICE_NOT_FOUND', 'no such thing')
      }),
      fast: command({}, () => 7, true),
    }
    this.session = new MonitorSession(
      commands,
      {
        send: (line) => this.lines.push(JSON.parse(line)),
        pauseInput: (paused) => (this.paused = paused),
      },
      new AioContext(),
    )
    this.session.greet()
  }

  say(text: string): this {
    this.session.push(Buffer.from(text))
    return this
  }

  async heard(): Promise<Line[]> {
    // A command that waits is a coroutine: its turn, its wait and its answer are turns of the loop.
    for (let turn = 0; turn < 4; turn++) await new Promise((resolve) => setImmediate(resolve))
    return this.lines.splice(0)
  }

  async negotiated(args = ''): Promise<this> {
    this.say(`{'execute':'qmp_capabilities'${args}}`)
    await this.heard()
    return this
  }
}

const fails = (desc: string, cls = 'GenericError', id?: unknown): Line => ({
  ...(id === undefined ? {} : { id }),
  error: { class: cls, desc },
})

describe('qmp / session / negotiation', () => {
  test('greets at once', async () => {
    const [greeting] = await new Client().heard()
    expect(greeting).toMatchObject({
      QMP: { version: { qemu: { major: 7 } }, capabilities: ['oob'] },
    })
  })

  test('knows nothing else before and no negotiation after', async () => {
    const client = new Client()
    await client.heard()
    client.say(
      '{"execute":"fast"}{"execute":"nosuch"}{"execute":"qmp_capabilities","arguments":{"foo":1}}',
    )
    client.say('{"execute":"qmp_capabilities"}{"execute":"qmp_capabilities"}{"execute":"fast"}')
    expect(await client.heard()).toEqual([
      fails("Expecting capabilities negotiation with 'qmp_capabilities'", 'CommandNotFound'),
      fails("Expecting capabilities negotiation with 'qmp_capabilities'", 'CommandNotFound'),
      fails("Parameter 'foo' is unexpected"),
      { return: {} },
      fails('Capabilities negotiation is already complete, command ignored', 'CommandNotFound'),
      { return: 7 },
    ])
  })

  test('refuses capabilities it does not know', async () => {
    const client = new Client()
    await client.heard()
    client.say('{"execute":"qmp_capabilities","arguments":{"enable":["bogus"]}}')
    client.say('{"execute":"qmp_capabilities","arguments":{"enable":"oob"}}')
    expect(await client.heard()).toEqual([
      fails("Parameter 'null' does not accept value 'bogus'"),
      fails("Invalid parameter type for 'enable', expected: array"),
    ])
  })
})

describe('qmp / session / envelope', () => {
  const cases: readonly (readonly [string, Line])[] = [
    ['[]', fails('QMP input must be a JSON object')],
    ['5 ', fails('QMP input must be a JSON object')],
    ['{"id":3}', fails("QMP input lacks member 'execute'", 'GenericError', 3)],
    ['{"execute":5}', fails("QMP input member 'execute' must be a string")],
    [
      '{"execute":"fast","arguments":null}',
      fails("QMP input member 'arguments' must be an object"),
    ],
    [
      '{"execute":"fast","id":3,"bogus":1,"arguments":5}',
      fails("QMP input member 'bogus' is unexpected", 'GenericError', 3),
    ],
    ['{"exec-oob":"fast"}', fails("QMP input member 'exec-oob' is unexpected")],
    ['{"execute":"nosuch"}', fails('The command nosuch has not been found', 'CommandNotFound')],
    ['{"execute":"toString"}', fails('The command toString has not been found', 'CommandNotFound')],
    ['{"execute":"gone","id":"x"}', fails('no such thing', 'DeviceNotFound', 'x')],
    ['{"execute":"fast","arguments":{"a":1}}', fails("Parameter 'a' is unexpected")],
    ['{"execute":"fast","id":null}', { return: 7, id: null }],
    ['xyz ', fails("JSON parse error, invalid keyword 'xyz'")],
  ]
  for (const [text, reply] of cases) {
    test(text, async () => {
      const client = await new Client().negotiated()
      expect(await client.say(text).heard()).toEqual([reply])
    })
  }
})

describe('qmp / session / order', () => {
  test('in-band commands wait for each other', async () => {
    const client = await new Client().negotiated()
    client.say('{"execute":"slow","id":1}{"execute":"fast","id":2}xyz ')
    expect(await client.heard()).toEqual([])
    client.release()
    expect(await client.heard()).toEqual([
      { return: {}, id: 1 },
      { return: 7, id: 2 },
      fails("JSON parse error, invalid keyword 'xyz'"),
    ])
  })

  test('out-of-band commands overtake once negotiated', async () => {
    const client = await new Client().negotiated(",'arguments':{'enable':['oob']}")
    client.say('{"execute":"slow","id":1}{"exec-oob":"fast","id":2}{"exec-oob":"slow","id":3}')
    expect(await client.heard()).toEqual([
      { return: 7, id: 2 },
      fails('The command slow does not support OOB', 'GenericError', 3),
    ])
    client.release()
    expect(await client.heard()).toEqual([{ return: {}, id: 1 }])
  })

  test('a flood stops the reading until it is worked off', async () => {
    const client = await new Client().negotiated()
    client.say(`{"execute":"slow"}${'{"execute":"fast"}'.repeat(100)}`)
    expect(client.paused).toBe(true)
    client.release()
    expect(await client.heard()).toHaveLength(101)
    expect(client.paused).toBe(false)
  })

  test('a command that ends after the client left answers nobody', async () => {
    const client = await new Client().negotiated()
    client.say('{"execute":"slow"}{"execute":"fast"}')
    client.session.end()
    client.release()
    expect(await client.heard()).toEqual([])
  })
})
