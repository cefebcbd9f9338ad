/**
 * The small set of cases that any implementation of this replication must get right, on memory and
 * on qcow2 disks. 0x11 is the old content, 0x22 what the primary wrote, 0x33 what the guest wrote.
 */
import { spawnSync } from 'node:child_process'
import { describe, expect, it } from 'vitest'
import type { BlockBackend } from '../../src/block/backend.ts'
import type { Coroutine } from '../../src/coroutine/coroutine.ts'
import { Random } from '../../src/util/random.ts'
import { fill, guest, patternOf } from '../support/graph.ts'
import { type DiskKind, ProofStage } from '../support/replication-proof.ts'
import { turn } from '../support/tap.ts'

const MiB = 1024 * 1024
const K64 = 65536
const SIZE = 8 * MiB
const SEED = Number(process.env.SEED ?? Math.floor(Math.random() * 0x1_0000_0000))

const kinds: readonly DiskKind[] = ['memory', 'qcow2']

async function merged(stage: ProofStage): Promise<void> {
  await stage.registry.stopAll(true)
  await stage.registry.settled()
}

describe.each(kinds)('replication / vectors / %s', (kind) => {
  const open = (): ProofStage => new ProofStage({ kind, size: SIZE })

  it('1 / a checkpoint shows what the primary wrote and drops what the guest wrote', async () => {
    await using stage = open()
    const { exported, guest: top } = await stage.secondary()
    await stage.registry.startAll('secondary')
    await fill(exported, 0x22, 0, MiB)
    expect(await patternOf(top, 0, MiB)).toBe(0x11)
    await fill(top, 0x33, 2 * MiB, K64)
    expect(await patternOf(top, 2 * MiB, K64)).toBe(0x33)
    await stage.registry.checkpointAll()
    expect(await patternOf(top, 0, MiB)).toBe(0x22)
    expect(await patternOf(top, MiB, SIZE - MiB)).toBe(0x11)
    expect(stage.restless()).toEqual([])
  })

  it('2 / a failover keeps the last checkpoint and the guest, on both sides', async () => {
    await using stage = open()
    const { exported, guest: top } = await stage.secondary()
    await stage.registry.startAll('secondary')
    await fill(exported, 0x22, 0, MiB)
    await fill(top, 0x33, 2 * MiB, K64)
    await merged(stage)
    expect(stage.status()).toMatchObject({ stage: 'done' })
    stage.registry.getErrorAll()
    for (const user of [top, exported]) {
      expect(await patternOf(user, 0, 2 * MiB)).toBe(0x11)
      expect(await patternOf(user, 2 * MiB, K64)).toBe(0x33)
      expect(await patternOf(user, 2 * MiB + K64, SIZE - 2 * MiB - K64)).toBe(0x11)
    }
    expect(stage.restless()).toEqual([])
  })

  it('3 / when old data cannot be saved the write of the primary fails and changes nothing', async () => {
    await using stage = open()
    const { exported, guest: top } = await stage.secondary()
    await stage.registry.startAll('secondary')
    stage.taps.of('hidden').fail('write', 'ENOSPC')
    await expect(fill(exported, 0x22, 0, K64)).rejects.toMatchObject({ code: 'ENOSPC' })
    expect(stage.status()).toMatchObject({ copyFailures: 1 })
    for (const user of [top, exported]) expect(await patternOf(user, 0, SIZE)).toBe(0x11)
    await fill(exported, 0x22, 0, K64)
    expect(await patternOf(exported, 0, K64)).toBe(0x22)
    expect(await patternOf(top, 0, SIZE)).toBe(0x11)
  })

  it('4 / a failed merge keeps the view, splits writes, refuses orders, and can be tried again', async () => {
    await using stage = open()
    const { exported, guest: top } = await stage.secondary()
    const { registry } = stage
    await registry.startAll('secondary')
    await fill(exported, 0x22, 0, K64)
    await fill(top, 0x33, 4 * K64, K64)
    stage.taps.of('local').fail('write', 'EIO')
    await merged(stage)
    expect(stage.taps.failed).toBe(1)
    expect(stage.status()).toMatchObject({ stage: 'failover-failed' })
    expect(() => registry.getErrorAll()).toThrow('I/O error occurred')
    expect(await patternOf(top, 0, 4 * K64)).toBe(0x11)
    expect(await patternOf(top, 4 * K64, K64)).toBe(0x33)
    const mixed = await patternOf(exported, 4 * K64, K64)
    await fill(top, 0x44, 10 * K64, K64)
    expect(await patternOf(exported, 10 * K64, K64)).toBe(0x44)
    await fill(top, 0x55, 4 * K64, K64)
    expect(await patternOf(exported, 4 * K64, K64)).toBe(mixed)
    expect(await patternOf(top, 4 * K64, K64)).toBe(0x55)
    for (const failover of [true, false])
      await expect(registry.stopAll(failover)).rejects.toThrow('Block replication is not running')
    await expect(registry.startAll('secondary')).rejects.toThrow(
      'Block replication is running or done',
    )
    await expect(registry.checkpointAll()).rejects.toThrow('Backup job was cancelled unexpectedly')
    await registry.retryFailover('top')
    await registry.settled()
    registry.getErrorAll()
    for (const user of [top, exported]) {
      expect(await patternOf(user, 0, 4 * K64)).toBe(0x11)
      expect(await patternOf(user, 4 * K64, K64)).toBe(0x55)
      expect(await patternOf(user, 10 * K64, K64)).toBe(0x44)
    }
    expect(stage.restless()).toEqual([])
  })

  it('5 / a primary hides a failed write, keeps the error until the stop, and never reads', async () => {
    await using stage = open()
    const { graph, registry } = stage
    const file = await stage.disk('far')
    await graph.add({ driver: 'replication', 'node-name': 'p', mode: 'primary', file })
    const user = await guest(graph, graph.lookup('p'))
    const refused = (): void => {
      expect(() => user.pread(0, new Uint8Array(512))).toThrow('Input/output error')
    }
    refused()
    expect(() => user.pwrite(0, new Uint8Array(512))).toThrow('Input/output error')
    await registry.startAll('primary')
    refused()
    stage.taps.of('far').fail('write', 'ENOSPC')
    await fill(user, 0x22, 0, K64)
    await fill(user, 0x22, K64, K64)
    expect(() => registry.getErrorAll()).toThrow('I/O error occurred')
    await expect(registry.checkpointAll()).rejects.toMatchObject({ code: 'EIO' })
    expect(() => registry.getErrorAll()).toThrow('I/O error occurred')
    await registry.stopAll(false)
    registry.getErrorAll()
    refused()
    expect(() => user.pwrite(0, new Uint8Array(512))).toThrow('Input/output error')
    expect(stage.restless()).toEqual([])
  })

  it('6 / a start with an unknown top says so each time, and works once there is one', async () => {
    await using stage = open()
    await stage.secondary({ topId: 'crown' })
    const { graph, registry } = stage
    for (let n = 0; n < 3; n++)
      await expect(registry.startAll('secondary')).rejects.toThrow('No top_bs or it is invalid')
    expect(stage.status()).toMatchObject({ stage: 'none' })
    await graph.add({ driver: 'tap', 'node-name': 'crown', file: 'top' })
    await registry.startAll('secondary')
    expect(await patternOf(await guest(graph, graph.lookup('crown')), 0, SIZE)).toBe(0x11)
    expect(stage.restless()).toEqual([])
  })

  it('7 / of two disks neither is checkpointed when one cannot, and the error names it', async () => {
    await using stage = open()
    const one = await stage.secondary({ prefix: 'a-' })
    const two = await stage.secondary({ prefix: 'b-' })
    await stage.registry.startAll('secondary')
    for (const disk of [one, two]) await fill(disk.exported, 0x22, 0, K64)
    const node = stage.graph.lookup('a-hidden-disk')
    const driver = node.needDriver()
    node.driver = undefined
    await expect(stage.registry.checkpointAll()).rejects.toThrow('Hidden disk a-hidden is ejected')
    node.driver = driver
    for (const name of ['a-top', 'b-top']) expect(stage.status(name)).toMatchObject({ epoch: 0 })
    for (const disk of [one, two]) expect(await patternOf(disk.guest, 0, SIZE)).toBe(0x11)
    await stage.registry.checkpointAll()
    for (const disk of [one, two]) expect(await patternOf(disk.guest, 0, K64)).toBe(0x22)
    expect(stage.restless()).toEqual([])
  })

  it('8 / checkpoints in a row under load on both sides leave equal views and clean images', async () => {
    await using stage = open()
    const { exported, guest: top } = await stage.secondary()
    await stage.registry.startAll('secondary')
    let stop = false
    let writes = 0
    function* seeds(): Generator<number> {
      for (const random = new Random(SEED); ; ) yield random.uint32()
    }
    const next = seeds()
    async function* load(user: BlockBackend, pattern: number): Coroutine<void> {
      const random = new Random(next.next().value ?? 0)
      for (; !stop; writes++) {
        const at = 512 * random.int(SIZE / 512 - 128)
        yield* user.coPwrite(at, new Uint8Array(512 * (1 + random.int(128))).fill(pattern))
        yield
      }
    }
    const { ctx } = stage.graph
    const users = [1, 2, 3].flatMap((n) => [
      ctx.spawn(() => load(exported, 0x20 + n)),
      ctx.spawn(() => load(top, 0x30 + n)),
    ])
    for (let n = 0; n < 60; n++) {
      for (const until = writes + 20; writes < until; ) await turn()
      await stage.registry.checkpointAll()
    }
    stop = true
    for (const user of users) await user.join()
    await stage.registry.checkpointAll()
    const [seen, written] = [new Uint8Array(SIZE), new Uint8Array(SIZE)]
    await top.pread(0, seen)
    await exported.pread(0, written)
    expect(Buffer.compare(seen, written), `SEED=${SEED}`).toBe(0)
    expect(
      seen.some((byte) => byte >= 0x30),
      `SEED=${SEED}`,
    ).toBe(false)
    expect(stage.status()).toMatchObject({ epoch: 61 })
    expect(stage.restless()).toEqual([])
    if (kind === 'qcow2') await checkImages(stage)
  })
})

/** Flushes everything and lets qemu-img look at the images. */
async function checkImages(stage: ProofStage): Promise<void> {
  await stage.graph.drainAllBegin()
  for (const node of stage.graph.nodes()) await node.driver?.flush?.(true)
  for (const name of ['local', 'hidden', 'active']) {
    const args = ['check', '-U', '-f', 'qcow2', stage.image(name)]
    const { error, status, stdout } = spawnSync('qemu-img', args, { encoding: 'utf8' })
    if (error !== undefined && process.env.CI !== 'true') {
      console.log('skipped: qemu-img is missing')
      break
    }
    expect(status, stdout).toBe(0)
  }
  stage.graph.drainAllEnd()
}
