import { afterEach, describe, expect, it } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { type DriverDefinition, PERM } from '../../../src/block/driver.ts'
import { blkverifyDriver } from '../../../src/drivers/blkverify.ts'
import { compressDriver } from '../../../src/drivers/compress.ts'
import { copyBeforeWriteDriver } from '../../../src/drivers/copy-before-write.ts'
import { copyOnReadDriver } from '../../../src/drivers/copy-on-read.ts'
import { createQcow2 } from '../../../src/drivers/qcow2/create.ts'
import { snapshotAccessDriver } from '../../../src/drivers/snapshot-access.ts'
import { Random } from '../../../src/util/random.ts'
import { HeldDriver, latch } from '../../support/graph.ts'
import { Bench, DRIVERS, haveTool, qemuCheck, run } from './qcow2-support.ts'

const KiB = 1024
const MiB = KiB * KiB

let bench: Bench | undefined
afterEach(async () => {
  await bench?.close()
  bench = undefined
})

function fresh(...more: DriverDefinition[]): Bench {
  bench = new Bench([
    ...DRIVERS,
    ...more,
    blkverifyDriver,
    compressDriver,
    copyBeforeWriteDriver,
    copyOnReadDriver,
    snapshotAccessDriver,
  ])
  return bench
}

const memory = (name: string, more = {}) => ({
  driver: 'memory',
  'node-name': name,
  size: MiB,
  ...more,
})

const bytes = (n: number, value: number): Uint8Array => new Uint8Array(n).fill(value)

async function first(disk: BlockBackend, offset: number): Promise<number> {
  const got = new Uint8Array(1)
  await disk.pread(offset, got)
  return got[0] ?? -1
}

describe('drivers / blkverify', () => {
  it('drivers / blkverify / both disks get every write, and a difference fails the read', async () => {
    const b = fresh()
    const { disk } = await b.open({
      driver: 'blkverify',
      'node-name': 'v',
      test: memory('t'),
      raw: memory('r'),
    })
    await disk.pwrite(1000, bytes(5000, 7))
    await disk.pwriteZeroes(2000, 100)
    expect([await first(disk, 1000), await first(disk, 2000)]).toEqual([7, 0])
    const beside = await b.openNode(b.graph.lookup(undefined, 'r'))
    await beside.disk.pwrite(4096, bytes(1, 9))
    await expect(disk.pread(4000, new Uint8Array(512))).rejects.toThrow(
      'blkverify: read of 512 bytes at 4000: contents mismatch at offset 4096',
    )
    expect(await first(disk, 8192)).toBe(0)
  })

  it('drivers / blkverify / an error of one disk only is a difference, of both an error', async () => {
    const b = fresh()
    const failing = (name: string) => ({
      driver: 'blkdebug',
      image: memory(name),
      'inject-error': [{ event: 'none', iotype: 'write', errno: 28 }],
    })
    const one = { driver: 'blkverify', 'node-name': 'v', test: failing('t'), raw: memory('r') }
    const both = { ...one, 'node-name': 'w', test: failing('u'), raw: failing('s') }
    const differ = (await b.open(one)).disk.pwrite(0, bytes(512, 1))
    await expect(differ).rejects.toThrow('return value mismatch: No space left on device')
    const error = (await b.open(both)).disk.pwrite(0, bytes(512, 1))
    await expect(error).rejects.toMatchObject({ code: 'ENOSPC' })
    const alone = { driver: 'blkverify', 'node-name': 'x', test: memory('y') }
    await expect(b.graph.add(alone)).rejects.toThrow("Parameter 'raw' is missing")
    await expect(
      b.graph.reopen([{ node: b.graph.lookup(undefined, 'v'), options: one }]),
    ).rejects.toThrow('does not support reopening files')
  })
})

