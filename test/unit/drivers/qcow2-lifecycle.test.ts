import * as fs from 'node:fs'
import { describe, expect, it } from 'vitest'
import type { BlockBackend } from '../../../src/block/backend.ts'
import { FLAG } from '../../../src/block/driver.ts'
import type { Qcow2CreateOptions } from '../../../src/drivers/qcow2/create.ts'
import { freshImage, haveTool, newBench, qcow2, qemuCheck, run } from './qcow2-support.ts'

const KiB = 1024
const MiB = KiB * KiB

async function isFilled(disk: BlockBackend, offset: number, bytes: number, value: number) {
  const got = new Uint8Array(bytes)
  await disk.pread(offset, got)
  return got.every((byte) => byte === value)
}

const incompatible = (path: string): number => fs.readFileSync(path).readUInt32BE(76)

function poke(path: string, ...pokes: [number, string][]): void {
  const fd = fs.openSync(path, 'r+')
  for (const [at, hex] of pokes) fs.writeSync(fd, Buffer.from(hex, 'hex'), 0, hex.length / 2, at)
  fs.closeSync(fd)
}

describe('qcow2 / makeEmpty', () => {
  const flavours: Record<string, Omit<Qcow2CreateOptions, 'size'>> = {
    plain: {},
    'version 2': { version: 2 },
    'clusters of 512': { clusterSize: 512 },
    'extended L2': { extendedL2: true },
  }
  for (const [name, options] of Object.entries(flavours))
    it.skipIf(!haveTool('qemu-img'))(
      `qcow2 / makeEmpty / ${name} shows the backing image again`,
      async () => {
        const { b, path } = await freshImage({ size: 4 * MiB, ...options })
        fs.writeFileSync(b.path('base'), Buffer.alloc(4 * MiB, 0x11))
        const backing = { driver: 'raw', file: { driver: 'file', filename: b.path('base') } }
        const { node, disk } = await b.open(qcow2(path, { backing }))
        for (let round = 0; round < 3; round++) {
          await disk.pwrite(100, new Uint8Array(2 * MiB).fill(0x22))
          await disk.pwriteZeroes(3 * MiB, 64 * KiB)
          expect(await isFilled(disk, 100, 2 * MiB, 0x22)).toBe(true)
          await b.graph.withDrained(node, () => node.driver?.makeEmpty?.())
          expect(await isFilled(disk, 0, 4 * MiB, 0x11)).toBe(true)
          await disk.pwrite(MiB, new Uint8Array(512).fill(0x33))
          await disk.flush()
          qemuCheck(path)
        }
        await b.shut(disk)
        qemuCheck(path)
      },
    )

  it('qcow2 / makeEmpty / old bytes of a child that cannot be cut do not come back', async () => {
    const { b, path } = await freshImage({ size: 4 * MiB })
    const file = { driver: 'raw', size: 8 * MiB, file: { driver: 'file', filename: path } }
    fs.truncateSync(path, 8 * MiB)
    const { node, disk } = await b.open({ driver: 'qcow2', 'node-name': 'a', file })
    await disk.pwrite(0, new Uint8Array(2 * MiB).fill(7))
    await b.graph.withDrained(node, () => node.driver?.makeEmpty?.())
    await disk.pwrite(0, new Uint8Array(512).fill(8))
    expect(await isFilled(disk, 512, 2 * MiB - 512, 0)).toBe(true)
  })

  it('qcow2 / makeEmpty / a fresh image shrinks back to its tables', async () => {
    const { b, path } = await freshImage({ size: 64 * MiB })
    const { node, disk } = await b.open(qcow2(path))
    await disk.pwrite(0, new Uint8Array(MiB).fill(1))
    await b.graph.withDrained(node, () => node.driver?.makeEmpty?.())
    expect(fs.statSync(path).size).toBe(4 * 65536)
  })
})

