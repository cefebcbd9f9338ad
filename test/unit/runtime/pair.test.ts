/** The library's short way to a replicated pair. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test, vi } from 'vitest'
import {
  createPrimary,
  createQcow2,
  createSecondary,
  type FailoverEnd,
  type ForwardError,
  type Primary,
  type Secondary,
  type ServerAddress,
} from '../../../src/index.ts'
import { fill, patternOf } from '../../support/graph.ts'

const MiB = 1024 * 1024
const folder = mkdtempSync(join(tmpdir(), 'pair-'))
let sockets = 0

afterAll(() => rmSync(folder, { recursive: true, force: true }))

const socket = (): ServerAddress => ({ type: 'unix', path: join(folder, `s${sockets++}`) })

async function pair(): Promise<{ primary: Primary; secondary: Secondary } & AsyncDisposable> {
  const disk = { memory: 8 * MiB }
  const secondary = await createSecondary({ disk, exportAt: socket() })
  const primary = await createPrimary({ disk, secondary: secondary.address })
  return {
    primary,
    secondary,
    async [Symbol.asyncDispose]() {
      await primary.close()
      await secondary.close()
    },
  }
}

test('pair / a checkpoint moves the view of the secondary, and only a checkpoint', async () => {
  await using both = await pair()
  const { primary, secondary } = both
  await fill(primary.backend, 0x22, 0, MiB)
  await fill(secondary.backend, 0x33, 2 * MiB, MiB)
  expect(await patternOf(secondary.backend, 0, MiB)).toBe(0)
  await primary.checkpoint()
  await secondary.checkpoint()
  expect(await patternOf(secondary.backend, 0, MiB)).toBe(0x22)
  expect(await patternOf(secondary.backend, 2 * MiB, MiB)).toBe(0)
  expect(secondary.status()).toMatchObject({ mode: 'secondary', stage: 'running', epoch: 1 })
  expect(primary.status()).toMatchObject({ mode: 'primary', stage: 'running', forwardFailures: 0 })
})

test('pair / failover keeps the checkpoint and our own writes, and shuts the primary out', async () => {
  await using both = await pair()
  const { primary, secondary } = both
  const ends: FailoverEnd[] = []
  const errors: ForwardError[] = []
  secondary.on('failover-end', (end) => ends.push(end))
  primary.on('forward-error', (error) => errors.push(error))
  await fill(primary.backend, 0x22, 0, MiB)
  await fill(secondary.backend, 0x33, 2 * MiB, MiB)
  const result = await secondary.failover()
  expect(result.restoredBytes).toBe(MiB)
  expect(result.totalMs).toBeGreaterThanOrEqual(result.takeoverMs)
  await fill(primary.backend, 0x44, 0, 4096)
  expect(await patternOf(secondary.backend, 0, MiB)).toBe(0)
  expect(await patternOf(secondary.backend, 2 * MiB, MiB)).toBe(0x33)
  expect(ends).toEqual([{ success: true }])
  expect(errors).toMatchObject([{ offset: 0, length: 4096 }])
  await expect(primary.checkpoint()).rejects.toMatchObject({ code: 'EIO' })
  await expect(secondary.failover()).rejects.toMatchObject({ code: 'EINVAL' })
})

test('pair / stop leaves the secondary with what the primary wrote', async () => {
  await using both = await pair()
  const { primary, secondary } = both
  await fill(primary.backend, 0x22, 0, MiB)
  await fill(secondary.backend, 0x33, 0, MiB)
  await secondary.stop()
  await primary.stop()
  await fill(primary.backend, 0x44, 0, MiB)
  expect(await patternOf(secondary.backend, 0, MiB)).toBe(0x22)
  expect(await patternOf(primary.backend, 0, MiB)).toBe(0x44)
  expect([primary.status().stage, secondary.status().stage]).toEqual(['done', 'done'])
})

test('pair / what did not arrive holds checkpoints back until it is sent again', async () => {
  const fault = { event: 'none', iotype: 'write', errno: 28, once: true }
  const image = { driver: 'memory', size: MiB }
  const disk = { driver: 'blkdebug', image, 'inject-error': [fault] }
  await using secondary = await createSecondary({ disk, exportAt: socket() })
  await using primary = await createPrimary({
    disk: { memory: MiB },
    secondary: secondary.address,
  })
  await fill(primary.backend, 0x22, 0, 4096)
  expect(primary.status()).toMatchObject({ forwardFailures: 1 })
  await expect(primary.checkpoint()).rejects.toMatchObject({ code: 'EIO' })
  await primary.resync()
  await primary.checkpoint()
  await secondary.checkpoint()
  expect(await patternOf(secondary.backend, 0, 4096)).toBe(0x22)
})

test('pair / disks may be files and buffers images', async () => {
  const raw = (name: string): string => {
    const path = join(folder, name)
    writeFileSync(path, new Uint8Array(4 * MiB).fill(0x11))
    return path
  }
  const image = async (name: string): Promise<{ file: string; format: 'qcow2' }> => {
    const file = join(folder, name)
    await createQcow2(file, { size: 4 * MiB })
    return { file, format: 'qcow2' }
  }
  await using secondary = await createSecondary({
    disk: { file: raw('b.raw') },
    active: await image('active.qcow2'),
    hidden: await image('hidden.qcow2'),
    exportAt: { type: 'inet', host: '127.0.0.1', port: 0 },
  })
  await using primary = await createPrimary({
    disk: { file: raw('a.raw') },
    secondary: secondary.address,
  })
  await fill(primary.backend, 0x22, 0, MiB)
  expect(await patternOf(secondary.backend, 0, MiB)).toBe(0x11)
  await secondary.failover()
  expect(await patternOf(secondary.backend, 0, 4 * MiB)).toBe(0x11)
})

test('pair / what cannot be made leaves nothing open', async () => {
  const disk = { memory: MiB }
  const nowhere = createPrimary({ disk, secondary: socket() })
  await expect(nowhere).rejects.toMatchObject({ code: 'ENOENT' })
  const at = socket()
  const unequal = createSecondary({ disk, active: { memory: 2 * MiB }, exportAt: at })
  await expect(unequal).rejects.toMatchObject({ code: 'EINVAL' })
  expect(existsSync(at.type === 'unix' ? at.path : '')).toBe(false)
  const missing = createSecondary({ disk: { file: join(folder, 'none') }, exportAt: at })
  await expect(missing).rejects.toMatchObject({ code: 'ENOENT' })
})

test('pair / after the end every call says so', async () => {
  const { primary, secondary } = await pair()
  await primary.close()
  await secondary.close()
  expect(() => primary.status()).toThrow('closed')
  expect(() => secondary.address).toThrow('closed')
  await expect(secondary.failover()).rejects.toMatchObject({ code: 'ESHUTDOWN' })
})

test('pair / the example prints what it says', async () => {
  const log = vi.spyOn(console, 'log').mockImplementation(() => undefined)
  try {
    await import('../../../examples/pair.ts')
    expect(log.mock.calls).toEqual([['from the primary, 65536 bytes put back']])
  } finally {
    log.mockRestore()
  }
})
