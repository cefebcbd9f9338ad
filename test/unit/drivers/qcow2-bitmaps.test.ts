import * as fs from 'node:fs'
import { describe, expect, it } from 'vitest'
import type { BlockNode } from '../../../src/block/node.ts'
import { freshImage, haveTool, qcow2, qemuCheck, run } from './qcow2-support.ts'

const KiB = 1024
const MiB = KiB * KiB
const ones = (bytes: number): Uint8Array => new Uint8Array(bytes).fill(1)

const shown = (node: BlockNode): [string, number, boolean, boolean][] =>
  node.bitmaps.list().map((b) => [b.name, b.bits.count, b.enabled, b.inconsistent])

/** The flags that the file has for its bitmaps, as foreign tools read them. */
function stored(path: string): [string, string[]][] {
  const info = JSON.parse(run('qemu-img', 'info', '-U', '--output=json', path)) as {
    'format-specific': { data: { bitmaps?: { name: string; flags: string[] }[] } }
  }
  return (info['format-specific'].data.bitmaps ?? []).map(({ name, flags }) => [name, flags])
}

describe.skipIf(!haveTool('qemu-img'))('qcow2 / bitmaps (needs qemu-img)', () => {
  for (const clusterSize of [512, 4096, 65536])
    it(`qcow2 / bitmaps / come back after a close, clusters of ${clusterSize}`, async () => {
      const { b, path } = await freshImage({ size: 16 * MiB, clusterSize })
      const first = await b.open(qcow2(path))
      first.node.bitmaps.add({ name: 'keep', persistent: true, granularity: 512 })
      first.node.bitmaps.add({ name: 'off', persistent: true, disabled: true })
      first.node.bitmaps.add({ name: 'lose' })
      await first.disk.pwrite(4 * MiB - 700, ones(64 * KiB))
      const kept = shown(first.node)
      await b.shut(first.disk)
      qemuCheck(path)
      expect(stored(path)).toEqual([
        ['keep', ['auto']],
        ['off', []],
      ])
      for (const readOnly of [true, false]) {
        const again = await b.open(qcow2(path, { 'read-only': readOnly }))
        expect(shown(again.node)).toEqual(kept.filter(([name]) => name !== 'lose'))
        expect(again.node.bitmaps.need('keep').bits.get(4 * MiB - 700)).toBe(true)
        await b.shut(again.disk)
      }
      qemuCheck(path)
    })

  it('qcow2 / bitmaps / are marked in use before the first write and stored at the end', async () => {
    const { b, path } = await freshImage({ size: 16 * MiB })
    run('qemu-img', 'bitmap', '--add', path, 'keep')
    const { node, disk } = await b.open(qcow2(path))
    expect(stored(path)).toEqual([['keep', ['auto']]])
    await Promise.all([disk.pwrite(0, ones(MiB)), disk.pwriteZeroes(MiB, MiB)])
    expect(stored(path)).toEqual([['keep', ['in-use', 'auto']]])
    await b.graph.withDrained(node, () => node.driver?.makeEmpty?.())
    await b.graph.setReadOnly(node, false)
    await b.shut(disk)
    expect(stored(path)).toEqual([['keep', ['auto']]])
    qemuCheck(path)
  })

  it('qcow2 / bitmaps / a crash leaves them inconsistent, to be removed only', async () => {
    const { b, path } = await freshImage({ size: 16 * MiB })
    run('qemu-img', 'bitmap', '--add', path, 'keep')
    const { disk } = await b.open(qcow2(path))
    await disk.pwrite(0, ones(MiB))
    await disk.flush()
    const crashed = b.path('crashed')
    fs.copyFileSync(path, crashed)
    await b.shut(disk)
    const again = await b.open(qcow2(crashed))
    expect(shown(again.node)).toEqual([['keep', 0, false, true]])
    const bitmap = again.node.bitmaps.need('keep')
    expect(() => bitmap.clear()).toThrow("Bitmap 'keep' is inconsistent and cannot be used")
    await again.disk.pwrite(MiB, ones(MiB))
    await b.shut(again.disk)
    expect(stored(crashed)).toEqual([['keep', ['in-use', 'auto']]])
    qemuCheck(crashed)
    const last = await b.open(qcow2(crashed))
    last.node.bitmaps.remove('keep')
    await b.shut(last.disk)
    expect(stored(crashed)).toEqual([])
    qemuCheck(crashed)
  })

  it('qcow2 / bitmaps / rest while read-only and follow writes after a reopen', async () => {
    const { b, path } = await freshImage({ size: 16 * MiB })
    run('qemu-img', 'bitmap', '--add', path, 'keep')
    const node = await b.graph.add(qcow2(path, { 'read-only': true }))
    const bitmap = node.bitmaps.need('keep')
    expect(() => bitmap.clear()).toThrow("Bitmap 'keep' is readonly and cannot be modified")
    expect(() => node.bitmaps.remove('keep')).toThrow('is readonly')
    for (const turn of [1, 2]) {
      await b.graph.setReadOnly(node, false)
      const { disk } = await b.openNode(node)
      await disk.pwrite(turn * MiB, ones(100))
      await disk.close()
      expect(stored(path)).toEqual([['keep', ['in-use', 'auto']]])
      await b.graph.setReadOnly(node, true)
      expect([bitmap.readOnly, bitmap.bits.count]).toEqual([true, turn])
      expect(stored(path)).toEqual([['keep', ['auto']]])
      qemuCheck(path)
    }
  })

  it('qcow2 / bitmaps / a reopen to read-only that fails leaves no bitmap that looks good', async () => {
    const { b, path } = await freshImage({ size: 16 * MiB })
    run('qemu-img', 'bitmap', '--add', path, 'keep')
    const { node, disk } = await b.open(qcow2(path))
    await disk.pwrite(0, ones(100))
    await expect(b.graph.setReadOnly(node, true)).rejects.toThrow('read-write users')
    await disk.pwrite(2 * MiB, ones(100))
    expect(stored(path)).toEqual([['keep', ['in-use', 'auto']]])
    expect(node.bitmaps.need('keep').bits.count).toBe(2)
    await b.shut(disk)
    qemuCheck(path)
  })

  it('qcow2 / bitmaps / bits agree with what foreign tools wrote and read', async () => {
    const { b, path } = await freshImage({ size: 64 * MiB, clusterSize: 4096 })
    run('qemu-img', 'bitmap', '--add', '-g', '512', path, 'b')
    run('qemu-io', '-c', 'write 1000 600', '-c', 'write 40M 3M', path)
    const { node, disk } = await b.open(qcow2(path))
    const { bits } = node.bitmaps.need('b')
    expect(bits.nextDirty(0)).toEqual({ offset: 512, bytes: 1536 })
    expect(bits.count).toBe(3 + (3 * MiB) / 512)
    await disk.pwrite(50 * MiB, ones(512))
    await b.shut(disk)
    run('qemu-img', 'bitmap', '--add', '-g', '512', '--merge', 'b', path, 'merged')
    const again = await b.open(qcow2(path))
    expect(again.node.bitmaps.need('merged').bits.count).toBe(4 + (3 * MiB) / 512)
    expect(again.node.bitmaps.need('merged').bits.get(50 * MiB)).toBe(true)
  })

  it('qcow2 / bitmaps / are dropped when a tool that does not know them wrote the image', async () => {
    const { b, path } = await freshImage({ size: 16 * MiB })
    run('qemu-img', 'bitmap', '--add', path, 'keep')
    const fd = fs.openSync(path, 'r+')
    fs.writeSync(fd, Uint8Array.of(0), 0, 1, 95)
    fs.closeSync(fd)
    const { node, disk } = await b.open(qcow2(path))
    expect(node.bitmaps.list()).toEqual([])
    node.bitmaps.add({ name: 'keep', persistent: true })
    await disk.pwrite(0, ones(100))
    await b.shut(disk)
    expect(stored(path)).toEqual([['keep', ['auto']]])
  })

  it('qcow2 / bitmaps / follow the image when it grows', async () => {
    const { b, path } = await freshImage({ size: MiB })
    const { node, disk } = await b.open(qcow2(path))
    const bitmap = node.bitmaps.add({ name: 'keep', persistent: true })
    await disk.pwrite(0, ones(100))
    await b.graph.withDrained(node, () => node.driver?.truncate?.(1024 * MiB))
    await disk.pwrite(1000 * MiB, ones(100))
    expect(bitmap.bits.count).toBe(2)
    await b.shut(disk)
    const again = await b.open(qcow2(path))
    expect(shown(again.node)).toEqual([['keep', 2, true, false]])
    await b.shut(again.disk)
    qemuCheck(path)
  })

  it('qcow2 / bitmaps / a broken directory is refused with its reason', async () => {
    const { b, path } = await freshImage({ size: MiB })
    run('qemu-img', 'bitmap', '--add', path, 'keep')
    const bytes = fs.readFileSync(path)
    const at = bytes.indexOf(Buffer.from('23852875', 'hex'))
    for (const [where, value, words] of [
      [at + 8, 2, 'Broken bitmap directory'],
      [at + 8, 70000, 'Too many bitmaps'],
      [at + 12, 1, 'Reserved field'],
    ] as const) {
      const bad = Buffer.from(bytes)
      bad.writeUInt32BE(value, where)
      fs.writeFileSync(path, bad)
      await expect(b.open(qcow2(path))).rejects.toThrow(words)
    }
  })
})
