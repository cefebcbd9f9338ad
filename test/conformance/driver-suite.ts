/** One suite for every driver: what the contract promises, whatever lies below. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { BlockBackend } from '../../src/block/backend.ts'
import type { BlockdevOptions } from '../../src/block/driver.ts'
import { FLAG, PERM, STATUS } from '../../src/block/driver.ts'
import { nodeTruncate } from '../../src/block/truncate.ts'
import { makeThrottleDriver, ThrottleGroups } from '../../src/drivers/throttle.ts'
import { builtinDrivers } from '../../src/runtime/drivers.ts'
import { Bench } from '../unit/drivers/qcow2-support.ts'

/** How one driver is made for the suite, and what it can: every capability is asserted, none skips. */
export interface DriverCase {
  /** Name in test names. */
  readonly name: string
  /** Options of a node called `disk`, at least 1 MiB long and all zero. */
  make(bench: Bench): Promise<BlockdevOptions> | BlockdevOptions
  /** What was written comes back (default), or is gone at once and reads as zeroes. */
  readonly content?: 'kept' | 'gone'
  /** It is reopened (default), or refuses with this sentence. */
  readonly reopen?: 'yes' | RegExp
}

const SIZE = 1024 * 1024
const KiB = 1024

async function read(disk: BlockBackend, offset: number, bytes: number): Promise<Uint8Array> {
  const got = new Uint8Array(bytes).fill(0xee)
  await disk.pread(offset, got)
  return got
}

async function expectFilled(disk: BlockBackend, offset: number, bytes: number, value: number) {
  const got = await read(disk, offset, bytes)
  if (Buffer.compare(got, Buffer.alloc(bytes, value)) === 0) return
  const wrong = got.findIndex((byte) => byte !== value)
  expect(wrong < 0 ? 'all' : `byte ${offset + wrong} is ${got[wrong]}`).toBe('all')
}

const failure = async (act: () => unknown): Promise<unknown> => {
  try {
    await act()
  } catch (error) {
    return error instanceof Error && 'code' in error ? error.code : error
  }
  return undefined
}

/** A bench that knows every driver, `throttle` with a group `free` that limits nothing noticeable. */
export function fullBench(): Bench {
  const bench = new Bench(builtinDrivers())
  const groups = new ThrottleGroups(bench.ctx)
  groups.add('free', { 'iops-total': 1_000_000, 'bps-total': 1e12 })
  bench.graph.drivers.set('throttle', makeThrottleDriver(groups))
  return bench
}