describe('qcow2 / dirty mark', () => {
  it('qcow2 / dirty mark / set by lazy refcounts, cleared by an orderly close', async () => {
    const { b, path } = await freshImage({ size: 16 * MiB, lazyRefcounts: true })
    const { disk } = await b.open(qcow2(path))
    expect(incompatible(path)).toBe(0)
    await disk.pwrite(0, new Uint8Array(512).fill(5))
    expect(incompatible(path)).toBe(1)
    await b.shut(disk)
    expect(incompatible(path)).toBe(0)
  })

  it.skipIf(!haveTool('qemu-img'))(
    'qcow2 / dirty mark / a torn image is repaired at open for writing',
    async () => {
      const { b, path } = await freshImage({ size: 16 * MiB, lazyRefcounts: true })
      const first = await b.open(qcow2(path))
      await first.disk.pwrite(0, new Uint8Array(3 * MiB).fill(5))
      await first.disk.flush()
      const torn = fs.readFileSync(path)
      // As after a kill that lost all counts.
      torn.fill(0, 2 * 65536, 3 * 65536)
      fs.writeFileSync(b.path('torn'), torn)
      await b.shut(first.disk)
      const ro = await b.open(qcow2(b.path('torn'), { 'read-only': true }))
      expect(await isFilled(ro.disk, 0, 3 * MiB, 5)).toBe(true)
      await b.shut(ro.disk)
      expect(incompatible(b.path('torn'))).toBe(1)
      const rw = await b.open(qcow2(b.path('torn')))
      expect(incompatible(b.path('torn'))).toBe(0)
      expect(await isFilled(rw.disk, 0, 3 * MiB, 5)).toBe(true)
      await b.shut(rw.disk)
      qemuCheck(b.path('torn'))
    },
  )
})

describe('qcow2 / bad images', () => {
  const cases: [string, [number, string][], RegExp][] = [
    ['magic', [[0, '00']], /not in qcow2 format/],
    ['version', [[4, '00000004']], /Unsupported qcow2 version 4/],
    ['cluster size', [[20, '00000016']], /Unsupported cluster size: 2\^22/],
    ['header length', [[100, 'ffffffff']], /header exceeds/],
    [
      'extension length',
      [
        [112, '12345678'],
        [116, '7fffffff'],
      ],
      /extension too large/,
    ],
    ['backing offset', [[8, 'ffffffffffffffff']], /Invalid backing file offset/],
    ['refcount table size', [[56, 'ffffffff']], /Reference count table too large/],
    ['no refcount table', [[56, '00000000']], /does not contain a reference count table/],
    ['refcount table place', [[48, '1234567890abcdef']], /Reference count table offset invalid/],
    ['refcount width', [[96, '00000007']], /entry width too large/],
    ['unknown feature', [[72, '0000000000000020']], /Unknown incompatible feature: 20/],
    ['encryption', [[32, '00000009']], /Unsupported encryption method 9/],
    ['L1 size', [[36, '00000000']], /L1 table is too small/],
    ['compression', [[104, '09']], /Compression type incompatible feature bit must be set/],
  ]
  for (const [name, pokes, words] of cases)
    it(`qcow2 / bad images / ${name} is refused and not touched`, async () => {
      const { b, path } = await freshImage({ size: 64 * MiB })
      poke(path, ...pokes)
      const before = fs.readFileSync(path)
      await expect(b.open(qcow2(path))).rejects.toThrow(words)
      expect(b.graph.nodes()).toEqual([])
      expect(fs.readFileSync(path).equals(before)).toBe(true)
    })

  it('qcow2 / bad images / a write over metadata marks the image corrupt', async () => {
    const { b, path } = await freshImage({ size: 64 * MiB })
    poke(path, [0x30000, '8000000000030000'])
    const { disk } = await b.open(qcow2(path))
    const event = b.graph.events.once('BLOCK_IMAGE_CORRUPTED')
    await expect(async () => disk.pwrite(0, new Uint8Array(512).fill(1))).rejects.toThrow()
    expect(await event).toMatchObject({ 'node-name': 'a', fatal: true })
    expect(incompatible(path)).toBe(2)
    await expect(async () => disk.pread(0, new Uint8Array(512))).rejects.toThrow()
    await b.shut(disk)
    await expect(b.open(qcow2(path))).rejects.toThrow(/corrupt/)
    await b.shut((await b.open(qcow2(path, { 'read-only': true }))).disk)
  })

  it('qcow2 / bad images / unknown autoclear bits go at the first open for writing', async () => {
    const { b, path } = await freshImage({ size: MiB })
    poke(path, [88, '0000000000000080'])
    await b.shut((await b.open(qcow2(path, { 'read-only': true }))).disk)
    expect(fs.readFileSync(path)[95]).toBe(0x80)
    await b.shut((await b.open(qcow2(path))).disk)
    expect(fs.readFileSync(path)[95]).toBe(0)
  })
})

