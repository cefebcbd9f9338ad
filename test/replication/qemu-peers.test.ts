/** Pairs of which one half is a real QEMU: through checkpoint, death of the primary, and failover. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { expect, it } from 'vitest'
import {
  createPrimary,
  createQcow2,
  createSecondary,
  HostClock,
  NbdClient,
} from '../../src/index.ts'
import { fill, patternOf } from '../support/graph.ts'
import { turn } from '../support/tap.ts'
import { haveTool } from '../unit/drivers/qcow2-support.ts'

const MiB = 1024 * 1024
const SIZE = 8 * MiB
const QEMU = 'qemu-system-x86_64'

/** A QEMU without a machine, driven over its monitor. */
class Qemu implements AsyncDisposable {
  readonly folder: string = mkdtempSync(join(tmpdir(), 'qemu-'))
  readonly #process: ChildProcess
  #socket!: Socket
  #lines!: AsyncIterator<string>

  private constructor() {
    const monitor = `unix:${this.folder}/qmp,server=on,wait=off`
    const args = ['-M', 'none', '-nodefaults', '-display', 'none', '-qmp', monitor]
    this.#process = spawn(QEMU, args, { stdio: 'ignore' })
  }

  static async start(): Promise<Qemu> {
    const qemu = new Qemu()
    qemu.#socket = await qemu.#connect()
    qemu.#lines = createInterface({ input: qemu.#socket })[Symbol.asyncIterator]()
    await qemu.#lines.next()
    await qemu.run('qmp_capabilities')
    return qemu
  }

  async #connect(): Promise<Socket> {
    for (;;) {
      const socket = connect(`${this.folder}/qmp`)
      const open = await new Promise<boolean>((resolve) => {
        socket.once('connect', () => resolve(true))
        socket.once('error', () => resolve(false))
      })
      if (open) return socket
      if (this.#process.exitCode !== null) throw new Error('QEMU ended')
      await turn()
    }
  }

  async run(execute: string, args?: object): Promise<unknown> {
    const request = { execute, ...(args === undefined ? {} : { arguments: args }) }
    this.#socket.write(JSON.stringify(request))
    for (;;) {
      const { value, done } = await this.#lines.next()
      if (done === true) throw new Error('QEMU closed its monitor')
      const reply = JSON.parse(String(value)) as { return?: unknown; error?: { desc: string } }
      if (reply.error !== undefined) throw new Error(`${execute}: ${reply.error.desc}`)
      if ('return' in reply) return reply.return
    }
  }

  /** Options of an empty image. */
  async image(name: string, backing?: unknown): Promise<object> {
    const filename = join(this.folder, name)
    await createQcow2(filename, { size: SIZE })
    const file = { driver: 'file', filename }
    return {
      driver: 'qcow2',
      'node-name': name,
      file,
      ...(backing === undefined ? {} : { backing }),
    }
  }

  async serve(...names: string[]): Promise<void> {
    const data = { path: join(this.folder, 'nbd') }
    await this.run('nbd-server-start', { addr: { type: 'unix', data } })
    for (const device of names) await this.run('nbd-server-add', { device, writable: true })
  }

  /** A guest of one of its exports. */
  async guest(exportName: string): Promise<Guest> {
    const address = { type: 'unix', path: join(this.folder, 'nbd') } as const
    const ctx = { clock: new HostClock() }
    return new Guest(await NbdClient.connect({ ctx, address, exportName }))
  }

  kill(): void {
    this.#process.kill('SIGKILL')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.kill()
    this.#socket.destroy()
    rmSync(this.folder, { recursive: true, force: true })
  }
}

class Guest implements AsyncDisposable {
  readonly #client: NbdClient

  constructor(client: NbdClient) {
    this.#client = client
  }

  write(byte: number, offset: number, bytes: number): Promise<void> {
    return this.#client.write(offset, Buffer.alloc(bytes, byte))
  }

  /** The one byte that a range is full of; -1 for several. */
  async byteOf(offset: number, bytes: number): Promise<number> {
    const buf = Buffer.alloc(bytes)
    await this.#client.read(offset, buf)
    return buf.every((byte) => byte === buf[0]) ? (buf[0] ?? -1) : -1
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#client.disconnect()
  }
}

