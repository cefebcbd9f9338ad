import * as fs from 'node:fs'
import { afterEach, describe, expect, it } from 'vitest'
import type { BlockBackend } from '../../../src/block/backend.ts'
import { FLAG } from '../../../src/block/driver.ts'
import type { Qcow2CreateOptions } from '../../../src/drivers/qcow2/create.ts'
import { createQcow2 } from '../../../src/drivers/qcow2/create.ts'
import { Bench, haveTool, qemuCheck, run } from './qcow2-support.ts'

const KiB = 1024

/** A small generator, so that a failure prints the seed that brings it back. */
function random(seed: number): (below: number) => number {
  let state = seed >>> 0
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

const flavours: Record<string, Omit<Qcow2CreateOptions, 'size'>> = {
  plain: {},
  'clusters of 512': { clusterSize: 512 },
  'clusters of 4k': { clusterSize: 4096 },
  'clusters of 2M': { clusterSize: 2 * KiB * KiB },
  'version 2': { version: 2 },
  'refcounts of 1 bit': { refcountBits: 1 },
  'refcounts of 4 bits': { refcountBits: 4, clusterSize: 512 },
  'refcounts of 64 bits': { refcountBits: 64, clusterSize: 512 },
  'lazy refcounts': { lazyRefcounts: true },
  'extended L2': { extendedL2: true, clusterSize: 128 * KiB },
}

let bench: Bench | undefined
afterEach(async () => {
  await bench?.close()
  bench = undefined
})

class Model {
  readonly disk: BlockBackend
  readonly bytes: Uint8Array
  readonly #next: (below: number) => number

  constructor(disk: BlockBackend, bytes: Uint8Array, next: (below: number) => number) {
    this.disk = disk
    this.bytes = bytes
    this.#next = next
  }

  async step(compress: boolean): Promise<void> {
    const next = this.#next
    const size = this.bytes.length
    const offset = next(size / 512) * 512
    const length = Math.min(size - offset, (next(200) + 1) * 512 - (next(2) ? next(511) : 0))
    const range = this.bytes.subarray(offset, offset + length)
    const kind = next(10)
    if (kind < 5) {
      range.fill(next(255) + 1)
      await this.disk.pwrite(offset, range.slice())
    } else if (kind < 7) {
      range.fill(0)
      await this.disk.pwriteZeroes(offset, length, next(2) ? FLAG.MAY_UNMAP : 0)
    } else if (kind === 7 && compress) {
      range.fill(next(255) + 1)
      await this.disk.pwrite(offset, range.slice(), FLAG.WRITE_COMPRESSED)
    } else if (kind === 8) await this.disk.flush()
    else await this.check(offset, length)
  }

  async check(offset = 0, length: number = this.bytes.length): Promise<void> {
    const got = new Uint8Array(length)
    await this.disk.pread(offset, got)
    const at = Buffer.compare(got, this.bytes.subarray(offset, offset + length))
    expect(at, `bytes from ${offset}`).toBe(0)
  }
}

describe.skipIf(!haveTool('qemu-img'))('qcow2 / random (needs qemu-img)', () => {
  for (const [name, options] of Object.entries(flavours)) {
    it(`qcow2 / random / ${name} over a backing image stays right and clean`, async () => {
      const seed = 1000 + name.length
      const next = random(seed)
      bench = new Bench()
      const size = 3 * KiB * KiB + 512
      const base = new Uint8Array(2 * KiB * KiB).map((_, i) => ((i >> 9) % 250) + 1)
      fs.writeFileSync(bench.path('base'), base)
      const path = bench.path('top')
      await createQcow2(path, { size, ...options, backingFile: 'base', backingFormat: 'raw' })
      qemuCheck(path)
      const bytes = new Uint8Array(size)
      bytes.set(base)
      for (let round = 0; round < 3; round++) {
        const node = { driver: 'qcow2', 'node-name': 'top', discard: 'unmap' } as const
        const { disk } = await bench.open({ ...node, file: { driver: 'file', filename: path } })
        const model = new Model(disk, bytes, next)
        try {
          await model.check()
          for (let i = 0; i < 60; i++) await model.step((options.refcountBits ?? 16) > 1)
          await Promise.all(
            Array.from({ length: 8 }, async (_, i) => {
              const at = i * 300 * KiB
              bytes.fill(i + 1, at, at + 300 * KiB)
              await disk.pwrite(at, bytes.slice(at, at + 300 * KiB))
            }),
          )
          await model.check()
        } catch (error) {
          throw new Error(`seed ${seed}`, { cause: error })
        }
        await bench.shut(disk)
        qemuCheck(path)
        run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', path, bench.path('raw'))
        expect(Buffer.compare(fs.readFileSync(bench.path('raw')), bytes)).toBe(0)
      }
    })
  }
})
