import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, expect } from 'vitest'
import { nbdUri } from '../../src/nbd/uri.ts'
import { type Served, serve } from '../unit/nbd/support.ts'
import { must, run, withTools } from './nbd-peers.ts'

let open: Served[] = []

async function start(options: Parameters<typeof serve>[0] = {}): Promise<Served & { uri: string }> {
  const served = await serve({ size: 16 << 20, ...options })
  served.disk.bytes.fill(0x11, 1 << 20, 2 << 20)
  served.disk.bytes.fill(0x22, 5 << 20, 8 << 20)
  open.push(served)
  return { ...served, uri: nbdUri(served.address, 'a') }
}

afterEach(async () => {
  for (const served of open) await served.close()
  open = []
})

withTools(['nbdinfo'], 'nbd / interop / nbdinfo reads lists, flags and maps', async () => {
  const exp = { description: 'the quiet one', allocationDepth: true }
  const { uri, server, disk, address } = await start({ exp })
  server.addExport({ name: 'ro', backend: disk, readOnly: true })
  const list = JSON.parse(await must('nbdinfo', ['--list', '--json', nbdUri(address, '')])).exports
  expect(list.map((one: Record<string, unknown>) => one['export-name'])).toEqual(['a', 'ro'])
  expect(list[0]).toMatchObject({
    description: 'the quiet one',
    'export-size': 16 << 20,
    is_read_only: false,
    can_df: true,
    can_fast_zero: true,
    can_multi_conn: true,
    block_size_minimum: 1,
    block_size_preferred: 4096,
    block_size_maximum: 32 << 20,
    contexts: ['base:allocation', 'qemu:allocation-depth'],
  })
  expect(list[1]).toMatchObject({ is_read_only: true, can_trim: false })
  const map = JSON.parse(await must('nbdinfo', ['--map', '--json', uri]))
  expect(map.map((e: Record<string, unknown>) => [e.offset, e.length, e.type])).toEqual([
    [0, 1 << 20, 3],
    [1 << 20, 1 << 20, 0],
    [2 << 20, 3 << 20, 3],
    [5 << 20, 3 << 20, 0],
    [8 << 20, 8 << 20, 3],
  ])
  const depth = await must('nbdinfo', ['--map=qemu:allocation-depth', '--totals', uri])
  expect(depth).toMatch(/12582912 .* absent\n *4194304 .* local/)
  const unknown = await run('nbdinfo', ['--size', nbdUri(address, 'nope')])
  expect(unknown.code).not.toBe(0)
  expect(unknown.err).toContain("no export named 'nope'")
})

withTools(['nbdcopy'], 'nbd / interop / nbdcopy copies out and in, equal', async () => {
  for (const slow of [false, true]) {
    const { uri, disk, dir, server, address } = await start()
    disk.slow = slow
    const file = join(dir, 'flat')
    await must('nbdcopy', [uri, file])
    expect(readFileSync(file).equals(disk.bytes)).toBe(true)
    const target = (await start()).disk
    target.bytes.fill(0xff)
    target.slow = slow
    server.addExport({ name: 'b', backend: target, readOnly: false })
    await must('nbdcopy', ['--flush', file, nbdUri(address, 'b')])
    expect(target.bytes.equals(disk.bytes)).toBe(true)
    expect(target.log).toContain('flush')
  }
})

withTools(['qemu-io', 'qemu-img', 'qemu-nbd'], 'nbd / interop / QEMU tools work', async () => {
  const { uri, disk, dir, server, address } = await start()
  const io = (target: string, ...commands: string[]) =>
    run('qemu-io', ['-f', 'raw', ...commands.flatMap((c) => ['-c', c]), target])
  const good = await io(
    uri,
    'read -P 0x11 1M 1M',
    'write -P 0x33 2M 100k',
    'write -f -P 0x34 3M 512',
    'write -z 5M 1M',
    'discard 6M 1M',
    'flush',
    'read -P 0 5M 2M',
    'read -P 0x33 2M 100k',
    'aio_write -P 0x35 9M 2M',
    'aio_read 0 8M',
    'aio_flush',
  )
  expect(good.out + good.err).not.toMatch(/fail|error/i)
  expect(good.code).toBe(0)
  expect(disk.bytes[9 << 20]).toBe(0x35)
  server.addExport({ name: 'ro', backend: disk, readOnly: true })
  const refused = await io(nbdUri(address, 'ro'), 'read 0 512')
  expect(refused.code).not.toBe(0)
  const map = JSON.parse(await must('qemu-img', ['map', '--output=json', '-f', 'raw', uri]))
  expect(map[0]).toMatchObject({ start: 0, length: 1 << 20, zero: true })
  const copy = join(dir, 'copy')
  await must('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri, copy])
  expect(readFileSync(copy).equals(disk.bytes)).toBe(true)
  const target = (await start()).disk
  server.addExport({ name: 'b', backend: target, readOnly: false })
  await must('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', copy, nbdUri(address, 'b')])
  expect(target.bytes.equals(disk.bytes)).toBe(true)
  expect(await must('qemu-nbd', ['-L', '-k', address.path])).toMatch(/exports available: 3/)
})

withTools(['fio'], 'nbd / interop / fio writes and verifies', async () => {
  const { uri, dir } = await start()
  const { code, out, err } = await run(
    'fio',
    ['--name=v', '--ioengine=nbd', `--uri=${uri}`, '--rw=randrw', '--bs=16k', '--size=4M'].concat([
      '--iodepth=16',
      '--verify=crc32c',
      '--do_verify=1',
      '--verify_fatal=1',
      '--randseed=7',
    ]),
    dir,
  )
  expect(code, out + err).toBe(0)
  expect(out).not.toMatch(/verify failed/)
})

withTools(['nbdkit', 'nbdcopy'], 'nbd / interop / nbdkit serves our export on', async () => {
  const { disk, address, dir } = await start()
  const file = join(dir, 'through')
  writeFileSync(file, '')
  const through = `nbdcopy "$uri" ${file}`
  await must('nbdkit', ['-U', '-', 'nbd', `socket=${address.path}`, 'export=a', '--run', through])
  expect(readFileSync(file).equals(disk.bytes)).toBe(true)
})
