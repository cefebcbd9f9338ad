/** The parts of the demo that its verdict rests on. */
import { describe, expect, test } from 'vitest'
import { Checkpoints, type Side } from '../../src/cli/demo/checkpoints.ts'
import { Guest, type GuestDisk } from '../../src/cli/demo/guest.ts'
import { CheckpointRecord, Journal } from '../../src/cli/demo/journal.ts'
import { BLOCK, fillBlocks, WritePlan } from '../../src/cli/demo/pattern.ts'
import { verify } from '../../src/cli/demo/verify.ts'
import { BlockError } from '../../src/util/errors.ts'

const BLOCKS = 100

/** A disk of plain bytes whose writes wait until they are let through. */
function plainDisk(
  size: number,
): GuestDisk & { bytes: Buffer; waiting: (() => void)[]; slow: boolean } {
  const bytes = Buffer.alloc(size)
  const waiting: (() => void)[] = []
  const disk = {
    bytes,
    waiting,
    slow: false,
    read: async (offset: number, buf: Uint8Array) =>
      buf.set(bytes.subarray(offset, offset + buf.length)),
    async write(offset: number, buf: Uint8Array): Promise<void> {
      const copy = Buffer.from(buf)
      await new Promise<void>((resolve) => {
        if (disk.slow) waiting.push(resolve)
        else setImmediate(resolve)
      })
      bytes.set(copy, offset)
    },
    flush: async () => {},
    close: async () => {},
  }
  return disk
}

/** Waits for a condition, one turn of the event loop at a time. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve))
}

describe('demo parts', () => {
  test('demo / plan / no block belongs to two writers and every write fits', () => {
    const plan = new WritePlan(5, BLOCKS, 4)
    const owner = new Map<number, number>()
    const tags = new Set<number>()
    for (let n = 0; n < 500; n++) {
      for (let writer = 0; writer < plan.writers; writer++) {
        const { block, count, tag } = plan.write(writer, n)
        expect(count).toBeGreaterThan(0)
        expect(block + count).toBeLessThanOrEqual(BLOCKS)
        expect(tags.has(tag)).toBe(false)
        tags.add(tag)
        for (let each = block; each < block + count; each++) {
          expect(owner.get(each) ?? writer).toBe(writer)
          owner.set(each, writer)
        }
      }
    }
    expect(owner.size).toBe(BLOCKS)
  })

  test('demo / plan / a tiny disk has one writer', () => {
    const plan = new WritePlan(5, 1, 4)
    expect(plan.writers).toBe(1)
    expect(plan.write(0, 9)).toMatchObject({ block: 0, count: 1 })
  })

  test('demo / journal / dirty blocks are counted once an epoch', () => {
    const journal = new Journal(BLOCKS)
    journal.record(3, 4, 1)
    journal.record(5, 4, 2)
    expect(journal.dirtyBlocks).toBe(6)
    journal.beginEpoch()
    journal.record(3, 1, 3)
    expect(journal.dirtyBlocks).toBe(1)
    expect([...journal.now.slice(2, 10)]).toEqual([0, 3, 1, 2, 2, 2, 2, 0])
  })

  test('demo / journal / the secondary alone decides what a torn checkpoint leads to', () => {
    const journal = new Journal(2)
    const record = new CheckpointRecord(2)
    journal.record(0, 1, 1)
    record.secondaryDone(journal.now)
    record.primaryDone()
    journal.record(0, 1, 2)
    expect([...record.tags]).toEqual([1, 0])
    record.secondaryDone(journal.now)
    expect(record).toMatchObject({ both: 1, torn: true })
    expect([...record.tags]).toEqual([2, 0])
  })

  test('demo / guest / a pause ends only when every write is acknowledged and recorded', async () => {
    const disk = plainDisk(BLOCKS * BLOCK)
    disk.slow = true
    const journal = new Journal(BLOCKS)
    const plan = new WritePlan(5, BLOCKS, 2)
    const guest = new Guest({ disks: [disk], size: BLOCKS * BLOCK, seed: 5, plan, journal })
    guest.start()
    await until(() => disk.waiting.length === 2)
    let paused = false
    const pause = guest.pause().then((good) => {
      paused = true
      return good
    })
    disk.waiting.shift()?.()
    await until(() => guest.writes === 1)
    expect(paused).toBe(false)
    disk.waiting.shift()?.()
    expect(await pause).toBe(true)
    expect(guest.writes).toBe(2)
    expect(disk.waiting).toHaveLength(0)
    disk.slow = false
    guest.resume()
    await until(() => guest.writes > 4)
    await guest.stop()
    expect(guest.error).toBeUndefined()
  })

  test('demo / guest / a failed write ends the writer, and pause says so', async () => {
    const disk = plainDisk(BLOCKS * BLOCK)
    disk.write = async () => Promise.reject(new Error('gone'))
    const journal = new Journal(BLOCKS)
    const plan = new WritePlan(5, BLOCKS, 2)
    const guest = new Guest({ disks: [disk], size: BLOCKS * BLOCK, seed: 5, plan, journal })
    guest.start()
    await until(() => guest.error !== undefined)
    expect(await guest.pause()).toBe(false)
    expect(journal.writes).toBe(0)
  })

  test('demo / verify / every block is compared, the last short one too', async () => {
    const size = 5 * BLOCK + 512
    const disk = plainDisk(size)
    const checkpoint = new Uint32Array(6)
    const own = new Uint32Array(6)
    const words = new Int32Array(BLOCK / 4)
    const put = (tags: Uint32Array, block: number, tag: number): void => {
      tags[block] = tag
      fillBlocks(words, 9, { block, count: 1, tag })
      disk.bytes.set(new Uint8Array(words.buffer).subarray(0, size - block * BLOCK), block * BLOCK)
    }
    put(checkpoint, 1, 7)
    put(checkpoint, 5, 8)
    put(own, 1, 0x8000_0001)
    const expected = { size, seed: 9, image: undefined, checkpoint, own }
    expect(await verify(disk, expected)).toEqual({ blocks: 6, wrong: 0, firstWrong: undefined })
    disk.bytes[size - 1]! ^= 1
    disk.bytes[0]! ^= 1
    expect(await verify(disk, expected)).toEqual({ blocks: 6, wrong: 2, firstWrong: 0 })
  })
})

/** What a peer answers; by default all is well. */
interface Answers {
  readonly status?: () => Promise<{ error?: string }>
  readonly checkpoint?: () => Promise<void>
}

