/** The daemon's command line, as scripts for a storage daemon write it. */
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import {
  alive,
  blockstep,
  here,
  listening,
  pidIn,
  type RunningDaemon,
  startDaemon,
  stopAll,
} from '../support/cli.ts'

// Starting a program takes its time where others run beside it.
vi.setConfig({ testTimeout: 90_000 })

let dir: string

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'blockstep-cli-'))
})
afterEach(async () => {
  await stopAll()
  rmSync(dir, { recursive: true, force: true })
})

const run = (...args: string[]): ReturnType<typeof blockstep> => blockstep(dir, ...args)
const start = (...args: string[]): RunningDaemon => startDaemon(dir, ...args)

/** Sends one command through the `qmp` subcommand. */
async function ask(socket: string, command: string, args?: object): Promise<unknown> {
  const json = args === undefined ? [] : [JSON.stringify(args)]
  const { status, stdout, stderr } = await here(dir, 'qmp', socket, command, ...json)
  return status === 0 ? JSON.parse(stdout) : stderr
}

/** Reads lines until one fits. */
async function line(stream: Readable, fits: RegExp): Promise<string> {
  let text = ''
  for await (const chunk of stream.iterator({ destroyOnReturn: false })) {
    text += String(chunk)
    const found = text.split('\n').find((each) => fits.test(each))
    if (found !== undefined) return found.trimEnd()
  }
  return text
}

