import { spawnSync } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { zstdDecode } from '../../../src/drivers/qcow2/zstd.ts'
import { Random } from '../../../src/util/random.ts'
import { freshImage, haveTool, qcow2, run } from './qcow2-support.ts'

const hex = (text: string): Uint8Array => Buffer.from(text.replaceAll(' ', ''), 'hex')

/** Data with repeats and skewed letters, as `level` (0 … 3) says. */
function sample(random: Random, bytes: number, level: number): Buffer {
  const data = Buffer.alloc(bytes)
  for (let at = 0; at < bytes; ) {
    const length = Math.min(bytes - at, 1 + random.int(3000))
    const from = random.int(at + 1)
    if (level > 0 && random.int(2) === 0 && from + length <= at)
      data.copy(data, at, from, from + length)
    else
      for (let i = 0; i < length; i++) data[at + i] = random.int(1 + random.int(4 ** (level + 1)))
    at += length
  }
  return data
}

describe('drivers / qcow2 / zstd', () => {
  it('drivers / qcow2 / zstd / plain and repeated blocks', () => {
    const frame = hex('28b52ffd 20 08 1a0000 61 2c0000')
    const out = new Uint8Array(3)
    expect(zstdDecode(frame, out)).toBe(true)
    expect(Buffer.from(out).toString()).toBe('aaa')
    const plain = hex('28b52ffd 20 03 190000 616263')
    expect(zstdDecode(plain, out)).toBe(true)
    expect(Buffer.from(out).toString()).toBe('abc')
    expect(zstdDecode(plain, new Uint8Array(4))).toBe(false)
  })

  it('drivers / qcow2 / zstd / damage is an error', () => {
    for (const text of ['', '28b52ffd', '00000000 00 00', '28b52ffd 20 03 1f0000 00'])
      expect(() => zstdDecode(hex(text), new Uint8Array(3))).toThrow('damaged')
  })

  it.skipIf(!haveTool('zstd'))('drivers / qcow2 / zstd / reads what zstd writes', () => {
    const seed = Number(process.env.SEED ?? randomInt(1 << 30))
    const random = new Random(seed)
    for (const [index, level] of [1, 3, 9, 19].entries())
      for (const size of [700, 65536, 300_000]) {
        const data = sample(random, size, index)
        const made = spawnSync('zstd', ['-q', '-c', `-${level}`], { input: data })
        const out = new Uint8Array(size)
        const frame = Buffer.concat([made.stdout, Buffer.from('what follows')])
        expect(zstdDecode(frame, out), `seed ${seed}`).toBe(true)
        expect(Buffer.compare(out, data), `seed ${seed}, size ${size}, level ${level}`).toBe(0)
        const hurt = Buffer.from(frame)
        for (let i = 0; i < 20; i++) {
          const at = random.int(made.stdout.length)
          hurt[at] = (hurt[at] ?? 0) ^ (1 << random.int(8))
        }
        try {
          zstdDecode(hurt, out)
        } catch (error) {
          expect(error, `seed ${seed}`).toMatchObject({ code: 'EIO' })
        }
      }
  })

  it.skipIf(!haveTool('qemu-img'))(
    'drivers / qcow2 / zstd / compressed images are read',
    async () => {
      const { b } = await freshImage({ size: 65536 })
      const data = sample(new Random(5), 1 << 20, 2)
      const { writeFileSync } = await import('node:fs')
      writeFileSync(b.path('raw'), data)
      const to = ['-O', 'qcow2', '-o', 'compression_type=zstd']
      run('qemu-img', 'convert', '-c', ...to, '-f', 'raw', b.path('raw'), b.path('z'))
      const { disk } = await b.open(qcow2(b.path('z')))
      const got = new Uint8Array(data.length)
      await disk.pread(0, got)
      expect(Buffer.compare(got, data)).toBe(0)
      await disk.pwrite(70_000, new Uint8Array(100).fill(9))
      await disk.pread(0, got)
      data.fill(9, 70_000, 70_100)
      expect(Buffer.compare(got, data)).toBe(0)
    },
  )
})