it.skipIf(!haveTool(QEMU))(
  'replication / qemu peers / our primary with a real secondary',
  async () => {
    await using qemu = await Qemu.start()
    await qemu.run('blockdev-add', await qemu.image('local'))
    const active = await qemu.image('active', await qemu.image('hidden', 'local'))
    const role = { driver: 'replication', mode: 'secondary', 'top-id': 'top', file: active }
    await qemu.run('blockdev-add', { ...role, 'node-name': 'top' })
    await qemu.serve('local', 'top')
    await qemu.run('xen-set-replication', { enable: true, primary: false })
    const primary = await createPrimary({
      disk: { memory: SIZE },
      secondary: { type: 'unix', path: join(qemu.folder, 'nbd') },
      exportName: 'local',
    })
    await using top = await qemu.guest('top')
    await fill(primary.backend, 0x21, MiB, MiB)
    expect(await top.byteOf(MiB, MiB)).toBe(0)
    await top.write(0x99, 2 * MiB, MiB)
    await primary.checkpoint()
    await qemu.run('xen-colo-do-checkpoint')
    expect(await top.byteOf(MiB, MiB)).toBe(0x21)
    expect(await top.byteOf(2 * MiB, MiB)).toBe(0)
    await fill(primary.backend, 0x31, 3 * MiB, MiB)
    await top.write(0x44, 4 * MiB, MiB)
    await primary.close()
    await qemu.run('xen-set-replication', { enable: false, primary: false, failover: true })
    for (;;) {
      const nodes = (await qemu.run('query-named-block-nodes')) as { 'node-name': string }[]
      if (!nodes.some((node) => node['node-name'] === 'active')) break
      await turn()
    }
    expect(await top.byteOf(MiB, MiB)).toBe(0x21)
    expect(await top.byteOf(3 * MiB, MiB)).toBe(0)
    expect(await top.byteOf(4 * MiB, MiB)).toBe(0x44)
  },
)

it.skipIf(!haveTool(QEMU))(
  'replication / qemu peers / a real primary with our secondary',
  async () => {
    await using qemu = await Qemu.start()
    const exportAt = { type: 'unix', path: join(qemu.folder, 'ours') } as const
    await using secondary = await createSecondary({ disk: { memory: SIZE }, exportAt })
    await qemu.run('blockdev-add', await qemu.image('own'))
    const vote = {
      driver: 'quorum',
      'vote-threshold': 1,
      'read-pattern': 'fifo',
      children: ['own'],
    }
    await qemu.run('blockdev-add', { ...vote, 'node-name': 'colo' })
    const link = { driver: 'nbd', server: exportAt, export: 'disk' }
    const role = { driver: 'replication', mode: 'primary', file: link }
    await qemu.run('blockdev-add', { ...role, 'node-name': 'replica' })
    await qemu.run('x-blockdev-change', { parent: 'colo', node: 'replica' })
    await qemu.serve('colo')
    await qemu.run('xen-set-replication', { enable: true, primary: true })
    const guest = await qemu.guest('colo')
    const top = secondary.backend
    await guest.write(0x21, MiB, MiB)
    expect(await patternOf(top, MiB, MiB)).toBe(0)
    await fill(top, 0x99, 2 * MiB, MiB)
    await secondary.checkpoint()
    await qemu.run('xen-colo-do-checkpoint')
    expect(await patternOf(top, MiB, MiB)).toBe(0x21)
    expect(await patternOf(top, 2 * MiB, MiB)).toBe(0)
    await guest.write(0x31, 3 * MiB, MiB)
    await fill(top, 0x44, 4 * MiB, MiB)
    qemu.kill()
    const { restoredBytes } = await secondary.failover()
    expect(restoredBytes).toBe(MiB)
    expect(await patternOf(top, MiB, MiB)).toBe(0x21)
    expect(await patternOf(top, 3 * MiB, MiB)).toBe(0)
    expect(await patternOf(top, 4 * MiB, MiB)).toBe(0x44)
  },
)
