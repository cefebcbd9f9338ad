import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, renameSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, expect, test } from 'vitest'

const folder = mkdtempSync(path.join(tmpdir(), 'nbd-fd-'))
const main = path.resolve(import.meta.dirname, '../../dist/src/cli/main.js')
let daemon: ChildProcess | undefined

afterEach(async () => {
  if (daemon !== undefined && daemon.exitCode === null) {
    daemon.kill('SIGKILL')
    await once(daemon, 'exit')
  }
  rmSync(folder, { recursive: true, force: true })
})

/** Connects as soon as somebody listens. */
async function connect(where: string): Promise<net.Socket> {
  for (let attempt = 0; ; attempt++) {
    const socket = net.connect(where)
    try {
      await once(socket, 'connect')
      return socket
    } catch (error) {
      if (attempt === 200) throw error
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }
}

/** The host's number of a listening socket; Node keeps it in a handle without a public name. */
function descriptorOf(server: net.Server): number {
  const handle: unknown = Reflect.get(server, '_handle')
  const fd: unknown = typeof handle === 'object' && handle !== null && Reflect.get(handle, 'fd')
  if (typeof fd !== 'number') throw new Error('the server has no descriptor')
  return fd
}

/** One line of a monitor that starts with a return or an error. */
async function reply(lines: AsyncIterator<string>): Promise<string> {
  for (;;) {
    const { value } = await lines.next()
    if (/"(return|error)"/.test(value)) return value
  }
}

async function* linesOf(socket: net.Socket): AsyncGenerator<string, string> {
  let rest = ''
  for await (const piece of socket) {
    const parts = (rest + String(piece)).split('\n')
    rest = parts.pop() ?? ''
    yield* parts
  }
  return rest
}

test('daemon / nbd / a listening socket that was handed over serves a client that waits already', async () => {
  const server = net.createServer()
  server.listen(path.join(folder, 'first'))
  await once(server, 'listening')
  const monitor = path.join(folder, 'qmp')
  const args = [main, 'daemon', '--qmp', `unix:${monitor}`]
  daemon = spawn(process.execPath, args, {
    stdio: ['ignore', 'ignore', 'inherit', descriptorOf(server)],
  })
  // Closing takes the first name away; by the other one the socket of the child stays reachable.
  renameSync(path.join(folder, 'first'), path.join(folder, 'nbd'))
  server.close()
  await once(server, 'close')
  const client = await connect(path.join(folder, 'nbd'))
  const qmp = await connect(monitor)
  const lines = linesOf(qmp)
  const run = async (execute: string, more?: object): Promise<string> => {
    qmp.write(JSON.stringify({ execute, ...(more ? { arguments: more } : {}) }))
    return reply(lines)
  }
  const fd = (str: string) => ({ addr: { type: 'fd', data: { str } } })
  await run('qmp_capabilities')
  expect(await run('nbd-server-start', fd('name'))).toMatch(/named 'name' has not been found/)
  expect(await run('nbd-server-start', fd('999'))).toMatch(/'999' is not a socket/)
  expect(await run('nbd-server-start', fd('3'))).toMatch(/"return"/)
  const [greeting] = await once(client, 'data')
  expect(String(greeting.subarray(0, 8))).toBe('NBDMAGIC')
  client.destroy()
  await run('quit')
  qmp.destroy()
})
