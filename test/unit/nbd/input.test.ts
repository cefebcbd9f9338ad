import { once } from 'node:events'
import { connect, createServer, type Server, Socket } from 'node:net'
import { afterEach, describe, expect, it } from 'vitest'
import { type InputTaker, roomIn, takeInput } from '../../../src/nbd/input.ts'

const servers: Server[] = []

/** Two ends of a connection, as the server accepts them and as the client made them. */
async function ends(): Promise<{ accepted: Socket; made: Socket }> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true })
  servers.push(server)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  if (typeof address !== 'object' || address === null) throw new Error('no port')
  const arrival = once(server, 'connection')
  const made = connect({ port: address.port, host: '127.0.0.1' })
  const [accepted] = (await arrival) as [Socket]
  return { accepted, made }
}

/** Collects what arrives until it is `bytes` long. */
function collector(bytes: number): { take: (part: Buffer) => void; all: Promise<Buffer> } {
  const parts: Buffer[] = []
  let have = 0
  let finish: (all: Buffer) => void = () => undefined
  const all = new Promise<Buffer>((resolve) => {
    finish = resolve
  })
  const take = (part: Buffer): void => {
    parts.push(Buffer.from(part))
    have += part.length
    if (have >= bytes) finish(Buffer.concat(parts))
  }
  return { take, all }
}

/** Takes everything out of the common buffer. */
function plain(arrived: (bytes: Buffer) => void): InputTaker {
  return {
    arrived,
    room: () => undefined,
    filled: () => {
      throw new Error('there was no room')
    },
  }
}

afterEach(async () => {
  for (const server of servers.splice(0)) {
    await new Promise<void>((resolve) => server.close(() => resolve()))
  }
})

describe('nbd / input', () => {
  it('nbd / input / an accepted socket is read through one buffer, whole and in order', async () => {
    const { accepted, made } = await ends()
    const sent = Buffer.alloc(3 << 20)
    for (let i = 0; i < sent.length; i += 4) sent.writeUInt32LE(i, i)
    const { take, all } = collector(sent.length)
    const memories = new Set<ArrayBufferLike>()
    const socket = takeInput(
      accepted,
      plain((bytes) => {
        memories.add(bytes.buffer)
        take(bytes)
      }),
    )
    socket.resume()
    made.end(sent)
    expect((await all).equals(sent)).toBe(true)
    expect(socket).not.toBe(accepted)
    expect(memories.size).toBe(1)
    await once(socket, 'end')
    socket.destroySoon()
    made.destroy()
  })

  it('nbd / input / a long payload is read straight to its place', async () => {
    const { accepted, made } = await ends()
    const sent = Buffer.alloc(3 << 20)
    for (let i = 0; i < sent.length; i += 4) sent.writeUInt32LE(i, i)
    const into = Buffer.alloc(sent.length)
    let fill = 0
    let direct = 0
    let finish: () => void = () => undefined
    const whole = new Promise<void>((resolve) => {
      finish = resolve
    })
    const more = (bytes: number): void => {
      fill += bytes
      if (fill === sent.length) finish()
    }
    const socket = takeInput(accepted, {
      arrived(bytes) {
        bytes.copy(into, fill)
        more(bytes.length)
      },
      room: () => roomIn(into, fill),
      filled(bytes) {
        direct += bytes
        more(bytes)
      },
    })
    socket.resume()
    made.end(sent)
    await whole
    expect(into.equals(sent)).toBe(true)
    expect(direct).toBeGreaterThan(sent.length / 2)
    socket.destroy()
    made.destroy()
  })

  it('nbd / input / it still answers, pauses, and hears the end', async () => {
    const { accepted, made } = await ends()
    let got = 0
    const socket = takeInput(
      accepted,
      plain((bytes) => {
        got += bytes.length
        socket.write(bytes)
      }),
    )
    made.write('one')
    const echo = collector(3)
    made.on('data', echo.take)
    expect(got).toBe(0)
    socket.resume()
    expect((await echo.all).toString()).toBe('one')
    socket.pause()
    made.write('two')
    const passed = collector(3)
    made.on('data', passed.take)
    // The other direction works while this one rests; so what was sent before is not just late.
    const other = once(made, 'data')
    socket.write('still')
    await other
    expect(got).toBe(3)
    socket.resume()
    while (got < 6) await new Promise((resolve) => setImmediate(resolve))
    const ended = once(socket, 'end')
    made.end()
    await ended
    const closed = once(made, 'close')
    socket.end()
    await closed
  })

  it('nbd / input / a socket of another make goes on as it is', () => {
    const socket = new Socket()
    const seen: string[] = []
    expect(
      takeInput(
        socket,
        plain((bytes) => void seen.push(bytes.toString())),
      ),
    ).toBe(socket)
    socket.push('bytes')
    socket.resume()
    socket.emit('data', Buffer.from('by hand'))
    expect(seen).toContain('by hand')
    socket.destroy()
  })

  it('nbd / input / a socket with answers on their way is left alone', async () => {
    const { accepted, made } = await ends()
    accepted.cork()
    accepted.write('waits')
    expect(
      takeInput(
        accepted,
        plain(() => undefined),
      ),
    ).toBe(accepted)
    accepted.uncork()
    const [bytes] = (await once(made, 'data')) as [Buffer]
    expect(bytes.toString()).toBe('waits')
    accepted.destroy()
    made.destroy()
  })
})
