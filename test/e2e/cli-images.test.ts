/** The image subcommands: what they print and how they end, without a foreign program. */
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { here, listening, startDaemon, stopAll } from '../support/cli.ts'

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

const run = (...args: string[]): ReturnType<typeof here> => here(dir, ...args)

/** Two files: `data.raw`, 1 MiB with a pattern in its middle, and the same as `data.qcow2`. */
async function images(): Promise<void> {
  const bytes = Buffer.alloc(1 << 20)
  bytes.fill('blockstep ', 256 << 10, 512 << 10)
  writeFileSync(join(dir, 'data.raw'), bytes)
  expect((await run('convert', '-O', 'qcow2', 'data.raw', 'data.qcow2')).status).toBe(0)
}

test('e2e / cli / images / create, info', async () => {
  const made = await run('create', '-f', 'qcow2', '-o', 'cluster_size=4k', 'i', '1.5M')
  expect(made).toEqual({
    status: 0,
    stdout:
      "Formatting 'i', fmt=qcow2 cluster_size=4096 extended_l2=off compression_type=zlib " +
      'size=1572864 lazy_refcounts=off refcount_bits=16\n',
    stderr: '',
  })
  expect((await run('info', 'i')).stdout).toMatch(
    /^image: i\nfile format: qcow2\nvirtual size: 1\.5 MiB \(1572864 bytes\)\ndisk size: /,
  )
  expect(JSON.parse((await run('info', '--output=json', 'i')).stdout)).toMatchObject({
    filename: 'i',
    format: 'qcow2',
    'virtual-size': 1572864,
    'cluster-size': 4096,
    'format-specific': { type: 'qcow2', data: { compat: '1.1', 'refcount-bits': 16 } },
  })
})