describe('e2e / cli / daemon / options', () => {
  test('nodes, server, export and monitor from the command line alone', async () => {
    const [disk, served] = ['null-co,node-name=n0,size=1M', 'raw,node-name=disk,file=n0']
    const d = start(
      ...['--blockdev', disk, '--blockdev', served],
      ...['--nbd-server', 'addr.type=unix,addr.path=nbd'],
      ...['--export', 'nbd,id=e0,node-name=disk,name=,writable=on'],
      ...['--chardev', 'socket,id=c0,path=qmp,server=on,wait=off', '--monitor', 'c0'],
      ...['--pidfile', 'pid'],
    )
    await listening(join(dir, 'pid'), d)
    expect(await ask('qmp', 'query-block-exports')).toMatchObject([
      { id: 'e0', 'node-name': 'disk' },
    ])
    expect((await here(dir, 'info', '--json', 'nbd+unix:///?socket=nbd')).stdout).toMatch(
      /"virtual-size": 1048576/,
    )
    expect(await ask('qmp', 'quit')).toEqual({})
    expect(await d.exit).toBe(0)
    expect(readdirSync(dir)).toEqual([])
  })

  test('an option that fails is named with its value, and nothing is left behind', () => {
    const ended = run(
      'daemon',
      ...['--nbd-server', 'addr.type=unix,addr.path=nbd'],
      ...['--chardev', 'socket,id=c,path=qmp,server=on,wait=off', '--monitor', 'c'],
      ...['--pidfile', 'pid', '--export', 'nbd,id=a,node-name=b'],
    )
    expect(ended).toEqual({
      status: 1,
      stdout: '',
      stderr: "blockstep: --export nbd,id=a,node-name=b: Cannot find device='' nor node-name='b'\n",
    })
    expect(readdirSync(dir)).toEqual([])
  })

  test('the order of the options counts', () => {
    const node = ['--blockdev', 'null-co,node-name=b']
    const ended = run('daemon', '--export', 'nbd,id=a,node-name=b', ...node)
    expect(ended.stderr).toMatch(/Cannot find device='' nor node-name='b'/)
  })

  test('a daemon that has nodes only stays until a signal', async () => {
    const d = start('--blockdev', 'null-co,node-name=b', '--pidfile', 'pid')
    await listening(join(dir, 'pid'), d)
    d.child.kill('SIGHUP')
    expect(await d.exit).toBe(0)
    expect(readdirSync(dir)).toEqual([])
  })

  test('a monitor that waits for its client lets a signal end the program', async () => {
    const d = start('--chardev', 'socket,id=c,path=qmp,server=on', '--monitor', 'c')
    await expect.poll(() => existsSync(join(dir, 'qmp')), { timeout: 15_000 }).toBe(true)
    d.child.kill('SIGTERM')
    expect(await d.exit).toBe(0)
    expect(readdirSync(dir)).toEqual([])
  })

  test('options with one dash, and drives before the objects that they need', async () => {
    const d = start(
      ...['-drive', 'if=none,node-name=disk,driver=null-co,size=1M'],
      ...['-drive', 'if=none,id=top,driver=throttle,throttle-group=g,file=disk'],
      ...['-object', 'throttle-group,id=g,x-bps-total=1000000'],
      ...['-qmp', 'unix:qmp,server=on,wait=off', '-pidfile', 'pid'],
    )
    // A plain `file` of a drive is a path.
    expect(await d.exit).toBe(1)
    expect(d.stderr()).toMatch(/--drive if=none,id=top.*Could not open 'disk'/)
    const good = 'if=none,id=top,driver=throttle,throttle-group=g,file.driver=raw,file.file=disk'
    const e = start(
      ...['-drive', 'if=none,node-name=disk,driver=null-co,size=1M', '-drive', good],
      ...['-object', 'throttle-group,id=g,x-bps-total=1000000'],
      ...['-qmp', 'unix:qmp,server=on,wait=off', '-pidfile', 'pid'],
    )
    await listening(join(dir, 'pid'), e)
    expect(JSON.stringify(await ask('qmp', 'query-named-block-nodes'))).toMatch(/"node-name":"top"/)
    await ask('qmp', 'quit')
    expect(await e.exit).toBe(0)
  })

  test('the port that was found is told when asked for', async () => {
    const d = start(
      ...['--nbd-server', 'addr.type=inet,addr.host=127.0.0.1,addr.port=0'],
      ...['--blockdev', 'null-co,node-name=n,size=1M', '--export', 'nbd,id=e,node-name=n'],
      ...['--verbose', '--pidfile', 'pid'],
    )
    const told = /listens on 127\.0\.0\.1:(\d+)/
    await expect.poll(() => told.test(d.stderr()), { timeout: 15_000 }).toBe(true)
    const port = told.exec(d.stderr())?.[1]
    expect((await here(dir, 'map', '--json', `nbd://127.0.0.1:${port}/n`)).status).toBe(0)
  })

  test('version and help', async () => {
    const version = await here(dir, 'daemon', '--version')
    expect(version.status).toBe(0)
    expect(version.stdout).toMatch(
      /^blockstep version \d+\.\d+\.\d+, .*qemu-storage-daemon version/,
    )
    const help = await here(dir, 'daemon', '--help')
    expect(help.status).toBe(0)
    for (const word of ['--blockdev', '--export', '--nbd-server', '--chardev', '--monitor'])
      expect(help.stdout).toContain(word)
  })

  test('bad words cost one line', async () => {
    for (const args of [['--zz'], ['word'], ['--blockdev'], []]) {
      const { status, stderr } = await here(dir, 'daemon', ...args)
      expect(status).toBe(1)
      expect(stderr).toMatch(/^blockstep: [^\n]+\n$/)
    }
  })
})

