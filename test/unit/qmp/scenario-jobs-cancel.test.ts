import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { Rig } from './rig.ts'

const KiB = 1024
const MiB = 1024 * KiB
const LENGTH = 4 * MiB
const MANUAL = { 'auto-finalize': false, 'auto-dismiss': false }
/** So slow that a second piece would take hours. */
const SLOW = { speed: 1 }

let rig: Rig
beforeEach(async () => {
  rig = new Rig()
  const disk = { driver: 'memory', size: LENGTH }
  await rig.run('blockdev-add', { ...disk, 'node-name': 'src' })
  await rig.run('blockdev-add', { ...disk, 'node-name': 'dst' })
  await using user = await writer('src')
  await user.pwrite(0, new Uint8Array(LENGTH).fill(7))
})
afterEach(() => rig.close())

function writer(name: string): Promise<BlockBackend> {
  const node = rig.graph.lookup(name, name)
  const perm = PERM.WRITE | PERM.CONSISTENT_READ
  return BlockBackend.create(rig.graph, node, { perm, shared: PERM.ALL })
}

const statuses = () =>
  rig.calls.flatMap((call) => /"id":"j","status":"(\w+)"/.exec(call)?.[1] ?? [])
const events = (name: string) => rig.calls.filter((call) => call.startsWith(name))

async function reached(status: string): Promise<void> {
  const [job] = rig.jobs.list()
  while (job?.status !== status) await rig.graph.ctx.breathe()
}

function start(command: string, more: JsonObject = {}): Promise<unknown> {
  const ends = { device: 'src', target: 'dst', sync: 'full' }
  return rig.run(command, { 'job-id': 'j', ...ends, ...MANUAL, ...more })
}

/** Brings a fully manual job to a state. */
const BRING: Record<string, () => Promise<void>> = {
  paused: async () => {
    await start('blockdev-backup', SLOW)
    await rig.run('job-pause', { id: 'j' })
    await reached('paused')
  },
  'paused, again after a resume': async () => {
    await start('blockdev-mirror', SLOW)
    for (const verb of ['pause', 'resume', 'pause']) {
      await rig.run(`job-${verb}`, { id: 'j' })
      await reached(verb === 'pause' ? 'paused' : 'running')
    }
  },
  'running after a pause': async () => {
    await start('blockdev-mirror', SLOW)
    await rig.run('job-pause', { id: 'j' })
    await reached('paused')
    await rig.run('job-resume', { id: 'j' })
  },
  ready: async () => {
    await start('blockdev-mirror')
    await reached('ready')
  },
  standby: async () => {
    await start('blockdev-mirror')
    await reached('ready')
    await rig.run('job-pause', { id: 'j' })
    await reached('standby')
  },
  pending: async () => {
    await start('blockdev-backup')
    await reached('pending')
  },
  'pending after ready': async () => {
    await start('blockdev-mirror')
    await reached('ready')
    await rig.run('job-complete', { id: 'j' })
    await reached('pending')
  },
}
const IDS: Record<string, string> = { paused: 'J05', ready: 'J06', standby: 'J07', pending: 'J08' }
const idOf = (state: string) => IDS[/^\w+/.exec(state)?.[0] ?? ''] ?? 'J04'

describe('scenario / jobs', () => {
  for (const [state, bring] of Object.entries(BRING)) {
    test(`${idOf(state)} a job that is ${state} is cancelled by force, concluded and dismissed`, async () => {
      await bring()
      await rig.run('block-job-cancel', { device: 'j', force: true })
      await reached('concluded')
      expect(statuses().slice(-2)).toEqual(['aborting', 'concluded'])
      expect(events('BLOCK_JOB_CANCELLED')).toHaveLength(1)
      expect(await rig.run('query-jobs')).toMatchObject([{ error: 'Operation canceled' }])
      await rig.run('job-dismiss', { id: 'j' })
      expect(await rig.run('query-jobs')).toEqual([])
      expect(await rig.refused('blockdev-del', { 'node-name': 'dst' })).toBe('accepted')
      await using user = await writer('src')
      await user.pwrite(0, new Uint8Array(64 * KiB).fill(8))
    })
  }

  test('J05 a soft cancel leaves a paused job alone', async () => {
    await BRING.paused?.()
    expect(await rig.refused('block-job-cancel', { device: 'j' })).toBe(
      "The block job for device 'j' is currently paused",
    )
    expect(rig.jobs.list()[0]?.status).toBe('paused')
  })

  test('J44 a soft cancel of a ready mirror completes it without a pivot', async () => {
    await using guest = await writer('src')
    await start('blockdev-mirror', { 'auto-finalize': true, 'auto-dismiss': true })
    await reached('ready')
    await guest.pwrite(MiB, new Uint8Array(64 * KiB).fill(0x55))
    await rig.run('block-job-cancel', { device: 'j' })
    while (rig.jobs.list().length > 0) await rig.graph.ctx.breathe()
    expect(events('BLOCK_JOB_CANCELLED')).toEqual([])
    expect(events('BLOCK_JOB_COMPLETED')[0]).not.toContain('"error"')
    expect(guest.root.node.name).toBe('src')
    await guest.pwrite(0, new Uint8Array(512).fill(9))
    await using copy = await writer('dst')
    const got = new Uint8Array(MiB + 64 * KiB)
    await copy.pread(0, got)
    expect([got[0], got[MiB - 1], got[MiB], got.at(-1)]).toEqual([7, 7, 0x55, 0x55])
  })

  test('J45 a forced cancel of a slow mirror keeps the guest on the source', async () => {
    await using guest = await writer('src')
    await start('blockdev-mirror', { ...SLOW, 'auto-finalize': true, 'auto-dismiss': true })
    await rig.run('block-job-cancel', { device: 'j', force: true })
    while (rig.jobs.list().length > 0) await rig.graph.ctx.breathe()
    expect(events('BLOCK_JOB_CANCELLED')[0]).toContain('"type":"mirror"')
    expect(events('BLOCK_JOB_COMPLETED')).toEqual([])
    expect(guest.root.node.name).toBe('src')
    await guest.pwrite(0, new Uint8Array(512).fill(9))
  })
})