/** Runs the suite for one driver. */
export function driverSuite(driver: DriverCase): void {
  describe(`conformance / ${driver.name}`, () => {
    let bench: Bench
    let disk: BlockBackend
    /** What a byte shows after this was written to it. */
    const shown = (value: number): number => (driver.content === 'gone' ? 0 : value)
    beforeEach(async () => {
      bench = fullBench()
      disk = (await bench.open(await driver.make(bench))).disk
    })
    afterEach(() => bench.close())
    const at = (what: string): string => `conformance / ${driver.name} / ${what}`

    it(at('a new disk reads as zeroes'), async () => {
      expect(disk.length()).toBeGreaterThanOrEqual(SIZE)
      await expectFilled(disk, 0, SIZE, 0)
    })

    it(at('what was written is read'), async () => {
      await disk.pwrite(64 * KiB, new Uint8Array(128 * KiB).fill(1))
      await expectFilled(disk, 64 * KiB, 128 * KiB, shown(1))
      await expectFilled(disk, 0, 64 * KiB, 0)
      await expectFilled(disk, 192 * KiB, 64 * KiB, 0)
    })

    it(at('writes at odd offsets keep what surrounds them'), async () => {
      await disk.pwrite(0, new Uint8Array(256 * KiB).fill(1))
      await disk.pwrite(70_001, new Uint8Array(777).fill(2))
      await expectFilled(disk, 0, 70_001, shown(1))
      await expectFilled(disk, 70_001, 777, shown(2))
      await expectFilled(disk, 70_778, 256 * KiB - 70_778, shown(1))
    })

    it(at('a caller may reuse its buffer after the write'), async () => {
      const buf = new Uint8Array(64 * KiB).fill(3)
      await disk.pwrite(0, buf)
      buf.fill(9)
      await expectFilled(disk, 0, 64 * KiB, shown(3))
    })

    it(at('zero writes of every alignment read as zeroes'), async () => {
      for (const flags of [0, FLAG.MAY_UNMAP]) {
        await disk.pwrite(0, new Uint8Array(512 * KiB).fill(4))
        await disk.pwriteZeroes(10_000, 300_000, flags)
        await expectFilled(disk, 0, 10_000, shown(4))
        await expectFilled(disk, 10_000, 300_000, 0)
        await expectFilled(disk, 310_000, 512 * KiB - 310_000, shown(4))
      }
    })

    it(at('a discard leaves everything else alone'), async () => {
      await disk.pwrite(0, new Uint8Array(SIZE).fill(5))
      await disk.pdiscard(256 * KiB, 256 * KiB)
      await expectFilled(disk, 0, 256 * KiB, shown(5))
      await expectFilled(disk, 512 * KiB, 512 * KiB, shown(5))
    })

    it(at('requests at once do not disturb each other'), async () => {
      const jobs = Array.from({ length: 64 }, async (_, i) => {
        await disk.pwrite(i * 16 * KiB, new Uint8Array(16 * KiB).fill(i + 1))
      })
      await Promise.all(jobs)
      for (let i = 0; i < 64; i++) await expectFilled(disk, i * 16 * KiB, 16 * KiB, shown(i + 1))
    })

    it(at('block status covers the disk and never calls data zero'), async () => {
      await disk.pwrite(300 * KiB, new Uint8Array(64 * KiB).fill(6))
      for (let offset = 0; offset < SIZE; ) {
        const status = await disk.blockStatus(offset, SIZE - offset)
        expect(status.bytes).toBeGreaterThan(0)
        expect(status.bytes).toBeLessThanOrEqual(SIZE - offset)
        if ((status.flags & STATUS.ZERO) !== 0) await expectFilled(disk, offset, status.bytes, 0)
        offset += status.bytes
      }
    })

    it(at('flush and FUA succeed'), async () => {
      await disk.pwrite(0, new Uint8Array(512).fill(7), FLAG.FUA)
      await disk.flush()
      await disk.flush()
    })

    it(at('requests beyond the end fail'), async () => {
      const end = disk.length()
      expect(await failure(() => disk.pread(end - 512, new Uint8Array(1024)))).toBe('EIO')
      expect(await failure(() => disk.pwrite(end - 512, new Uint8Array(1024)))).toBe('EIO')
      expect(await failure(() => disk.pwriteZeroes(end, 512))).toBe('EIO')
      expect(await failure(() => disk.pread(-512, new Uint8Array(512)))).toBe('EIO')
    })

    it(at('an empty request does nothing'), async () => {
      await disk.pread(0, new Uint8Array(0))
      await disk.pwrite(disk.length(), new Uint8Array(0))
    })

    it(at('a drained node has no request in flight'), async () => {
      const writes = [0, 1, 2, 3].map((i) => disk.pwrite(i * 4096, new Uint8Array(4096).fill(8)))
      const { node } = disk
      await bench.graph.withDrained(node, () => expect(node.gate.inFlight).toBe(0))
      await Promise.all(writes)
      expect(node.gate.inFlight).toBe(0)
    })

    it(at('data survive a reopen with the same options'), async () => {
      await disk.pwrite(4096, new Uint8Array(64 * KiB).fill(9))
      const reopen = bench.graph.reopen([
        { node: disk.node, options: disk.node.options, keepChildren: true },
      ])
      if (driver.reopen instanceof RegExp) await expect(reopen).rejects.toThrow(driver.reopen)
      else await reopen
      await expectFilled(disk, 4096, 64 * KiB, shown(9))
    })

    it(at('a write that must not be emulated ends, or says ENOTSUP'), async () => {
      const flags = FLAG.NO_FALLBACK
      expect([undefined, 'ENOTSUP']).toContain(
        await failure(() => disk.pwriteZeroes(0, 64 * KiB, flags)),
      )
      await expectFilled(disk, 0, 64 * KiB, 0)
      await disk.pwrite(0, new Uint8Array(64 * KiB).fill(1), flags)
      await expectFilled(disk, 0, 64 * KiB, shown(1))
    })

    it(at('another length is taken, or refused with a sentence'), async () => {
      const before = disk.length()
      const user = await BlockBackend.create(bench.graph, disk.node, {
        perm: PERM.RESIZE,
        shared: PERM.ALL,
      }).catch((error: unknown) => error)
      if (!(user instanceof BlockBackend)) {
        expect(user).toMatchObject({ code: 'EPERM' })
        return
      }
      const error = await nodeTruncate(user.root, before + SIZE).catch((thrown: unknown) => thrown)
      await user.close()
      if (error === undefined) {
        expect(disk.length()).toBe(before + SIZE)
        await expectFilled(disk, before, SIZE, 0)
        return
      }
      // A filter has no length of its own: the refusal is that of what it filters.
      expect(error).toMatchObject({ name: 'BlockError', code: 'ENOTSUP' })
      expect(disk.length()).toBe(before)
    })

    it(at('closing leaves no node behind'), async () => {
      await disk.pwrite(0, new Uint8Array(4096).fill(1))
      await bench.shut(disk)
      expect(bench.graph.nodes().map((node) => node.name)).toEqual([])
    })
  })
}

