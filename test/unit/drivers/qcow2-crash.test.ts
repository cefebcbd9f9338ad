import { afterEach, describe, expect, it } from 'vitest'
import type { BlockDriver, DriverDefinition } from '../../../src/block/driver.ts'
import { FLAG, NO_LIMITS } from '../../../src/block/driver.ts'
import { checkQcow2 } from '../../../src/drivers/qcow2/check.ts'
import type { Qcow2CreateOptions } from '../../../src/drivers/qcow2/create.ts'
import { encodeNewImage } from '../../../src/drivers/qcow2/create.ts'
import { Bench, DRIVERS } from './qcow2-support.ts'

const SECTOR = 512
const SIZE = 1024 * 1024
const CAPACITY = 3 * SIZE

type Entry =
  | { readonly kind: 'write'; readonly offset: number; readonly bytes: Uint8Array }
  | { readonly kind: 'truncate'; readonly size: number }
  | { readonly kind: 'sync' }

/** A disk that notes what reached it, in order, and when it was made stable. */
class Recorder {
  readonly log: Entry[] = []
  /** Say that flushes succeeded without making anything stable. */
  lies = false
  bytes: Uint8Array = new Uint8Array(CAPACITY)
  end = 0
  readonly definition: DriverDefinition = {
    name: 'recorder',
    kind: 'protocol',
    open: async () => this.#driver(),
  }

  load(bytes: Uint8Array, end: number): void {
    this.bytes = new Uint8Array(CAPACITY)
    this.bytes.set(bytes.subarray(0, end))
    this.end = end
    this.log.length = 0
  }

  #driver(): BlockDriver {
    return {
      limits: NO_LIMITS,
      writeFlags: 0,
      zeroesFlags: 0,
      length: () => this.end,
      pread: async (offset, buf) => {
        buf.set(this.bytes.subarray(offset, offset + buf.length))
      },
      pwrite: async (offset, buf) => {
        this.log.push({ kind: 'write', offset, bytes: buf.slice() })
        this.bytes.set(buf, offset)
        this.end = Math.max(this.end, offset + buf.length)
      },
      flush: async () => {
        if (!this.lies) this.log.push({ kind: 'sync' })
      },
      truncate: (size) => {
        this.log.push({ kind: 'truncate', size })
        this.bytes.fill(0, size)
        this.end = size
      },
      close: () => undefined,
    }
  }
}

function random(seed: number): (below: number) => number {
  let state = seed >>> 0
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

/** What a disk may hold that lost power after `cut` entries: unsynced sectors survive by chance. */
function crash(
  first: Uint8Array,
  log: readonly Entry[],
  cut: number,
  next: (below: number) => number,
): { bytes: Uint8Array; end: number } {
  const bytes = new Uint8Array(CAPACITY)
  bytes.set(first)
  let end = first.length
  const stable = log.slice(0, cut).findLastIndex((entry) => entry.kind === 'sync')
  for (const [index, entry] of log.slice(0, cut).entries()) {
    const sure = index < stable
    if (entry.kind === 'truncate' && (sure || next(2) === 0)) {
      bytes.fill(0, entry.size)
      end = entry.size
    }
    if (entry.kind !== 'write') continue
    for (let at = 0; at < entry.bytes.length; ) {
      const step = Math.min(SECTOR - ((entry.offset + at) % SECTOR), entry.bytes.length - at)
      if (sure || next(2) === 0) {
        bytes.set(entry.bytes.subarray(at, at + step), entry.offset + at)
        end = Math.max(end, entry.offset + at + step)
      }
      at += step
    }
  }
  return { bytes, end }
}

/** What each sector may read as after a crash; steps order what log positions cannot. */
class History {
  readonly #sectors: { step: number; value: number }[][] = Array.from(
    { length: SIZE / SECTOR },
    () => [{ step: 0, value: 0 }],
  )
  readonly #stable: { step: number; acked: number }[] = []

  wrote(step: number, offset: number, bytes: number, value: number): void {
    for (let s = offset / SECTOR; s < (offset + bytes) / SECTOR; s++)
      this.#sectors[s]?.push({ step, value })
  }

  flushed(step: number, acked: number): void {
    this.#stable.push({ step, acked })
  }

  allowed(sector: number, cut: number): Set<number> {
    const all = this.#sectors[sector] ?? []
    const flush = this.#stable.findLast(({ acked }) => acked <= cut)
    const oldest = all.findLastIndex(({ step }) => step < (flush?.step ?? 1))
    return new Set(all.slice(oldest).map(({ value }) => value))
  }
}

