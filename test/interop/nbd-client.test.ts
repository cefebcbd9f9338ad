import type { ChildProcess } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, expect } from 'vitest'
import { NbdClient } from '../../src/nbd/client.ts'
import { parseNbdUri } from '../../src/nbd/uri.ts'
import { HostClock } from '../../src/util/clock.ts'
import { serving, withTools } from './nbd-peers.ts'

const ctx = { clock: new HostClock() }
let dirs: string[] = []
let children: ChildProcess[] = []

afterEach(() => {
  for (const child of children) child.kill('SIGKILL')
  for (const dir of dirs) rmSync(dir, { recursive: true })
  children = []
  dirs = []
})

async function setup(tool: string, args: (socket: string, image: string) => string[], name = '') {
  const dir = mkdtempSync(join(tmpdir(), 'blockstep-nbd-'))
  dirs.push(dir)
  const image = join(dir, 'image')
  const socket = join(dir, 's')
  writeFileSync(image, Buffer.alloc(4 << 20))
  const uri = `nbd+unix:///${name}?socket=${socket}`
  children.push(await serving(tool, args(socket, image), uri))
  const { address, exportName } = parseNbdUri(uri)
  return { client: await NbdClient.connect({ ctx, address, exportName }), image, dir }
}

/** Writes in many sizes at once, reads back, zeroes, asks for status. */
async function exercise(client: NbdClient): Promise<void> {
  expect(client.size).toBe(4 << 20)
  const piece = 100_000
  const writes = Array.from({ length: 30 }, (_, i) => {
    const fua = i % 7 === 0
    return client.write(i * piece, Buffer.alloc(piece, i + 1), { fua })
  })
  await Promise.all(writes)
  const reads = Array.from({ length: 30 }, async (_, i) => {
    const buf = Buffer.alloc(piece)
    await client.read(i * piece, buf)
    expect(buf.every((byte) => byte === i + 1)).toBe(true)
  })
  await Promise.all(reads)
  await client.writeZeroes(1 << 20, 1 << 20, { unmap: true })
  const status = await client.blockStatus(1 << 20, 2 << 20)
  expect(status).toEqual({ bytes: 1 << 20, bits: 3 })
  const zeroed = Buffer.alloc(2 << 20, 1)
  await client.read(1 << 20, zeroed)
  expect(zeroed.subarray(0, 1 << 20).every((byte) => byte === 0)).toBe(true)
  await client.trim(0, 4096)
  await client.flush()
  await expect(client.read(4 << 20, Buffer.alloc(512))).rejects.toMatchObject({ code: 'EINVAL' })
}

withTools(['qemu-nbd', 'nbdinfo'], 'nbd / interop / our client against qemu-nbd', async () => {
  const { client, image } = await setup(
    'qemu-nbd',
    (socket, file) => [...['-t', '-f', 'raw', '-k', socket, '-x', 'e', '--discard=unmap', file]],
    'e',
  )
  await exercise(client)
  await client.disconnect()
  expect(readFileSync(image)[2_650_000]).toBe(27)
})

withTools(['nbdkit', 'nbdinfo'], 'nbd / interop / our client against nbdkit', async () => {
  const { client } = await setup('nbdkit', (socket) => ['-f', '-U', socket, 'memory', '4M'])
  await exercise(client)
  await client.disconnect()
})

withTools(
  ['nbdkit', 'nbdinfo'],
  'nbd / interop / our client without structured replies',
  async () => {
    const { client } = await setup('nbdkit', (socket) => [
      ...['-f', '--no-sr', '-U', socket, 'memory', '4M'],
    ])
    expect(client.remote.structured).toBe(false)
    await client.write(5, Buffer.from('hello'))
    const buf = Buffer.alloc(5)
    await client.read(5, buf)
    expect(buf.toString()).toBe('hello')
    await client.disconnect()
  },
)

withTools(['qemu-nbd', 'nbdinfo'], 'nbd / interop / a killed server fails what runs', async () => {
  const { client } = await setup('qemu-nbd', (socket, file) => [
    '-t',
    '-f',
    'raw',
    '-k',
    socket,
    file,
  ])
  const reads = Array.from({ length: 8 }, () => client.read(0, Buffer.alloc(1 << 20)))
  children[0]?.kill('SIGKILL')
  await Promise.allSettled(reads)
  const next = async (): Promise<void> => client.read(0, Buffer.alloc(512))
  await expect(next()).rejects.toMatchObject({ code: 'EIO' })
  await client.disconnect()
})

withTools(
  ['qemu-nbd', 'nbdinfo'],
  'nbd / interop / a server that stands still is given up, and used when it goes on',
  async () => {
    const { client: first, dir } = await setup('qemu-nbd', (socket, file) => [
      ...['-t', '-e', '0', '-f', 'raw', '-k', socket, file],
    ])
    await first.disconnect()
    const client = await NbdClient.connect({
      ctx,
      address: { type: 'unix', path: join(dir, 's') },
      requestTimeoutMs: 100,
      handshakeMs: 200,
    })
    children[0]?.kill('SIGSTOP')
    await expect(client.read(0, Buffer.alloc(512))).rejects.toMatchObject({ code: 'ETIMEDOUT' })
    children[0]?.kill('SIGCONT')
    const works = async (): Promise<boolean> => {
      try {
        await client.read(0, Buffer.alloc(512))
        return true
      } catch {
        return false
      }
    }
    while (!(await works())) await new Promise((resolve) => setImmediate(resolve))
    await client.disconnect()
  },
)