/** Runs what a driver that only shows something promises; its node is called `disk`, 1 MiB of `value`. */
export function viewSuite(view: {
  readonly name: string
  readonly value: number
  make(bench: Bench): Promise<BlockdevOptions>
}): void {
  describe(`conformance / ${view.name}`, () => {
    let bench: Bench
    let disk: BlockBackend
    beforeEach(async () => {
      bench = fullBench()
      disk = (await bench.open(await view.make(bench))).disk
    })
    afterEach(() => bench.close())
    const at = (what: string): string => `conformance / ${view.name} / ${what}`

    it(at('reads of every alignment show it'), async () => {
      expect(disk.length()).toBe(SIZE)
      await expectFilled(disk, 0, SIZE, view.value)
      await expectFilled(disk, 70_001, 777, view.value)
    })

    it(at('every change is refused and changes nothing'), async () => {
      expect(await failure(() => disk.pwrite(0, new Uint8Array(512)))).toBe('EPERM')
      expect(await failure(() => disk.pwriteZeroes(0, 512))).toBe('EPERM')
      await disk.flush()
      await expectFilled(disk, 0, SIZE, view.value)
    })

    it(at('requests beyond the end fail, empty ones do nothing'), async () => {
      expect(await failure(() => disk.pread(SIZE - 512, new Uint8Array(1024)))).toBe('EIO')
      await disk.pread(0, new Uint8Array(0))
    })

    it(at('block status covers the disk and never calls data zero'), async () => {
      for (let offset = 0; offset < SIZE; ) {
        const status = await disk.blockStatus(offset, SIZE - offset)
        expect(status.bytes).toBeGreaterThan(0)
        if ((status.flags & STATUS.ZERO) !== 0) expect(view.value).toBe(0)
        offset += status.bytes
      }
    })

    it(at('a drained node has no request in flight'), async () => {
      const reads = [0, 1, 2, 3].map((i) => disk.pread(i * 4096, new Uint8Array(4096)))
      const { node } = disk
      await bench.graph.withDrained(node, () => expect(node.gate.inFlight).toBe(0))
      await Promise.all(reads)
    })
  })
}