/** A pair of peers that answer as told, and the guests of both sides. */
function fakePair(answers: { primary?: Answers; secondary?: Answers }) {
  const log: string[] = []
  let died = (): void => {}
  const exited = new Promise<void>((resolve) => {
    died = resolve
  })
  const peer = (name: 'primary' | 'secondary') => ({
    name,
    status: async () => {
      log.push(`${name} status`)
      return (await answers[name]?.status?.()) ?? {}
    },
    checkpoint: async () => {
      log.push(`${name} checkpoint`)
      await answers[name]?.checkpoint?.()
    },
  })
  const primary = {
    ...peer('primary'),
    exited,
    exit: undefined as { signal: string } | undefined,
    kill(): void {
      primary.exit = { signal: 'SIGKILL' }
      died()
    },
  }
  const secondary = peer('secondary')
  const side = (): Side => {
    const journal = new Journal(BLOCKS)
    const plan = new WritePlan(5, BLOCKS, 1)
    const options = { disks: [plainDisk(BLOCKS * BLOCK)], size: BLOCKS * BLOCK, seed: 5 }
    return { journal, guest: new Guest({ ...options, plan, journal }) }
  }
  const record = new CheckpointRecord(BLOCKS)
  const sides = [side(), side()] as const
  const checkpoints = new Checkpoints({ primary, secondary }, record, ...sides)
  return { log, primary, record, checkpoints, journal: sides[0].journal }
}

describe('demo checkpoints', () => {
  test('demo / checkpoint / a primary that dies after the secondary moved leaves it torn', async () => {
    const pair = fakePair({
      primary: {
        checkpoint: async () => {
          pair.primary.kill()
          throw new BlockError('ECONNRESET', 'gone')
        },
      },
    })
    pair.journal.record(1, 1, 9)
    await pair.checkpoints.run()
    expect(pair.log.slice(-2)).toEqual(['secondary checkpoint', 'primary checkpoint'])
    expect(pair.record).toMatchObject({ torn: true, both: 0 })
    expect(pair.record.tags[1]).toBe(9)
  })

  test('demo / checkpoint / a primary that dies before it leaves the older state', async () => {
    const pair = fakePair({
      primary: {
        status: async () => {
          pair.primary.kill()
          throw new BlockError('ECONNRESET', 'gone')
        },
      },
    })
    pair.journal.record(1, 1, 9)
    await pair.checkpoints.run()
    expect(pair.log).not.toContain('secondary checkpoint')
    expect(pair.record).toMatchObject({ torn: false, both: 0 })
    expect(pair.record.tags[1]).toBe(0)
  })

  test('demo / checkpoint / a failure of the secondary is never explained by a death', async () => {
    const pair = fakePair({
      secondary: {
        checkpoint: async () => {
          pair.primary.kill()
          throw new BlockError('EIO', 'no space')
        },
      },
    })
    await expect(pair.checkpoints.run()).rejects.toMatchObject({ message: 'no space' })
  })

  test('demo / checkpoint / a lost forward stops the run before the secondary moves', async () => {
    const pair = fakePair({ primary: { status: async () => ({ error: 'lost' }) } })
    await expect(pair.checkpoints.run()).rejects.toMatchObject({ message: 'primary: lost' })
    expect(pair.log).not.toContain('secondary checkpoint')
  })
})
