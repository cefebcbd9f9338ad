import { afterEach, describe, expect, it } from 'vitest'
import type { BlockBackend } from '../../../src/block/backend.ts'
import { Bench } from './qcow2-support.ts'

let bench: Bench
afterEach(() => bench.close())

const SECTOR = 512
const memory = { driver: 'memory', size: 1 << 20 }

/** raw over blkdebug over memory, since events come from the format above. */
async function open(rules: object): Promise<BlockBackend> {
  bench = new Bench()
  const file = { driver: 'blkdebug', image: memory, ...rules }
  return (await bench.open({ driver: 'raw', 'node-name': 'd', file })).disk
}

async function outcome(act: () => unknown): Promise<unknown> {
  try {
    await act()
  } catch (error) {
    return error instanceof Error && 'code' in error ? error.code : error
  }
  return 'ok'
}

const writing = (disk: BlockBackend, sector: number) =>
  outcome(() => disk.pwrite(sector * SECTOR, new Uint8Array(SECTOR)))
const reading = (disk: BlockBackend, sector: number) =>
  outcome(() => disk.pread(sector * SECTOR, new Uint8Array(SECTOR)))

describe('blkdebug', () => {
  it('blkdebug / none / one sector fails once for one kind of request', async () => {
    const disk = await open({
      'inject-error': [{ event: 'none', iotype: 'write', sector: 8, errno: 28, once: true }],
    })
    expect(await reading(disk, 8)).toBe('ok')
    expect(await writing(disk, 7)).toBe('ok')
    expect(await writing(disk, 8)).toBe('ENOSPC')
    expect(await writing(disk, 8)).toBe('ok')
  })

  it('blkdebug / event / a rule is armed by its event and stays', async () => {
    const disk = await open({ 'inject-error': [{ event: 'write_aio', iotype: 'write' }] })
    expect(await reading(disk, 0)).toBe('ok')
    expect(await writing(disk, 0)).toBe('EIO')
    expect(await writing(disk, 1)).toBe('EIO')
  })

  it('blkdebug / state / a write lets the next read fail once', async () => {
    const disk = await open({
      'inject-error': [{ event: 'read_aio', state: 2, once: true, immediately: true }],
      'set-state': [{ event: 'write_aio', state: 1, new_state: 2 }],
    })
    expect(await reading(disk, 0)).toBe('ok')
    expect(await writing(disk, 0)).toBe('ok')
    expect(await reading(disk, 0)).toBe('EIO')
    expect(await reading(disk, 0)).toBe('ok')
  })

  it('blkdebug / flush / can fail', async () => {
    const disk = await open({ 'inject-error': [{ event: 'none', iotype: 'flush', once: true }] })
    await disk.pwrite(0, new Uint8Array(SECTOR))
    expect(await outcome(() => disk.flush())).toBe('EIO')
    await disk.pwrite(0, new Uint8Array(SECTOR))
    expect(await outcome(() => disk.flush())).toBe('ok')
  })

  it('blkdebug / limits / an alignment that is no power of two is refused', async () => {
    await expect(open({ align: 1000 })).rejects.toThrow('Cannot meet constraints with align 1000')
    await bench.close()
    await expect(open({ config: '/nonexistent' })).rejects.toThrow(
      'Could not read blkdebug config file: No such file or directory',
    )
  })
})
