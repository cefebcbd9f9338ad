/** The reopen scenarios, by their number, with the commands that a monitor sends. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { MiB, Scenario } from './scenario-rig.ts'

let s: Scenario

beforeEach(() => {
  s = new Scenario()
})

afterEach(() => s.close())

/** Three images of 3 MiB, each with its own value in one MiB, not linked. */
async function three(): Promise<JsonObject[]> {
  const all: JsonObject[] = []
  for (const i of [0, 1, 2]) {
    const options = { ...(await s.qcow2(`hd${i}`, 3 * MiB)), backing: null }
    await s.add(options)
    await s.write(`hd${i}`, 0xa0 + i, i * MiB, MiB)
    await s.drop(`hd${i}`)
    all.push(options)
  }
  return all
}

/** The same as one inline chain hd0 > hd1 > hd2, opened anew. */
async function chain(): Promise<JsonObject> {
  const [hd0, hd1, hd2] = await three()
  for (const name of ['hd0', 'hd1', 'hd2']) await s.run('blockdev-del', { 'node-name': name })
  const tree = { ...hd0, backing: { ...hd1, backing: { ...hd2 } } }
  await s.add(tree)
  return tree
}

describe('scenario / reopen / options', () => {
  it('scenario / reopen / O01 the same options, and the file by its name, change nothing', async () => {
    const hd0 = await s.qcow2('hd0', MiB)
    await s.add(hd0)
    const before = await s.nodes()
    await s.reopen(hd0)
    await s.reopen({ ...hd0, file: 'hd0-file' })
    expect(await s.nodes()).toEqual(before)
  })

  it('scenario / reopen / O02 what may not change is refused and leaves the graph as it is', async () => {
    const hd0 = await s.qcow2('hd0', MiB)
    await s.add(hd0)
    const before = await s.nodes()
    const file = s.file('hd0', 'hd0-file')
    const bad: JsonObject[] = [
      { ...hd0, driver: 'raw' },
      { ...hd0, file: { ...file, 'node-name': 'other' } },
      { ...hd0, file: { ...file, driver: 'null-co' } },
      { ...hd0, file: { ...file, filename: s.path('x') } },
      { ...hd0, file: { ...file, aio: 'threads' } },
      { ...hd0, file: { ...file, locking: 'off' } },
      { ...hd0, 'node-name': 'not-there' },
      { driver: 'qcow2', file: 'hd0-file' },
    ]
    for (const options of bad)
      expect(await s.reopenRefused(options), JSON.stringify(options)).not.toBe('accepted')
    expect(await s.nodes()).toEqual(before)
  })

  it('scenario / reopen / O03 a file child that is not there, empty or null is refused', async () => {
    const hd0 = await s.qcow2('hd0', MiB)
    await s.add(hd0)
    for (const file of ['not-found', '', null])
      expect(await s.reopenRefused({ ...hd0, file })).not.toBe('accepted')
    expect(await s.reopenRefused({ ...hd0, file: 'not-found' })).toContain("node-name='not-found'")
  })

  it('scenario / reopen / O06 read-only goes on and off', async () => {
    const hd0 = await s.qcow2('hd0', MiB)
    await s.add(hd0)
    for (const readOnly of [true, false]) {
      await s.reopen({ ...hd0, 'read-only': readOnly })
      expect((await s.node('hd0')).ro).toBe(readOnly)
    }
  })

  it('scenario / reopen / O07 cache flags show and go back to their default', async () => {
    const hd0 = await s.qcow2('hd0', MiB)
    await s.add(hd0)
    await s.reopen({ ...hd0, cache: { 'no-flush': true } })
    expect((await s.node('hd0')).cache).toMatchObject({ 'no-flush': true })
    await s.reopen(hd0)
    expect((await s.node('hd0')).cache).toMatchObject({ 'no-flush': false })
  })

  it('scenario / reopen / O09 qcow2 cache sizes are checked against each other', async () => {
    const hd0 = await s.qcow2('hd0', MiB)
    await s.add(hd0)
    expect(await s.reopenRefused({ ...hd0, 'l2-cache-entry-size': 131072 })).toContain(
      'L2 cache entry size',
    )
    const sizes = { 'l2-cache-size': 2 * MiB, 'cache-size': MiB }
    expect(await s.reopenRefused({ ...hd0, ...sizes })).toContain('l2-cache-size')
    await s.reopen({ ...hd0, 'l2-cache-size': 4 * MiB, 'l2-cache-entry-size': 32768 })
  })

  it('scenario / reopen / O10 a changeable option goes back to its default, a fixed one cannot', async () => {
    s.raw('f', 0)
    const file = { ...s.file('f', 'f'), locking: 'off' }
    await s.add({ ...file, 'detect-zeroes': 'on' })
    await s.reopen(file)
    expect((await s.node('f')).detect_zeroes).toBe('off')
    expect(await s.reopenRefused(s.file('f', 'f'))).toBe(
      "Option 'locking' cannot be reset to its default value",
    )
  })

  it('scenario / reopen / O16 drivers without reopen say so', async () => {
    for (const name of ['a', 'b']) await s.add({ driver: 'null-co', 'node-name': name, size: MiB })
    await s.add({ driver: 'blkverify', 'node-name': 'v', test: 'a', raw: 'b' })
    await s.add({ driver: 'quorum', 'node-name': 'q', children: ['a', 'b'], 'vote-threshold': 1 })
    for (const [driver, node, rest] of [
      ['blkverify', 'v', { test: 'a', raw: 'b' }],
      ['quorum', 'q', { children: ['a', 'b'], 'vote-threshold': 1 }],
    ] as const)
      expect(await s.reopenRefused({ driver, 'node-name': node, ...rest })).toContain(
        `Block format '${driver}' used by node '${node}' does not support reopening files`,
      )
  })

  it('scenario / reopen / O17 the size of a null disk is fixed', async () => {
    const n = { driver: 'null-co', 'node-name': 'n', size: 1024 }
    await s.add(n)
    expect(await s.reopenRefused({ ...n, size: 2048 })).not.toBe('accepted')
    expect(await s.reopenRefused({ driver: 'null-co', 'node-name': 'n' })).not.toBe('accepted')
    await s.reopen(n)
  })

  it('scenario / reopen / O19 a raw window moves and moves back', async () => {
    s.raw('f', 0xa0, 0xa1)
    const raw = { driver: 'raw', 'node-name': 'r', 'read-only': true, file: s.file('f', 'f') }
    await s.add(raw)
    await s.reopen({ ...raw, offset: MiB })
    expect(await s.shows('r')).toEqual([0xa1])
    await s.reopen(raw)
    expect(await s.shows('r')).toEqual([0xa0, 0xa1])
  })

  it.each([
    [false, false, false],
    [false, true, false],
    [true, false, true],
    [true, true, true],
  ])(
    'scenario / reopen / O25 read-only %s, auto-read-only %s over a writable image gives ro %s',
    async (readOnly, auto, ro) => {
      s.raw('f', 0)
      const options = { ...s.file('f', 'f'), 'read-only': readOnly, 'auto-read-only': auto }
      await s.add(options)
      expect((await s.node('f')).ro).toBe(ro)
    },
  )

  it('scenario / reopen / O27 a stored bitmap refuses changes while read-only and follows writes after', async () => {
    const hd0 = await s.qcow2('hd0', MiB)
    await s.add(hd0)
    const bitmap = { node: 'hd0', name: 'b' }
    await s.run('block-dirty-bitmap-add', { ...bitmap, persistent: true })
    await s.write('hd0', 1, 0, 65536)
    await s.drop('hd0')
    await s.reopen({ ...hd0, 'read-only': true })
    const digest = (): Promise<unknown> => s.run('x-debug-block-dirty-bitmap-sha256', bitmap)
    const before = await digest()
    expect(await s.refused('block-dirty-bitmap-clear', bitmap)).toContain('readonly')
    await expect(s.write('hd0', 2, 65536, 65536)).rejects.toThrow()
    await s.drop('hd0')
    expect(await digest()).toEqual(before)
    await s.reopen(hd0)
    expect(await digest()).toEqual(before)
    await s.write('hd0', 2, 65536, 65536)
    expect(await digest()).not.toEqual(before)
  })
})