describe('drivers / copy-on-read', () => {
  async function chain(b: Bench, more = {}) {
    const base = await b.open(memory('base'))
    await base.disk.pwrite(0, bytes(MiB, 1))
    await base.disk.close()
    const mid = memory('mid', { backing: 'base' })
    const top = memory('top', { backing: mid })
    const { disk } = await b.open({ driver: 'copy-on-read', 'node-name': 'c', file: top, ...more })
    return { disk, node: b.graph.lookup(undefined, 'top') }
  }
  const depth = async (b: Bench, offset: number): Promise<number> => {
    const edge = [...b.graph.lookup(undefined, 'top').parents][0]
    const status = await edge?.blockStatus(offset, 1)
    return (status?.flags ?? 0) & 0x10
  }

  it('drivers / copy-on-read / what was read lies in the overlay, whole clusters', async () => {
    const b = fresh()
    const { disk } = await chain(b)
    expect(await depth(b, 0)).toBe(0)
    expect(await first(disk, 5000)).toBe(1)
    expect([await depth(b, 4096), await depth(b, 8191), await depth(b, 8192)]).toEqual([16, 16, 0])
    expect(await depth(b, 0)).toBe(0)
  })

  it('drivers / copy-on-read / nothing from below the bottom is copied', async () => {
    const b = fresh()
    const { disk } = await chain(b, { bottom: 'mid' })
    const mid = b.graph.lookup(undefined, 'mid')
    expect(await first(disk, 5000)).toBe(1)
    expect(await depth(b, 4096)).toBe(0)
    await mid.driver?.pwrite(8192, bytes(4096, 2), 0)
    expect(await first(disk, 8192)).toBe(2)
    expect(await depth(b, 8192)).toBe(16)
  })

  it('drivers / copy-on-read / a write waits for a copy of its cluster, which began first', async () => {
    const held = new HeldDriver()
    const b = fresh(held.definition)
    await b.graph.add(memory('base'))
    const backing = { driver: 'held', file: 'base', 'read-only': true }
    const file = memory('top', { backing })
    const { disk } = await b.open({ driver: 'copy-on-read', 'node-name': 'c', file })
    held.hold = latch()
    const read = disk.pread(4096, new Uint8Array(100))
    while (held.counts.read === 0) await Promise.resolve()
    const write = disk.pwrite(5000, bytes(10, 9))
    held.hold.open()
    await Promise.all([read, write])
    expect([await first(disk, 5000), await first(disk, 5010)]).toEqual([9, 0])
  })

  it('drivers / copy-on-read / a writer beside the filter waits for a copy, too', async () => {
    const held = new HeldDriver()
    const b = fresh(held.definition)
    await b.graph.add(memory('base'))
    await b.graph.add(memory('top', { backing: { driver: 'held', file: 'base' } }))
    const { disk } = await b.open({ driver: 'copy-on-read', 'node-name': 'c', file: 'top' })
    const beside = await BlockBackend.create(b.graph, b.graph.lookup(undefined, 'top'), {
      perm: PERM.CONSISTENT_READ | PERM.WRITE,
      shared: PERM.ALL,
    })
    held.hold = latch()
    const read = disk.pread(4096, new Uint8Array(100))
    while (held.counts.read === 0) await Promise.resolve()
    const write = beside.pwrite(5000, bytes(10, 9))
    held.hold.open()
    await Promise.all([read, write])
    expect([await first(disk, 5000), await first(disk, 5010)]).toEqual([9, 0])
    await beside.close()
  })

  it('drivers / copy-on-read / a copy never replaces what is being written', async () => {
    const seed = Number(process.env.SEED ?? 1)
    const random = new Random(seed)
    const b = fresh()
    const { disk } = await chain(b)
    const model = bytes(MiB, 1)
    const all: Promise<void>[] = []
    for (let i = 0; i < 200; i++) {
      const offset = random.int(128) * 4096 + random.int(4096)
      const n = 1 + random.int(9000)
      if (random.int(2) === 0) {
        const value = random.int(256)
        model.fill(value, offset, offset + n)
        // Overlapping writes at once have no order: the next one waits.
        await Promise.all(all.splice(0))
        all.push(Promise.resolve(disk.pwrite(offset, bytes(n, value))))
      } else all.push(Promise.resolve(disk.pread(offset, new Uint8Array(n))))
    }
    await Promise.all(all)
    const got = new Uint8Array(MiB)
    await disk.pread(0, got)
    expect(Buffer.compare(got, model), `seed ${seed}`).toBe(0)
  })

  it('drivers / copy-on-read / a bottom that is none is refused', async () => {
    const b = fresh()
    await b.graph.add(memory('other'))
    await expect(chain(b, { bottom: 'zz' })).rejects.toThrow("Bottom node 'zz' not found")
    await b.close()
    const again = fresh()
    await again.graph.add(memory('other'))
    await expect(chain(again, { bottom: 'other' })).rejects.toThrow('is not in the backing chain')
  })
})

