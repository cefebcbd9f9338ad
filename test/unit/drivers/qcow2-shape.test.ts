import { describe, expect, it } from 'vitest'
import { copyBeforeWriteDriver } from '../../../src/drivers/copy-before-write.ts'
import { snapshotAccessDriver } from '../../../src/drivers/snapshot-access.ts'
import {
  Bench,
  DRIVERS,
  freshImage,
  haveTool,
  newBench,
  qcow2,
  qemuCheck,
  run,
} from './qcow2-support.ts'

const MiB = 1024 * 1024
const bytes = (n: number, value: number): Uint8Array => new Uint8Array(n).fill(value)

describe('drivers / qcow2 / resize', () => {
  it('drivers / qcow2 / resize / a shorter image gives up what lay beyond, and grows with zeroes', async () => {
    const { b, path } = await freshImage({ size: 4 * MiB })
    const { node, disk } = await b.open(qcow2(path))
    await disk.pwrite(0, bytes(4 * MiB, 5))
    await node.driver?.truncate?.(MiB + 512)
    expect(node.length()).toBe(MiB + 512)
    const kept = new Uint8Array(MiB + 512)
    await disk.pread(0, kept)
    expect(kept.every((byte) => byte === 5)).toBe(true)
    await node.driver?.truncate?.(4 * MiB)
    const grown = new Uint8Array(MiB)
    await disk.pread(MiB + 512, grown)
    expect(grown.every((byte) => byte === 0)).toBe(true)
    await b.shut(disk)
    if (haveTool('qemu-img')) qemuCheck(path)
  })
})

describe('drivers / qcow2 / snapshots', () => {
  it.skipIf(!haveTool('qemu-img'))(
    'drivers / qcow2 / snapshots / are told with their names',
    async () => {
      const { b, path } = await freshImage({ size: MiB })
      run('qemu-img', 'snapshot', '-c', 'first', path)
      const { node } = await b.open(qcow2(path))
      const info = await node.driver?.info?.()
      expect(info?.snapshots).toMatchObject([{ id: '1', name: 'first', 'vm-state-size': 0 }])
    },
  )
})

describe('drivers / qcow2 / options', () => {
  it.each([
    [{ 'cache-clean-interval': -1 }, 'Cache clean interval too big'],
    [{ 'l2-cache-size': -1 }, 'expects a non-negative number below 2^64'],
    [{ encrypt: { format: 'luks' } }, 'No encryption in image header'],
    [{ backing: 'gone' }, 'Could not open backing file: Cannot find device'],
  ])('drivers / qcow2 / options / %j is refused', async (options, words) => {
    const { b, path } = await freshImage({ size: MiB })
    await expect(b.graph.add(qcow2(path, options))).rejects.toThrow(words)
  })
})

describe('drivers / snapshot-access', () => {
  it('drivers / snapshot-access / what the bitmap leaves out cannot be read', async () => {
    newBench()
    const b = new Bench([...DRIVERS, copyBeforeWriteDriver, snapshotAccessDriver])
    try {
      const memory = (name: string) => ({ driver: 'memory', 'node-name': name, size: MiB })
      const { node, disk } = await b.open(memory('src'))
      node.bitmaps.add({ name: 'b', granularity: 65536 })
      await disk.pwrite(0, bytes(10, 1))
      await disk.close()
      await b.graph.add(memory('t'))
      await b.graph.add({
        ...{ driver: 'copy-before-write', 'node-name': 'f', file: 'src', target: 't' },
        bitmap: { node: 'src', name: 'b' },
      })
      const access = { driver: 'snapshot-access', 'node-name': 'v', file: 'f', 'read-only': true }
      const view = await b.open(access)
      const got = new Uint8Array(512)
      await view.disk.pread(0, got)
      expect(got[0]).toBe(1)
      await expect(view.disk.pread(MiB / 2, got)).rejects.toMatchObject({ code: 'EACCES' })
    } finally {
      await b.close()
    }
  })
})
