import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { command } from '../../../src/qmp/command.ts'
import { sessionCommands } from '../../../src/qmp/commands/session.ts'
import { EventHub } from '../../../src/qmp/events.ts'
import { MonitorServer, parseMonitorAddress } from '../../../src/qmp/socket.ts'
import { BlockError } from '../../../src/util/errors.ts'

let dir: string
let server: MonitorServer
let hub: EventHub
const clients: net.Socket[] = []
const timers = new Set<() => void>()

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'blockstep-qmp-'))
  timers.clear()
  hub = new EventHub({
    nowMicros: () => 0,
    later: (_ms, fn) => {
      timers.add(fn)
      return () => timers.delete(fn)
    },
  })
  const commands = {
    ...sessionCommands({ names: () => [], schema: () => [], quit: () => undefined }),
    big: command({}, () => 'x'.repeat(1 << 20)),
  }
  server = new MonitorServer(commands, hub, new AioContext())
})

afterEach(async () => {
  for (const client of clients.splice(0)) client.destroy()
  await server.close()
  rmSync(dir, { recursive: true, force: true })
})

const path = (): string => join(dir, 'qmp')

interface Talk {
  readonly socket: net.Socket
  line(): Promise<string>
}

/** A client that hands out one line after the other; the last one is `<end>`. */
function connect(): Talk {
  const socket = net.connect(path())
  clients.push(socket)
  const lines: string[] = []
  const waiters: ((line: string) => void)[] = []
  let text = ''
  const push = (line: string): void => {
    const waiter = waiters.shift()
    if (waiter === undefined) lines.push(line)
    else waiter(line)
  }
  socket.on('data', (chunk) => {
    text += String(chunk)
    const parts = text.split('\r\n')
    text = parts.pop() ?? ''
    for (const part of parts) push(part)
  })
  socket.on('error', () => undefined)
  socket.on('close', () => push('<end>'))
  const line = (): Promise<string> =>
    new Promise((resolve) => {
      const ready = lines.shift()
      if (ready === undefined) waiters.push(resolve)
      else resolve(ready)
    })
  return { socket, line }
}

async function negotiated(): Promise<Talk> {
  const talk = connect()
  await talk.line()
  talk.socket.write("{'execute':'qmp_capabilities'}")
  await talk.line()
  return talk
}

async function refusal(attempt: Promise<unknown>): Promise<BlockError> {
  const error: unknown = await attempt.then(
    () => undefined,
    (thrown: unknown) => thrown,
  )
  if (error instanceof BlockError) return error
  throw new Error(`must be refused with a BlockError, got ${String(error)}`)
}

describe('qmp / socket / address', () => {
  test('the written forms', () => {
    expect(parseMonitorAddress('unix:/a/b')).toEqual({ type: 'unix', path: '/a/b' })
    expect(parseMonitorAddress('unix:/a,server=on,wait=off')).toEqual({ type: 'unix', path: '/a' })
    expect(parseMonitorAddress('tcp:127.0.0.1:4444')).toEqual({
      type: 'tcp',
      host: '127.0.0.1',
      port: 4444,
    })
    expect(parseMonitorAddress('tcp:[::1]:4444')).toEqual({ type: 'tcp', host: '::1', port: 4444 })
    for (const bad of ['', 'foo', 'unix:', 'tcp:1', 'tcp:h:99999', 'unix:/a,bogus=1']) {
      expect(() => parseMonitorAddress(bad), bad).toThrow(BlockError)
    }
  })

  test('a stale socket file is replaced, a live one and other files are not', async () => {
    await server.listen({ type: 'unix', path: path() })
    const second = new MonitorServer({}, hub, new AioContext())
    expect((await refusal(second.listen({ type: 'unix', path: path() }))).code).toBe('EBUSY')
    const file = join(dir, 'file')
    writeFileSync(file, 'precious')
    expect((await refusal(second.listen({ type: 'unix', path: file }))).code).toBe('EEXIST')
    const missing = join(dir, 'no', 'dir')
    expect((await refusal(second.listen({ type: 'unix', path: missing }))).code).toBe('ENOENT')
    const long = join(dir, 'x'.repeat(120))
    expect((await refusal(second.listen({ type: 'unix', path: long }))).message).toMatch(/too long/)
  })
})

describe('qmp / socket / clients', () => {
  test('the second is greeted when the first has left, and negotiates anew', async () => {
    await server.listen({ type: 'unix', path: path() })
    const first = await negotiated()
    const second = connect()
    let greeted = false
    const greeting = second.line().then((line) => {
      greeted = true
      return line
    })
    first.socket.write('{"execute":"query-version"}')
    await first.line()
    expect(greeted).toBe(false)
    first.socket.destroy()
    expect(await greeting).toMatch(/^{"QMP": /)
    second.socket.write('{"execute":"query-version"}')
    expect(await second.line()).toMatch(/Expecting capabilities negotiation/)
  })

  test('events reach negotiated clients only', async () => {
    await server.listen({ type: 'unix', path: path() })
    const talk = connect()
    await talk.line()
    hub.publish('STOP')
    talk.socket.write("{'execute':'qmp_capabilities'}")
    expect(await talk.line()).toBe('{"return": {}}')
    hub.publish('RESUME')
    expect(await talk.line()).toMatch(/"event": "RESUME"/)
  })

  test('text of a client that left is forgotten', async () => {
    await server.listen({ type: 'unix', path: path() })
    const first = await negotiated()
    first.socket.end('{"execute": "query-')
    expect(await first.line()).toBe('<end>')
    const second = await negotiated()
    second.socket.write('{"execute":"query-version"}')
    expect(await second.line()).toMatch(/"return"/)
  })

  test('a client that shuts its sending half still gets its replies', async () => {
    await server.listen({ type: 'unix', path: path() })
    const talk = await negotiated()
    talk.socket.end('{"execute":"big"}{"execute":"query-version","id":1}')
    expect((await talk.line()).length).toBeGreaterThan(1 << 20)
    expect(await talk.line()).toMatch(/"id": 1/)
    expect(await talk.line()).toBe('<end>')
  })

  test('closing lets the client read what was sent', async () => {
    await server.listen({ type: 'unix', path: path() })
    const talk = await negotiated()
    hub.publish('STOP')
    await server.close()
    expect(await talk.line()).toMatch(/STOP/)
    expect(await talk.line()).toBe('<end>')
  })

  test('a client that never reads is left behind at the end', async () => {
    await server.listen({ type: 'unix', path: path() })
    const talk = await negotiated()
    talk.socket.pause()
    talk.socket.write('{"execute":"big"}'.repeat(8))
    await expect.poll(() => talk.socket.bytesWritten, { interval: 5 }).toBeGreaterThan(100)
    const closed = server.close()
    for (const fire of timers) fire()
    await closed
    expect(timers.size).toBe(0)
  })
})