describe('drivers / compress', () => {
  it.skipIf(!haveTool('qemu-img'))(
    'drivers / compress / clusters are stored compressed (needs qemu-img)',
    async () => {
      const b = fresh()
      const path = b.path('a')
      await createQcow2(path, { size: MiB + 512 })
      const file = { driver: 'qcow2', 'node-name': 'q', file: { driver: 'file', filename: path } }
      const { disk } = await b.open({ driver: 'compress', 'node-name': 'c', file })
      await disk.pwrite(100, bytes(128 * KiB, 5))
      await disk.pwrite(MiB, bytes(512, 6))
      await disk.pwrite(200, bytes(10, 7))
      expect([await first(disk, 99), await first(disk, 100), await first(disk, 205)]).toEqual([
        0, 5, 7,
      ])
      expect(await first(disk, MiB + 511)).toBe(6)
      await b.shut(disk)
      qemuCheck(path)
      const check = JSON.parse(run('qemu-img', 'check', '--output=json', path)) as object
      expect(check).toMatchObject({ 'compressed-clusters': 4 })
    },
  )

  it('drivers / compress / a format that cannot compress is refused', async () => {
    await expect(
      fresh().graph.add({ driver: 'compress', 'node-name': 'c', file: memory('m') }),
    ).rejects.toThrow('Compression is not supported for underlying format: memory')
  })
})

describe('drivers / snapshot-access', () => {
  it('drivers / snapshot-access / shows the moment of the filter, however the disk is written', async () => {
    const b = fresh()
    const source = await b.open(memory('s'))
    await source.disk.pwrite(0, bytes(MiB, 1))
    await b.shut(source.disk)
    await b.graph.add(memory('s2'))
    const src = await b.graph.add(memory('src'))
    const filled = await b.openNode(src)
    await filled.disk.pwrite(0, bytes(MiB, 1))
    await filled.disk.close()
    const file = { driver: 'copy-before-write', file: 'src', target: 's2', 'node-name': 'f' }
    const guest = await b.open(file)
    const view = await b.open({
      driver: 'snapshot-access',
      'node-name': 'v',
      'read-only': true,
      file: 'f',
    })
    const got = new Uint8Array(MiB)
    await Promise.all([
      guest.disk.pwrite(70000, bytes(200000, 2)),
      view.disk.pread(0, got),
      guest.disk.pwrite(0, bytes(100, 3)),
    ])
    await view.disk.pread(0, got)
    expect(got.every((byte) => byte === 1)).toBe(true)
    expect([await first(guest.disk, 0), await first(guest.disk, 70000)]).toEqual([3, 2])
  })

  it('drivers / copy-before-write / only what a bitmap says is kept', async () => {
    const b = fresh()
    const { node, disk } = await b.open(memory('src'))
    const bitmap = node.bitmaps.add({ name: 'b', granularity: 4096 })
    await disk.pwrite(300 * KiB, bytes(10, 1))
    await disk.close()
    await b.graph.add(memory('t'))
    const file = { driver: 'copy-before-write', 'node-name': 'f', file: 'src', target: 't' }
    const none = { ...file, bitmap: { node: 'src', name: 'none' } }
    await expect(b.graph.add(none)).rejects.toThrow("Dirty bitmap 'none' not found")
    const guest = await b.open({ ...file, bitmap: { node: 'src', name: 'b' } })
    await guest.disk.pwriteZeroes(0, MiB)
    const kept = await b.openNode(b.graph.lookup(undefined, 't'))
    expect([await first(kept.disk, 300 * KiB), bitmap.bits.count]).toEqual([1, 256])
    const got = new Uint8Array(MiB)
    await kept.disk.pread(0, got)
    expect(got.filter((byte) => byte !== 0).length).toBe(10)
  })

  it('drivers / snapshot-access / reads nothing without a filter that keeps a snapshot', async () => {
    const { graph } = fresh()
    const node = await graph.add({
      driver: 'snapshot-access',
      'node-name': 'v',
      file: memory('m'),
      'read-only': true,
    })
    expect(() => node.needDriver().pread(0, Buffer.alloc(512))).toThrow(
      expect.objectContaining({ code: 'ENOTSUP' }),
    )
  })
})
