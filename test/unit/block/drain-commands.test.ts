/** The drain scenarios that a monitor meets, by their number. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { MiB, Scenario } from './scenario-rig.ts'

let s: Scenario

beforeEach(() => {
  s = new Scenario()
})

afterEach(() => s.close())

const memory = (name: string, backing?: string): JsonObject => ({
  driver: 'memory',
  'node-name': name,
  size: MiB,
  ...(backing === undefined ? {} : { backing }),
})

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

/** Requests on a node, one after the other, until they are told to stop; answers how many. */
async function load(name: string, stop: { now: boolean }): Promise<number> {
  const user = await s.user(name)
  let done = 0
  for (; !stop.now; done++) {
    const offset = (done % 16) * 65536
    await user.pwrite(offset, new Uint8Array(4096).fill(done & 0xff))
    await user.pread(offset, new Uint8Array(4096))
    if (done % 8 === 0) await turn()
  }
  return done
}

/** Starts a mirror that takes much longer than any test. */
async function slowMirror(): Promise<void> {
  for (const name of ['src', 'dst']) await s.add({ ...memory(name), size: 16 * MiB })
  await s.write('src', 1, 0, 16 * MiB)
  const job = { 'job-id': 'j', device: 'src', target: 'dst', sync: 'full', speed: 65536 }
  await s.run('blockdev-mirror', job)
}

describe('scenario / drain / commands', () => {
  it('scenario / drain / D22 stop returns at once and leaves a slow job running', async () => {
    await slowMirror()
    await s.run('stop')
    const [job] = (await s.run('query-block-jobs')) as JsonObject[]
    expect(job).toMatchObject({ device: 'j', ready: false })
    await s.run('block-job-cancel', { device: 'j', force: true })
    await s.jobsEnd()
  })

  it('scenario / drain / D24 an overlay comes and goes under I/O', async () => {
    await s.add(memory('disk'))
    const stop = { now: false }
    const requests = load('disk', stop)
    for (let round = 0; round < 100; round++) {
      await s.add(memory('overlay', 'disk'))
      await s.run('blockdev-del', { 'node-name': 'overlay' })
    }
    stop.now = true
    expect(await requests).toBeGreaterThan(0)
    expect(s.rig.graph.lookup('disk').gate.quiesceCount).toBe(0)
  })

  it('scenario / drain / D25 commits of an overlay start and are cancelled under I/O, and its data stay', async () => {
    await s.add(memory('disk'))
    await s.user('disk')
    await s.add(memory('overlay'))
    await s.run('blockdev-snapshot', { node: 'disk', overlay: 'overlay' })
    const stop = { now: false }
    const user = await s.user('disk')
    expect(user.node.name).toBe('overlay')
    const requests = load('disk', stop)
    for (let round = 0; round < 5; round++) {
      await s.run('block-commit', { 'job-id': 'c', device: 'overlay' })
      await s.run('block-job-cancel', { device: 'c' })
      await s.jobsEnd()
    }
    stop.now = true
    const done = await requests
    expect(done).toBeGreaterThan(0)
    const last = (done - 1) & 0xff
    const buf = new Uint8Array(4096)
    await user.pread(((done - 1) % 16) * 65536, buf)
    expect(buf.every((byte) => byte === last)).toBe(true)
    expect(user.node.name).toBe('overlay')
  })

  it('scenario / drain / D27 the end comes while a job is being cancelled', async () => {
    await slowMirror()
    await s.run('block-job-cancel', { device: 'j' })
    await s.rig.jobs.cancelAll()
    expect(await s.run('query-jobs')).toEqual([])
  })

  it('scenario / drain / D29 two streams at once, looked at all the time, both end', async () => {
    for (const pair of ['a', 'b']) {
      await s.add(memory(`${pair}0`))
      await s.write(`${pair}0`, 3, 0, MiB)
      await s.drop(`${pair}0`)
      await s.add(memory(`${pair}1`, `${pair}0`))
    }
    for (const pair of ['a', 'b'])
      await s.run('block-stream', { 'job-id': pair, device: `${pair}1` })
    await s.jobsEnd()
    for (const pair of ['a', 'b']) {
      expect(s.rig.graph.lookup(`${pair}1`).child('backing')).toBeUndefined()
      expect(await s.shows(`${pair}1`)).toEqual([3])
    }
  })

  it('scenario / drain / D31 a commit and a stream above it end together', async () => {
    await s.add(memory('n0'))
    for (let n = 1; n <= 4; n++) await s.add(memory(`n${n}`, `n${n - 1}`))
    const commit = { 'job-id': 'c', device: 'n4', 'top-node': 'n1', 'base-node': 'n0' }
    const named = { 'filter-node-name': 'cf', 'auto-finalize': false }
    await s.run('block-commit', { ...commit, ...named })
    await s.run('block-stream', { 'job-id': 's', device: 'n3', 'base-node': 'cf' })
    await s.status('c', 'pending')
    await s.run('job-finalize', { id: 'c' })
    await s.jobsEnd()
    expect(s.rig.graph.lookup('n3').child('backing')?.node.name).toBe('n0')
    const ended = s.rig.calls.filter((call) => call.startsWith('BLOCK_JOB_COMPLETED'))
    expect(ended.some((call) => call.includes('"error"'))).toBe(false)
    expect(ended).toHaveLength(2)
  })
})
