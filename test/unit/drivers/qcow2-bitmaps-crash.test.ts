import { expect, it } from 'vitest'
import type { BlockDriver, BlockdevOptions, DriverDefinition } from '../../../src/block/driver.ts'
import { NO_LIMITS } from '../../../src/block/driver.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { encodeNewImage } from '../../../src/drivers/qcow2/create.ts'
import { Random } from '../../../src/util/random.ts'
import { Bench, DRIVERS } from './qcow2-support.ts'

const KiB = 1024
const REGION = 64 * KiB
const SIZE = 16 * REGION

type Entry = { readonly offset: number; readonly bytes: Uint8Array } | 'flush'

/** A file that grows and remembers the order of its writes and flushes. */
class Tape {
  content: Uint8Array
  readonly entries: Entry[] = []

  constructor(content: Uint8Array) {
    this.content = content
  }

  write(offset: number, bytes: Uint8Array): void {
    if (offset + bytes.length > this.content.length) {
      const grown = new Uint8Array(offset + bytes.length)
      grown.set(this.content)
      this.content = grown
    }
    this.content.set(bytes, offset)
  }

  get definition(): DriverDefinition {
    const driver: BlockDriver = {
      limits: NO_LIMITS,
      writeFlags: 0,
      zeroesFlags: 0,
      length: () => this.content.length,
      pread: (offset, buf) => {
        buf.fill(0)
        buf.set(this.content.subarray(offset, offset + buf.length))
        return undefined
      },
      pwrite: (offset, buf) => {
        this.write(offset, buf)
        this.entries.push({ offset, bytes: buf.slice() })
        return undefined
      },
      flush: (toDisk) => {
        if (toDisk) this.entries.push('flush')
        return undefined
      },
      close: () => undefined,
    }
    return { name: 'tape', kind: 'protocol', open: async () => driver }
  }
}

const IMAGE: BlockdevOptions = { driver: 'qcow2', 'node-name': 'a', file: { driver: 'tape' } }

async function withImage<T>(
  tape: Tape,
  options: Partial<BlockdevOptions>,
  body: (node: BlockNode, b: Bench) => Promise<T>,
): Promise<T> {
  const b = new Bench([...DRIVERS, tape.definition])
  try {
    return await body(await b.graph.add({ ...IMAGE, ...options }), b)
  } finally {
    await b.close()
  }
}

/** Regions with a byte of at least `least`, and what the bitmap says if it can be used. */
function look(
  content: Uint8Array,
  least: number,
): Promise<{ changed: number[]; dirty: number[] | undefined }> {
  return withImage(new Tape(content), { 'read-only': true }, async (node, b) => {
    const { disk } = await b.openNode(node)
    const bitmap = node.bitmaps.get('keep')
    const good = bitmap !== undefined && !bitmap.inconsistent
    const changed: number[] = []
    const dirty: number[] = []
    for (let region = 0; region < SIZE / REGION; region++) {
      const got = new Uint8Array(REGION)
      await disk.pread(region * REGION, got)
      if (got.some((byte) => byte >= least)) changed.push(region)
      if (good && bitmap.bits.get(region * REGION)) dirty.push(region)
    }
    return { changed, dirty: good ? dirty : undefined }
  })
}

const seeds = process.env.SEED === undefined ? [1, 2, 3] : [Number(process.env.SEED)]

it.each(seeds)(
  'qcow2 / bitmaps / whenever the power fails, a bitmap that looks good misses nothing (seed %i)',
  async (seed) => {
    const random = new Random(seed)
    const tape = new Tape(encodeNewImage({ size: SIZE, clusterSize: 4096 }))
    const start = tape.content.slice()
    const cleared = 2
    let entriesBefore = 0
    for (let session = 0; session < 5; session++)
      await withImage(tape, {}, async (node, b) => {
        if (session === 0) node.bitmaps.add({ name: 'keep', persistent: true, granularity: REGION })
        if (session === cleared) {
          node.bitmaps.need('keep').clear()
          node.bitmaps.add({ name: 'other', persistent: true })
          entriesBefore = tape.entries.length
        }
        const { disk } = await b.openNode(node)
        for (let i = 0; i < 3; i++) {
          // Few places, so that clusters are written again where they lie.
          await disk.pwrite(random.int(6) * REGION, new Uint8Array(512).fill(1 + session))
          if (random.int(3) === 0) await disk.flush()
        }
        await disk.close()
      })

    let good = 0
    for (let cut = 0; cut <= tape.entries.length; cut++) {
      const stable = tape.entries.lastIndexOf('flush', cut - 1) + 1
      const crashed = new Tape(start.slice())
      for (const [i, entry] of tape.entries.slice(0, cut).entries())
        if (entry !== 'flush' && (i < stable || random.int(2) === 0))
          crashed.write(entry.offset, entry.bytes)
      const least = cut > entriesBefore ? 1 + cleared : 1
      const { changed, dirty } = await look(crashed.content, least)
      if (dirty === undefined) continue
      good++
      for (const region of changed) expect(dirty, `seed ${seed}, cut at ${cut}`).toContain(region)
    }
    expect(good).toBeGreaterThan(4)
    const last = await look(tape.content, 1 + cleared)
    expect(last.dirty).toEqual(last.changed)
  },
)