describe.skipIf(!haveTool('qemu-img'))('qcow2 / others (needs qemu-img)', () => {
  it('qcow2 / others / compressed clusters are read and replaced', async () => {
    const bench = newBench()
    const raw = Buffer.alloc(4 * MiB).map((_, i) => (i >> 12) & 0xff)
    fs.writeFileSync(bench.path('raw'), raw)
    const path = bench.path('a')
    run('qemu-img', 'convert', '-c', '-O', 'qcow2', bench.path('raw'), path)
    const { disk } = await bench.open(qcow2(path))
    const got = new Uint8Array(4 * MiB)
    await disk.pread(0, got)
    expect(Buffer.compare(got, raw)).toBe(0)
    await disk.pwrite(70_000, new Uint8Array(200_000).fill(9))
    raw.fill(9, 70_000, 270_000)
    await bench.shut(disk)
    qemuCheck(path)
    run('qemu-img', 'convert', '-O', 'raw', path, bench.path('back'))
    expect(fs.readFileSync(bench.path('back')).equals(raw)).toBe(true)
  })

  it('qcow2 / others / a write leaves an internal snapshot as it was', async () => {
    const { b, path } = await freshImage({ size: 4 * MiB })
    const first = await b.open(qcow2(path))
    await first.disk.pwrite(0, new Uint8Array(MiB).fill(1))
    await b.shut(first.disk)
    run('qemu-img', 'snapshot', '-c', 's', path)
    const { node, disk } = await b.open(qcow2(path))
    await disk.pwrite(1000, new Uint8Array(200_000).fill(2))
    await disk.flush()
    await b.graph.withDrained(node, () => node.driver?.makeEmpty?.())
    expect(await isFilled(disk, 0, MiB, 0)).toBe(true)
    await b.shut(disk)
    qemuCheck(path)
    run('qemu-img', 'snapshot', '-a', 's', path)
    const after = await b.open(qcow2(path))
    expect(await isFilled(after.disk, 0, MiB, 1)).toBe(true)
  })

  it('qcow2 / others / growing moves the L1 table', async () => {
    const { b, path } = await freshImage({ size: MiB, clusterSize: 512 })
    const { node, disk } = await b.open(qcow2(path))
    await disk.pwrite(0, new Uint8Array(MiB).fill(1))
    await b.graph.withDrained(node, () => node.driver?.truncate?.(64 * MiB))
    await disk.pwrite(60 * MiB, new Uint8Array(MiB).fill(2))
    expect(await isFilled(disk, 0, MiB, 1)).toBe(true)
    await b.graph.withDrained(node, () => node.driver?.makeEmpty?.())
    await disk.pwrite(60 * MiB, new Uint8Array(MiB).fill(3))
    await b.shut(disk)
    qemuCheck(path)
  })

  it('qcow2 / others / many refcount blocks move the refcount table', async () => {
    const { b, path } = await freshImage({ size: 32 * MiB, clusterSize: 512, refcountBits: 64 })
    const { disk } = await b.open(qcow2(path))
    const data = new Uint8Array(MiB).fill(7)
    for (let at = 0; at < 16 * MiB; at += MiB) await disk.pwrite(at, data)
    expect(await isFilled(disk, 15 * MiB, MiB, 7)).toBe(true)
    await disk.pwriteZeroes(0, 8 * MiB, FLAG.MAY_UNMAP)
    await b.shut(disk)
    qemuCheck(path)
  })

  it('qcow2 / others / an external raw data file equals the image', async () => {
    const bench = newBench()
    const path = bench.path('a')
    const data = bench.path('data')
    const options = `data_file=${data},data_file_raw=on`
    run('qemu-img', 'create', '-f', 'qcow2', '-o', options, path, '4M')
    const { disk } = await bench.open(qcow2(path, { discard: 'unmap' }))
    await disk.pwrite(MiB, new Uint8Array(2 * MiB).fill(0x11))
    await disk.pdiscard(2 * MiB, 512 * KiB)
    await disk.pwriteZeroes(2560 * KiB, 512 * KiB)
    await bench.shut(disk)
    qemuCheck(path)
    run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', path, data)
  })

  it('qcow2 / others / the backing image of the header is opened beside the image', async () => {
    const { b, path } = await freshImage({ size: MiB, backingFile: 'base', backingFormat: 'raw' })
    await expect(b.open(qcow2(path))).rejects.toThrow(
      /^Could not open backing file: Could not open '.*base': No such file or directory$/,
    )
    fs.writeFileSync(b.path('base'), Buffer.alloc(MiB, 3))
    const { disk } = await b.open(qcow2(path))
    expect(await isFilled(disk, 0, MiB, 3)).toBe(true)
  })

  it('qcow2 / others / read-only and back leaves a settled image', async () => {
    const { b, path } = await freshImage({ size: MiB, lazyRefcounts: true })
    const { node, disk } = await b.open(qcow2(path))
    await disk.pwrite(0, new Uint8Array(512).fill(1))
    await b.graph.setReadOnly(node, true).catch((error: Error) => {
      expect(error.message).toMatch(/read-only|permission/i)
    })
    await disk.flush()
    expect(await isFilled(disk, 0, 512, 1)).toBe(true)
  })
})
