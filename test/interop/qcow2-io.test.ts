import { afterEach, describe, expect, it } from 'vitest'
import { Bench, haveTool, qemuCheck, run } from '../unit/drivers/qcow2-support.ts'

let bench: Bench | undefined
afterEach(async () => {
  await bench?.close()
  bench = undefined
})

const flavours = [
  'cluster_size=512',
  'cluster_size=4k',
  'cluster_size=2M',
  'compat=0.10',
  'refcount_bits=1',
  'refcount_bits=64',
  'extended_l2=on,cluster_size=128k',
  'preallocation=metadata',
  'lazy_refcounts=on',
]

describe.skipIf(!haveTool('qemu-img') || !haveTool('qemu-io'))(
  'interop / qcow2 (needs qemu-img and qemu-io)',
  () => {
    for (const options of flavours)
      it(`interop / qcow2 / ${options} / written there, changed here, read there`, async () => {
        bench = new Bench()
        const path = bench.path('a')
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, path, '8M')
        const io = (...commands: string[]): string =>
          run('qemu-io', '-f', 'qcow2', ...commands.flatMap((c) => ['-c', c]), path)
        io('write -P 1 0 1M', 'write -P 2 5000k 100k')
        const file = { driver: 'file', filename: path }
        const opened = { driver: 'qcow2', 'node-name': 'a', discard: 'unmap', file } as const
        const { disk } = await bench.open(opened)
        const first = new Uint8Array(1 << 20)
        await disk.pread(0, first)
        expect(first.every((byte) => byte === 1)).toBe(true)
        await disk.pwrite(700 * 1024, new Uint8Array(3 << 20).fill(3))
        await disk.pwrite(6_000_001, new Uint8Array(777).fill(4))
        await disk.pwriteZeroes(200 * 1024, 300 * 1024)
        await disk.pdiscard(1 << 20, 512 * 1024)
        await disk.flush()
        await bench.shut(disk)
        qemuCheck(path)
        const said = io(
          'read -P 1 0 200k',
          'read -P 0 200k 300k',
          'read -P 1 500k 200k',
          'read -P 3 700k 300k',
          'read -P 3 1600k 2100k',
          'read -P 4 6000001 777',
          'read -P 2 5000k 100k',
        )
        expect(said).not.toMatch(/failed/i)
      })
  },
)
