/** Checkpoints that break off, before and after the first buffer was dropped, on one disk and on two. */
import { describe, expect, it } from 'vitest'
import type { BlockBackend } from '../../../src/block/backend.ts'
import { ioError } from '../../../src/util/errors.ts'
import { fill, patternOf } from '../../support/graph.ts'
import { type DiskKind, ProofStage } from '../../support/replication-proof.ts'

const K64 = 65536
const SIZE = 16 * K64

interface Disk {
  readonly exported: BlockBackend
  readonly guest: BlockBackend
}

/** Two disks with data on both sides of each, replicating. */
async function twoDisks(stage: ProofStage): Promise<readonly [Disk, Disk]> {
  const one = await stage.secondary({ prefix: 'a-' })
  const two = await stage.secondary({ prefix: 'b-' })
  await stage.registry.startAll('secondary')
  for (const disk of [one, two]) {
    await fill(disk.exported, 0x22, 0, 4 * K64)
    await fill(disk.guest, 0x33, 2 * K64, 4 * K64)
  }
  return [one, two]
}

/** The next attempts to empty a disk fail before anything is dropped; the answer heals it. */
function breakEmptying(stage: ProofStage, name: string): () => void {
  const driver = stage.graph.lookup(`${name}-disk`).needDriver()
  const right = driver.makeEmpty
  driver.makeEmpty = () => {
    throw ioError('EIO', { node: name })
  }
  return () => {
    Object.assign(driver, { makeEmpty: right })
  }
}

async function expectView(disk: BlockBackend, ...bytes: readonly number[]): Promise<void> {
  const seen: (number | undefined)[] = []
  for (let at = 0; at < bytes.length; at++) seen.push(await patternOf(disk, at * 2 * K64, 2 * K64))
  expect(seen).toEqual(bytes)
}

const refused = (disk: BlockBackend): void => {
  expect(() => disk.pread(0, new Uint8Array(512))).toThrow('Input/output error')
  expect(() => disk.pwrite(0, new Uint8Array(512))).toThrow('Input/output error')
}

const stages = (stage: ProofStage): string[] => ['a-top', 'b-top'].map((n) => stage.status(n).stage)

const kinds: readonly DiskKind[] = ['memory', 'qcow2']

