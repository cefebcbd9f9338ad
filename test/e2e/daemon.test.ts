import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { HostClock, NbdClient } from '../../src/index.ts'

const MAIN = fileURLToPath(new URL('../../dist/src/cli/main.js', import.meta.url))

interface Message {
  readonly [member: string]: unknown
}

let dir: string
const running: ChildProcess[] = []

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'blockstep-e2e-'))
})

afterEach(async () => {
  for (const child of running.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue
    const gone = new Promise((resolve) => child.once('exit', resolve))
    child.kill('SIGKILL')
    await gone
  }
  rmSync(dir, { recursive: true, force: true })
})

/** One monitor connection; replies and events in the order in which they came. */
class Monitor {
  readonly messages: Message[] = []
  readonly socket: net.Socket
  #wake: () => void = () => undefined
  #text = ''
  #ended = false
  #taken = 0

  constructor(path: string) {
    this.socket = net.connect(path)
    this.socket.on('data', (chunk) => {
      const lines = (this.#text + String(chunk)).split('\r\n')
      this.#text = lines.pop() ?? ''
      for (const line of lines) this.messages.push(JSON.parse(line))
      this.#wake()
    })
    this.socket.on('error', () => undefined)
    this.socket.on('close', () => {
      this.#ended = true
      this.#wake()
    })
  }

  /** The next message that fits; undefined at the end of the connection. */
  async next(fits: (message: Message) => boolean): Promise<Message | undefined> {
    for (;;) {
      while (this.#taken < this.messages.length) {
        const message = this.messages[this.#taken++] as Message
        if (fits(message)) return message
      }
      if (this.#ended) return undefined
      await new Promise<void>((resolve) => (this.#wake = resolve))
    }
  }

  call(execute: string, args?: object): Promise<unknown> {
    return this.#request({ execute, ...(args === undefined ? {} : { arguments: args }) })
  }

  callOutOfBand(command: string, args: object): Promise<unknown> {
    return this.#request({ 'exec-oob': command, arguments: args })
  }

  async #request(request: object): Promise<unknown> {
    this.socket.write(JSON.stringify(request))
    const reply = await this.next((message) => 'return' in message || 'error' in message)
    return reply?.return ?? reply?.error
  }

  async end(): Promise<void> {
    await this.next(() => false)
  }
}

interface Daemon {
  readonly child: ChildProcess
  readonly exit: Promise<number | null>
  readonly stderr: () => string
}

function start(...args: string[]): Daemon {
  const child = spawn(process.execPath, [MAIN, 'daemon', ...args], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  running.push(child)
  let text = ''
  child.stderr?.on('data', (chunk) => (text += String(chunk)))
  const exit = new Promise<number | null>((resolve) => child.once('close', (code) => resolve(code)))
  return { child, exit, stderr: () => text }
}

/** Starts a daemon with one monitor and waits for its pid file, which says that it listens. */
async function daemon(name = 'd'): Promise<{ daemon: Daemon; monitor: Monitor; path: string }> {
  const path = join(dir, `${name}.qmp`)
  const pidfile = join(dir, `${name}.pid`)
  const made = start('--qmp', `unix:${path}`, '--pidfile', pidfile)
  await expect
    .poll(() => existsSync(pidfile) || made.stderr(), { interval: 5, timeout: 10_000 })
    .toBe(true)
  const monitor = new Monitor(path)
  const greeting = await monitor.next(() => true)
  expect(greeting).toMatchObject({ QMP: {} })
  expect(await monitor.call('qmp_capabilities', { enable: ['oob'] })).toEqual({})
  return { daemon: made, monitor, path }
}

async function nbd(path: string, name: string): Promise<NbdClient> {
  return NbdClient.connect({
    ctx: { clock: new HostClock() },
    address: { type: 'unix', path },
    exportName: name,
  })
}

describe('e2e / daemon / life', () => {
  test('quit answers, tells what ends, and exits 0', async () => {
    const { daemon: d, monitor, path } = await daemon()
    await monitor.call('blockdev-add', { driver: 'memory', 'node-name': 'm', size: 1 << 20 })
    await monitor.call('nbd-server-start', {
      addr: { type: 'unix', data: { path: join(dir, 'nbd') } },
    })
    await monitor.call('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'm' })
    expect(await monitor.call('quit')).toEqual({})
    await monitor.end()
    const events = monitor.messages.map((message) => message.event).filter(Boolean)
    expect(events).toEqual(['SHUTDOWN', 'BLOCK_EXPORT_DELETED'])
    expect(await d.exit).toBe(0)
    expect(d.stderr()).toBe('')
    expect(existsSync(path)).toBe(false)
    expect(existsSync(join(dir, 'd.pid'))).toBe(false)
  })

  test('SIGTERM ends it in order', async () => {
    const { daemon: d, monitor } = await daemon()
    expect(readFileSync(join(dir, 'd.pid'), 'utf8')).toBe(`${d.child.pid}\n`)
    d.child.kill('SIGTERM')
    expect(await d.exit).toBe(0)
    await monitor.end()
    expect(monitor.messages.at(-1)).toMatchObject({
      event: 'SHUTDOWN',
      data: { reason: 'host-signal' },
    })
  })

  test('a socket left by a killed daemon is taken over', async () => {
    const first = await daemon()
    first.daemon.child.kill('SIGKILL')
    await first.daemon.exit
    expect(existsSync(first.path)).toBe(true)
    rmSync(join(dir, 'd.pid'))
    const second = await daemon()
    expect(await second.monitor.call('query-status')).toMatchObject({ running: true })
  })

  test('two monitors each have their own negotiation and hear the same events', async () => {
    const a = join(dir, 'a')
    const b = join(dir, 'b')
    const pidfile = join(dir, 'pid')
    start('--qmp', `unix:${a}`, '--qmp', `unix:${b},server=on,wait=off`, '--pidfile', pidfile)
    await expect.poll(() => existsSync(pidfile), { interval: 5, timeout: 10_000 }).toBe(true)
    const [first, second] = [new Monitor(a), new Monitor(b)]
    for (const monitor of [first, second]) await monitor.call('qmp_capabilities')
    await first.call('stop')
    expect(await second.next((message) => 'event' in message)).toMatchObject({ event: 'STOP' })
  })
})

describe('e2e / daemon / bad input', () => {
  const cases: readonly (readonly [string, () => string[], RegExp])[] = [
    ['no monitor', () => ['daemon'], /required option '--qmp <address>'/],
    [
      'no address',
      () => ['daemon', '--qmp', 'foo'],
      /'foo' is neither unix:PATH nor tcp:HOST:PORT/,
    ],
    [
      'missing directory',
      () => ['daemon', '--qmp', `unix:${join(dir, 'no', 'x')}`],
      /No such file or directory/,
    ],
    ['unknown option', () => ['daemon', '--qmp', 'unix:/x', '--zz'], /unknown option '--zz'/],
    ['unknown command', () => ['bogus'], /unknown command 'bogus'/],
    [
      'bad pid file',
      () => ['daemon', '--qmp', `unix:${join(dir, 'q')}`, '--pidfile', '/no/x'],
      /cannot create PID file/,
    ],
  ]
  for (const [name, args, words] of cases) {
    test(name, () => {
      const run = spawnSync(process.execPath, [MAIN, ...args()], {
        encoding: 'utf8',
        timeout: 10_000,
      })
      expect(run.status).toBeGreaterThan(0)
      expect(run.stderr).toMatch(words)
      expect(run.stderr.trimEnd().split('\n')).toHaveLength(1)
      expect(run.stderr).toMatch(/^blockstep: /)
    })
  }

  test('a busy socket path', async () => {
    const { path } = await daemon()
    const second = start('--qmp', `unix:${path}`)
    expect(await second.exit).toBe(1)
    expect(second.stderr()).toBe(
      `blockstep: Failed to bind socket to ${path}: Address already in use\n`,
    )
  })
})

describe('e2e / daemon / replication', () => {
  test('a secondary on memory disks keeps the last checkpoint and its own writes', async () => {
    const { daemon: d, monitor } = await daemon()
    const size = 1 << 20
    const add = (options: object) => monitor.call('blockdev-add', options)
    expect(await add({ driver: 'memory', 'node-name': 'local', size })).toEqual({})
    const hidden = { driver: 'memory', 'node-name': 'hidden', size, backing: 'local' }
    const active = { driver: 'memory', 'node-name': 'active', size, backing: hidden }
    const top = {
      driver: 'replication',
      'node-name': 'top',
      mode: 'secondary',
      'top-id': 'top',
      file: active,
    }
    expect(await add(top)).toEqual({})
    const path = join(dir, 'nbd')
    await monitor.call('nbd-server-start', { addr: { type: 'unix', data: { path } } })
    for (const name of ['local', 'top']) {
      const args = { type: 'nbd', id: `e-${name}`, 'node-name': name, writable: true }
      expect(await monitor.call('block-export-add', args)).toEqual({})
    }
    expect(await monitor.call('xen-set-replication', { enable: true, primary: false })).toEqual({})
    const [primary, guest] = [await nbd(path, 'local'), await nbd(path, 'top')]
    await primary.write(0, Buffer.alloc(4096, 0x22))
    expect(await monitor.call('xen-colo-do-checkpoint')).toEqual({})
    await primary.write(0, Buffer.alloc(4096, 0x23))
    await guest.write(8192, Buffer.alloc(4096, 0x33))
    await primary.disconnect()
    const failover = { enable: false, primary: false, failover: true }
    expect(await monitor.call('xen-set-replication', failover)).toEqual({})
    const merged = async (): Promise<boolean> => {
      expect(d.stderr()).toBe('')
      const nodes = JSON.stringify(await monitor.call('query-named-block-nodes', { flat: true }))
      return !nodes.includes('"node-name":"active"')
    }
    await expect.poll(merged, { interval: 10, timeout: 10_000 }).toBe(true)
    expect(await monitor.call('query-xen-replication-status')).toEqual({ error: false })
    const seen = Buffer.alloc(12288)
    await guest.read(0, seen)
    expect(seen.subarray(0, 4096).every((byte) => byte === 0x22)).toBe(true)
    expect(seen.subarray(4096, 8192).every((byte) => byte === 0)).toBe(true)
    expect(seen.subarray(8192).every((byte) => byte === 0x33)).toBe(true)
    await guest.disconnect()
    await monitor.call('quit')
    expect(await d.exit).toBe(0)
  })
})

describe('e2e / daemon / a peer that hangs', () => {
  test('yank, out of band, ends the requests that wait for it', async () => {
    const far = await daemon('far')
    const farNbd = join(dir, 'far.nbd')
    await far.monitor.call('blockdev-add', { driver: 'memory', 'node-name': 'm', size: 1 << 20 })
    await far.monitor.call('nbd-server-start', { addr: { type: 'unix', data: { path: farNbd } } })
    const args = { type: 'nbd', id: 'e', 'node-name': 'm', writable: true }
    await far.monitor.call('block-export-add', args)

    const near = await daemon('near')
    const server = { type: 'unix', path: farNbd }
    const link = { driver: 'nbd', 'node-name': 'link', server, export: 'm' }
    expect(await near.monitor.call('blockdev-add', link)).toEqual({})
    const instance = { type: 'block-node', 'node-name': 'link' }
    expect(await near.monitor.call('query-yank')).toEqual([instance])
    const nearNbd = join(dir, 'near.nbd')
    await near.monitor.call('nbd-server-start', { addr: { type: 'unix', data: { path: nearNbd } } })
    await near.monitor.call('block-export-add', { ...args, 'node-name': 'link', name: 'n' })
    const guest = await nbd(nearNbd, 'n')
    await guest.write(0, Buffer.alloc(4096, 1))

    far.daemon.child.kill('SIGSTOP')
    const outcome = Promise.resolve(guest.write(0, Buffer.alloc(4096, 2))).then(
      () => 'written',
      () => 'failed',
    )
    expect(await near.monitor.callOutOfBand('yank', { instances: [instance] })).toEqual({})
    expect(await outcome).toBe('failed')
    await guest.disconnect()
    expect(await near.monitor.call('quit')).toEqual({})
    expect(await near.daemon.exit).toBe(0)
  })
})