describe('scenario / reopen / graph', () => {
  it('scenario / reopen / O04 a backing image has to be named, each time', async () => {
    const tree = await chain()
    const { backing: _backing, ...without } = tree
    expect(await s.reopenRefused(without)).toBe("backing is missing for 'hd0'")
    expect(await s.reopenRefused({ ...tree, backing: 'nope' })).toContain("node-name='nope'")
    await s.reopen({ ...tree, backing: null })
    expect(s.names()).not.toContain('hd1')
  })

  it('scenario / reopen / O11 users see at once what the links lead to', async () => {
    const options = await three()
    const link = (i: number, backing: string | null): Promise<unknown> =>
      s.reopen({ ...options[i], backing })
    expect(await s.shows('hd0')).toEqual([0xa0, 0, 0])
    await link(0, 'hd1')
    expect(await s.shows('hd0')).toEqual([0xa0, 0xa1, 0])
    await link(2, 'hd1')
    expect(await s.shows('hd2')).toEqual([0, 0xa1, 0xa2])
    await link(0, 'hd2')
    expect(await s.shows('hd0')).toEqual([0xa0, 0xa1, 0xa2])
    await link(2, null)
    expect(await s.shows('hd0')).toEqual([0xa0, 0, 0xa2])
    await link(1, 'hd2')
    await link(0, 'hd1')
    expect(await s.shows('hd0')).toEqual([0xa0, 0xa1, 0xa2])
  })

  it('scenario / reopen / O12 no link may close a circle', async () => {
    const options = await three()
    await s.reopen({ ...options[1], backing: 'hd2' })
    await s.reopen({ ...options[0], backing: 'hd1' })
    await s.add({ driver: 'quorum', 'node-name': 'q', children: ['hd0'], 'vote-threshold': 1 })
    // What lies in caches is written before a reopen, refused or not.
    const shown = async () =>
      JSON.stringify(await s.nodes(), (key, value) => (key === 'actual-size' ? 0 : value))
    const before = await shown()
    for (const [i, backing] of [
      [2, 'hd1'],
      [1, 'hd1'],
      [2, 'q'],
    ] as const)
      expect(await s.reopenRefused({ ...options[i], backing })).toContain('would create a cycle')
    expect(await shown()).toEqual(before)
  })

  it('scenario / reopen / O14 another node over the same file takes the place of the file child', async () => {
    const fmt = await s.qcow2('fmt', MiB)
    await s.add(fmt)
    await s.add({ driver: 'raw', 'node-name': 'raw', file: 'fmt-file' })
    await s.write('fmt', 41, 0, MiB)
    await s.reopen({ ...fmt, file: 'raw' })
    expect(await s.shows('fmt')).toEqual([41])
    await s.write('fmt', 42, 0, MiB)
    await s.drop('fmt')
    await s.run('blockdev-del', { 'node-name': 'fmt' })
    await s.add({ ...fmt, 'node-name': 'again', file: 'raw' })
    expect(await s.shows('again')).toEqual([42])
  })

  it('scenario / reopen / O21 a stream holds the links it walks and leaves those below', async () => {
    const tree = await chain()
    const without2 = { ...tree, backing: { ...(tree.backing as JsonObject), backing: null } }
    const job = { 'job-id': 'j', device: 'hd0', 'base-node': 'hd2', 'auto-finalize': false }
    await s.run('block-stream', job)
    await s.status('j', 'pending')
    expect(await s.reopenRefused({ ...tree, backing: null })).toContain('frozen')
    await s.reopen(without2)
    await s.run('job-finalize', { id: 'j' })
    await s.jobsEnd()
    expect(s.names()).not.toContain('hd1')
  })

  it('scenario / reopen / O23 during an active commit no link can be cut, and it completes', async () => {
    const tree = await chain()
    const without2 = { ...tree, backing: { ...(tree.backing as JsonObject), backing: null } }
    await s.user('hd0')
    await s.run('block-commit', { 'job-id': 'j', device: 'hd0' })
    expect(await s.reopenRefused(without2)).toContain('frozen')
    expect(await s.reopenRefused({ ...tree, backing: null })).toContain('frozen')
    await s.status('j', 'ready')
    await s.run('job-complete', { id: 'j' })
    await s.jobsEnd()
    expect(await s.shows('hd0')).toEqual([0xa0, 0xa1, 0xa2])
    expect((await s.user('hd0')).node.name).toBe('hd2')
  })
})