describe('e2e / cli / daemon / stdio and clients', () => {
  test('a monitor on standard input and output', async () => {
    const d = start('--chardev', 'stdio,id=c', '--monitor', 'chardev=c')
    const { stdin, stdout } = d.child
    if (stdin === null || stdout === null) throw new Error('no pipes')
    expect(await line(stdout, /QMP/)).toMatch(/^\{"QMP": /)
    stdin.write('{"execute": "qmp_capabilities"}{"execute": "query-status", "id": 1}')
    expect(await line(stdout, /"id": 1/)).toMatch(/"running": true/)
    stdin.write('{"execute": "quit"}')
    stdout.resume()
    expect(await d.exit).toBe(0)
  })

  test('we connect to somebody who listens', async () => {
    const server = net.createServer()
    await new Promise<void>((resolve) => server.listen(join(dir, 'peer'), resolve))
    const arrived = new Promise<net.Socket>((resolve) => server.once('connection', resolve))
    const d = start('--chardev', 'socket,id=c,path=peer', '--monitor', 'c')
    const peer = await arrived
    expect(await line(peer, /QMP/)).toMatch(/^\{"QMP": /)
    peer.write('{"execute": "qmp_capabilities"}{"execute": "quit"}')
    peer.resume()
    expect(await d.exit).toBe(0)
    peer.destroy()
    await new Promise((resolve) => server.close(resolve))
  })
})

describe('e2e / cli / daemon / background', () => {
  const served = [
    ...['--blockdev', 'null-co,node-name=n,size=1M'],
    ...['--nbd-server', 'addr.type=unix,addr.path=nbd', '--export', 'nbd,id=e,node-name=n,name='],
  ]

  test('the command ends when everything listens, and the daemon goes on', async () => {
    const ended = run('daemon', '--daemonize', '--pidfile', 'pid', ...served)
    expect(ended).toEqual({ status: 0, stdout: '', stderr: '' })
    const pid = pidIn(join(dir, 'pid'))
    expect(alive(pid)).toBe(true)
    expect((await here(dir, 'map', '--json', 'nbd+unix:///?socket=nbd')).status).toBe(0)
    process.kill(pid, 'SIGTERM')
    await expect.poll(() => alive(pid), { interval: 10, timeout: 15_000 }).toBe(false)
    expect(readdirSync(dir)).toEqual([])
  })

  test('a failure is told by the command, and no process stays', () => {
    const ended = run('daemon', '--daemonize', '--pidfile', 'pid', ...served, '--monitor', 'c')
    expect(ended).toEqual({
      status: 1,
      stdout: '',
      stderr: 'blockstep: --monitor c: chardev "c" not found\n',
    })
    expect(readdirSync(dir)).toEqual([])
  })

  test('standard input and output are refused', async () => {
    const ended = await here(
      dir,
      'daemon',
      '--daemonize',
      '--chardev',
      'stdio,id=c',
      '--monitor',
      'c',
    )
    expect(ended.status).toBe(1)
    expect(ended.stderr).toBe('blockstep: --chardev stdio,id=c: cannot use stdio with -daemonize\n')
  })

  test('a pid file that cannot be written ends the daemon', () => {
    writeFileSync(join(dir, 'file'), '')
    const ended = run('daemon', '--daemonize', '--pidfile', 'file/pid', ...served)
    expect(ended.status).toBe(1)
    expect(ended.stderr).toBe(
      "blockstep: cannot create PID file: Could not create 'file/pid': Not a directory\n",
    )
    expect(readdirSync(dir)).toEqual(['file'])
  })
})

describe('e2e / cli / qmp', () => {
  test('a refusal, an unknown command, bad arguments, a dead monitor', async () => {
    const d = start('--qmp', 'unix:qmp', '--pidfile', 'pid')
    await listening(join(dir, 'pid'), d)
    expect(await ask('qmp', 'blockdev-del', { 'node-name': 'x' })).toBe(
      "blockstep: GenericError: Failed to find node with node-name='x'\n",
    )
    expect(await ask('unix:qmp', 'nosuch')).toBe(
      'blockstep: CommandNotFound: The command nosuch has not been found\n',
    )
    const bad = await here(dir, 'qmp', 'qmp', 'query-jobs', '[1]')
    expect(bad.status).toBe(1)
    expect(bad.stderr).toBe('blockstep: The arguments must be a JSON object, but are [1]\n')
    const gone = await here(dir, 'qmp', 'nobody', 'query-jobs')
    expect(gone.status).toBe(1)
    expect(gone.stderr).toMatch(/^blockstep: Cannot talk to the monitor at nobody: [^\n]*ENOENT/)
  })

  test('a monitor that does not answer is given up on time', async () => {
    const server = net.createServer()
    await new Promise<void>((resolve) => server.listen(join(dir, 'mute'), resolve))
    const ended = await here(dir, 'qmp', '--timeout', '0.2', 'mute', 'query-jobs')
    expect(ended.status).toBe(1)
    expect(ended.stderr).toMatch(/^blockstep: [^\n]*no answer within 0\.2 s\n$/)
    await new Promise((resolve) => server.close(resolve))
  })
})