let bench: Bench | undefined
afterEach(async () => {
  await bench?.close()
  bench = undefined
})

const flavours: Record<string, Omit<Qcow2CreateOptions, 'size'>> = {
  'clusters of 4k': { clusterSize: 4096 },
  'clusters of 512, refcounts of 64 bits': { clusterSize: 512, refcountBits: 64 },
  'clusters of 64k': {},
  'lazy refcounts': { clusterSize: 4096, lazyRefcounts: true },
}

/** Works on a disk for a while, then cuts the power at many places; answers what was unsound. */
async function explore(
  options: Omit<Qcow2CreateOptions, 'size'>,
  seed: number,
  rounds: number,
  lies: boolean,
): Promise<string[]> {
  const next = random(seed)
  const recorder = new Recorder()
  recorder.lies = lies
  bench = new Bench([...DRIVERS, recorder.definition])
  const first = encodeNewImage({ size: SIZE, ...options })
  recorder.load(first, first.length)
  const image = {
    driver: 'qcow2',
    'node-name': 'a',
    discard: 'unmap',
    file: { driver: 'recorder', discard: 'unmap' },
  } as const
  const { node, disk } = await bench.open(image)
  const history = new History()
  for (let step = 1; step <= 60; step++) {
    const offset = next(SIZE / SECTOR) * SECTOR
    const bytes = Math.min(SIZE - offset, (next(40) + 1) * SECTOR)
    const kind = next(20)
    if (kind < 10) {
      history.wrote(step, offset, bytes, step)
      await disk.pwrite(offset, new Uint8Array(bytes).fill(step))
    } else if (kind < 14) {
      history.wrote(step, offset, bytes, 0)
      await disk.pwriteZeroes(offset, bytes, FLAG.MAY_UNMAP)
    } else if (kind < 19) {
      await disk.flush()
      history.flushed(step, recorder.log.length)
    } else {
      history.wrote(step, 0, SIZE, 0)
      await bench.graph.withDrained(node, () => node.driver?.makeEmpty?.())
    }
  }
  await bench.shut(disk)
  const log = [...recorder.log]
  const unsound: string[] = []
  for (let round = 0; round < rounds; round++) {
    const cut = next(log.length + 1)
    const left = crash(first, log, cut, next)
    recorder.load(left.bytes, left.end)
    const where = `seed ${seed}, cut ${cut} of ${log.length}`
    const lazy = options.lazyRefcounts === true
    const after = await bench.open({ ...image, 'read-only': !lazy })
    const file = after.node.children.get('file')
    if (file === undefined) throw new Error('no file child')
    const found = await checkQcow2(file)
    if (found.corruptions > 0) unsound.push(`${where}: ${found.messages.join('; ')}`)
    const got = new Uint8Array(SIZE)
    await after.disk.pread(0, got)
    for (let s = 0; s < SIZE / SECTOR; s++) {
      const value = got[s * SECTOR] ?? -1
      if (!history.allowed(s, cut).has(value)) unsound.push(`${where}: sector ${s} is ${value}`)
    }
    await bench.shut(after.disk)
  }
  return unsound
}

describe('qcow2 / crash', () => {
  for (const [name, options] of Object.entries(flavours))
    it(`qcow2 / crash / ${name} / every power cut leaves a sound image with what was flushed`, async () => {
      expect(await explore(options, 77, 15, false)).toEqual([])
      await bench?.close()
      expect(await explore(options, 78, 15, false)).toEqual([])
    })

  it('qcow2 / crash / a disk that lies about flushes is caught', async () => {
    expect(await explore({ clusterSize: 4096 }, 77, 15, true)).not.toEqual([])
  })
})