describe.each(kinds)('replication / interrupted / %s', (kind) => {
  const open = (): ProofStage => new ProofStage({ kind, size: SIZE })

  // The newest node is asked first: b before a.
  it('nothing was dropped yet: both disks stay where they were, with an error on record', async () => {
    await using stage = open()
    const [one, two] = await twoDisks(stage)
    const heal = breakEmptying(stage, 'b-active')
    await expect(stage.registry.checkpointAll()).rejects.toMatchObject({
      code: 'EIO',
      message: 'Failed to empty b-active: Input/output error',
      context: { node: 'b-active', op: 'checkpoint' },
    })
    expect(stages(stage)).toEqual(['running', 'running'])
    expect(stage.status('b-top')).toMatchObject({
      error: 'I/O error occurred',
      cause: 'Failed to empty b-active: Input/output error',
    })
    for (const disk of [one, two]) {
      await expectView(disk.guest, 0x11, 0x33, 0x33, 0x11)
      await fill(disk.exported, 0x23, 6 * K64, K64)
      await fill(disk.guest, 0x34, 7 * K64, K64)
      expect(await patternOf(disk.guest, 6 * K64, K64)).toBe(0x11)
    }
    heal()
    await stage.registry.checkpointAll()
    stage.registry.getErrorAll()
    for (const disk of [one, two]) await expectView(disk.guest, 0x22, 0x22, 0x11)
    expect(stage.restless()).toEqual([])
  })

  it.each(['b-hidden', 'a-active', 'a-hidden'])(
    'after the first drop, broken at %s: nobody is served, and a checkpoint completes it',
    async (broken) => {
      await using stage = open()
      const [one, two] = await twoDisks(stage)
      const heal = breakEmptying(stage, broken)
      for (let n = 0; n < 2; n++) {
        await expect(stage.registry.checkpointAll()).rejects.toThrow(
          `Failed to empty ${broken}: Input/output error; no disk is served until`,
        )
        expect(stages(stage)).toEqual(['interrupted', 'interrupted'])
        expect(() => stage.registry.getErrorAll()).toThrow('I/O error occurred')
        for (const disk of [one, two]) {
          refused(disk.guest)
          expect(() => disk.exported.pwrite(0, new Uint8Array(512))).toThrow('broke off')
        }
      }
      await expect(stage.registry.startAll('secondary')).rejects.toThrow('running or done')
      heal()
      await stage.registry.checkpointAll()
      stage.registry.getErrorAll()
      expect(stage.status('a-top')).toMatchObject({ stage: 'running', epoch: 1 })
      for (const disk of [one, two]) {
        await expectView(disk.guest, 0x22, 0x22, 0x11)
        await fill(disk.exported, 0x23, 0, K64)
        expect(await patternOf(disk.guest, 0, K64)).toBe(0x22)
      }
      expect(stage.restless()).toEqual([])
    },
  )

  it.each([true, false])(
    'a failover completes it, also when a buffer stays broken (%s)',
    async (stays) => {
      await using stage = open()
      const [one, two] = await twoDisks(stage)
      const stale: unknown[] = []
      stage.graph.events.on('REPLICATION_BUFFER_STALE', (data) => stale.push(data['node-name']))
      const heal = breakEmptying(stage, 'a-hidden')
      await expect(stage.registry.checkpointAll()).rejects.toThrow('no disk is served')
      if (!stays) heal()
      await stage.registry.stopAll(true)
      await stage.registry.settled()
      stage.registry.getErrorAll()
      expect(stages(stage)).toEqual(['done', 'done'])
      expect(stale).toEqual(stays ? ['a-hidden'] : [])
      for (const disk of [one, two]) {
        for (const user of [disk.guest, disk.exported]) await expectView(user, 0x22, 0x22, 0x11)
        expect(() => disk.exported.pwrite(0, new Uint8Array(512))).toThrow('taken over')
        await fill(disk.guest, 0x44, 0, K64)
        expect(await patternOf(disk.exported, 0, K64)).toBe(0x44)
      }
      expect(stage.restless()).toEqual([])
    },
  )

  it('a stop completes it, also when a buffer stays broken', async () => {
    await using stage = open()
    const [one, two] = await twoDisks(stage)
    breakEmptying(stage, 'b-hidden')
    await expect(stage.registry.checkpointAll()).rejects.toThrow('no disk is served')
    await stage.registry.stopAll(false)
    stage.registry.getErrorAll()
    expect(stages(stage)).toEqual(['done', 'done'])
    for (const disk of [one, two]) {
      await expectView(disk.guest, 0x22, 0x22, 0x11)
      await fill(disk.exported, 0x55, 0, K64)
      expect(await patternOf(disk.guest, 0, K64)).toBe(0x55)
    }
    expect(stage.restless()).toEqual([])
  })

  it('a stop from running drops both buffers at once or takes them out, never half', async () => {
    await using stage = open()
    const [one, two] = await twoDisks(stage)
    breakEmptying(stage, 'a-hidden')
    await stage.registry.stopAll(false)
    for (const disk of [one, two]) await expectView(disk.guest, 0x22, 0x22, 0x11)
    stage.registry.getErrorAll()
    expect(stage.restless()).toEqual([])
  })

  it('a close ends it', async () => {
    await using stage = open()
    await twoDisks(stage)
    breakEmptying(stage, 'a-hidden')
    await expect(stage.registry.checkpointAll()).rejects.toThrow('no disk is served')
    await stage.registry.shutdownAll()
    expect(stages(stage)).toEqual(['done', 'done'])
    expect(stage.restless()).toEqual([])
  })
})

it('replication / interrupted / what a checkpoint failed of stays in the status until one succeeds', async () => {
  await using stage = new ProofStage({ size: SIZE })
  await stage.secondary()
  await stage.registry.startAll('secondary')
  const node = stage.graph.lookup('hidden-disk')
  const driver = node.needDriver()
  node.driver = undefined
  await expect(stage.registry.checkpointAll()).rejects.toMatchObject({ code: 'ENOMEDIUM' })
  node.driver = driver
  const failed = { stage: 'running', epoch: 0, cause: 'Hidden disk hidden is ejected' }
  expect(stage.status()).toMatchObject(failed)
  await stage.registry.checkpointAll()
  expect(stage.status()).toMatchObject({ stage: 'running', epoch: 1 })
  expect(stage.status().error).toBeUndefined()
})

it('replication / interrupted / stages are announced, each once', async () => {
  await using stage = new ProofStage({ size: SIZE })
  const seen: string[] = []
  stage.graph.events.on('REPLICATION_STATE_CHANGE', (data) => {
    seen.push(`${String(data['node-name'])} ${String(data.stage)}`)
  })
  await stage.secondary()
  await stage.registry.startAll('secondary')
  const heal = breakEmptying(stage, 'hidden')
  await expect(stage.registry.checkpointAll()).rejects.toThrow('no disk is served')
  heal()
  await stage.registry.checkpointAll()
  await stage.registry.stopAll(true)
  await stage.registry.settled()
  const stages = ['running', 'interrupted', 'running', 'failover', 'done']
  expect(seen).toEqual(stages.map((each) => `top ${each}`))
})