test('e2e / cli / images / overlays show their chain', async () => {
  await run('create', '-q', '-f', 'qcow2', 'base', '1M')
  await run('create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'top')
  const chain = JSON.parse((await run('info', '--json', '--backing-chain', 'top')).stdout)
  expect(chain).toMatchObject([
    { filename: 'top', 'backing-filename': 'base', 'virtual-size': 1048576 },
    { filename: 'base' },
  ])
})

test('e2e / cli / images / check tells by its status', async () => {
  await images()
  expect((await run('check', 'data.qcow2')).stdout).toBe(
    'No errors were found on the image.\n' +
      '4/16 = 25.00% allocated, 0.00% fragmented, 0.00% compressed clusters\n' +
      'Image end offset: 589824\n',
  )
  expect(await run('check', 'data.raw')).toEqual({
    status: 63,
    stdout: '',
    stderr: 'blockstep: This image format does not support checks\n',
  })
  expect((await run('check', 'missing')).status).toBe(1)
  const path = join(dir, 'data.qcow2')
  const bytes = readFileSync(path)
  truncateSync(path, bytes.length + 2 * 65536)
  const leaking = readFileSync(path)
  leaking.writeUInt16BE(1, 2 * 65536 + 2 * (leaking.length / 65536 - 1))
  writeFileSync(path, leaking)
  expect((await run('check', 'data.qcow2')).status).toBe(3)
  leaking.writeUInt16BE(0, 2 * 65536 + 2 * 5)
  writeFileSync(path, leaking)
  const damaged = await run('check', '--json', 'data.qcow2')
  expect(damaged.status).toBe(2)
  expect(JSON.parse(damaged.stdout)).toMatchObject({ leaks: 1, 'check-errors': 0 })
  const repaired = await run('check', '-r', 'all', '--json', 'data.qcow2')
  expect(repaired.status).toBe(0)
  expect(JSON.parse(repaired.stdout)).toMatchObject({ 'leaks-fixed': 1 })
  expect((await run('check', 'data.qcow2')).status).toBe(0)
  expect((await run('compare', 'data.raw', 'data.qcow2')).status).toBe(0)
  expect((await run('check', '-r', 'some', 'data.qcow2')).stderr).toMatch(
    /expecting 'leaks' or 'all'/,
  )
})

test('e2e / cli / images / map, for people and for programs', async () => {
  await images()
  expect((await run('map', 'data.qcow2')).stdout).toBe(
    'Offset          Length          Mapped to       File\n' +
      '0x40000         0x40000         0x50000         data.qcow2\n',
  )
  expect(JSON.parse((await run('map', '--json', 'data.qcow2')).stdout)).toEqual([
    { start: 0, length: 262144, depth: 0, present: false, zero: true, data: false },
    {
      ...{ start: 262144, length: 262144, depth: 0, present: true, zero: false, data: true },
      offset: 327680,
    },
    { start: 524288, length: 524288, depth: 0, present: false, zero: true, data: false },
  ])
})

test('e2e / cli / images / compare and convert', async () => {
  await images()
  expect(await run('compare', 'data.raw', 'data.qcow2')).toEqual({
    status: 0,
    stdout: 'Images are identical.\n',
    stderr: '',
  })
  await run('create', '-q', 'zero', '2M')
  expect(await run('compare', 'data.raw', 'zero')).toMatchObject({
    status: 1,
    stdout: 'Content mismatch at offset 262144!\n',
  })
  expect((await run('compare', '-s', 'data.raw', 'zero')).stdout).toBe(
    'Strict mode: Image size mismatch!\n',
  )
  expect(await run('compare', '-q', 'data.raw', 'zero')).toEqual({
    status: 1,
    stdout: '',
    stderr: '',
  })
  expect((await run('compare', 'data.raw', 'missing')).status).toBe(2)
  expect((await run('convert', '-c', '-O', 'qcow2', 'data.qcow2', 'packed')).status).toBe(0)
  expect((await run('compare', 'packed', 'data.raw')).status).toBe(0)
  expect((await run('convert', '-p', '-O', 'raw', 'packed', 'back.raw')).stdout).toMatch(
    /100\.00\/100%/,
  )
  expect(readFileSync(join(dir, 'back.raw')).equals(readFileSync(join(dir, 'data.raw')))).toBe(true)
})

test('e2e / cli / images / exports as sources and as targets', async () => {
  await images()
  const d = startDaemon(
    dir,
    ...['--blockdev', 'qcow2,node-name=q,file.driver=file,file.filename=data.qcow2'],
    ...['--blockdev', 'memory,node-name=m,size=1M'],
    ...['--nbd-server', 'addr.type=unix,addr.path=nbd', '--export', 'nbd,id=q,node-name=q'],
    ...['--export', 'nbd,id=m,node-name=m,writable=on', '--pidfile', 'pid'],
  )
  await listening(join(dir, 'pid'), d)
  const uri = (name: string): string => `nbd+unix:///${name}?socket=nbd`
  expect((await run('compare', uri('q'), 'data.raw')).status).toBe(0)
  expect((await run('convert', '-O', 'raw', uri('q'), uri('m'))).status).toBe(0)
  expect((await run('compare', uri('m'), 'data.raw')).status).toBe(0)
  expect((await run('map', uri('q'))).stdout).toContain(`0x40000         0x40000         0x40000`)
  expect((await run('info', uri('m'))).stdout).toMatch(/^image: nbd\+unix:.*\nfile format: raw\n/)
  expect((await run('convert', '-O', 'raw', 'data.raw', uri('nosuch'))).status).toBe(1)
  d.child.kill('SIGTERM')
  expect(await d.exit).toBe(0)
})

describe('e2e / cli / images / bad input', () => {
  const cases: readonly (readonly [string[], RegExp])[] = [
    [['create', '-f', 'qcow2', 'i'], /^blockstep: i: Image creation needs a size parameter\n$/],
    [['create', '-f', 'qcow2', 'i', '1X'], /Invalid image size '1X' specified/],
    [['create', '-f', 'qcow2', '-o', 'cluster_size=3', 'i', '1M'], /power of two/],
    [['info', 'i'], /^blockstep: Could not open 'i': No such file or directory\n$/],
    [['info', 'nbd+unix:///?socket=i'], /Failed to connect to 'i'/],
    [['info', '--output', 'xml', 'i'], /human/],
    [['convert', '-O', 'nope', 'i', 'j'], /Unknown file format 'nope'/],
  ]
  for (const [args, words] of cases) {
    test(args.join(' '), async () => {
      const { status, stdout, stderr } = await run(...args)
      expect(status).toBe(1)
      expect(stdout).toBe('')
      expect(stderr).toMatch(words)
      expect(stderr).toMatch(/^blockstep: [^\n]+\n$/)
      expect(readdirSync(dir)).toEqual([])
    })
  }
})
