import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { BlockError } from '../../../src/util/errors.ts'
import { memory, Rig } from './rig.ts'

let primary: Rig
let secondary: Rig
let folder: string
let uri: string

beforeEach(() => {
  primary = new Rig()
  secondary = new Rig()
  folder = mkdtempSync(path.join(tmpdir(), 'colo-'))
  uri = `unix:${path.join(folder, 'control')}`
})

afterEach(async () => {
  await primary.close()
  await secondary.close()
  rmSync(folder, { recursive: true })
})

const capability = (name: string, state = true) => ({
  capabilities: [{ capability: name, state }],
})

async function enable(rig: Rig): Promise<void> {
  await rig.run('migrate-set-capabilities', capability('events'))
  await rig.run('migrate-set-capabilities', capability('x-colo'))
}

const migration = (rig: Rig, status: string): Promise<void> =>
  new Promise((resolve) => {
    const stop = rig.graph.events.on('MIGRATION', (data) => {
      if (data.status !== status) return
      stop()
      resolve()
    })
  })

/** A running pair; checkpoints come only when a test shortens the delay. */
async function pair(): Promise<void> {
  await enable(primary)
  await secondary.run('migrate-incoming', { uri })
  const started = migration(primary, 'colo')
  await primary.run('migrate', { uri })
  await started
}

describe('qmp / colo / session', () => {
  test('without one a lost heartbeat is refused and the status is none', async () => {
    expect(await primary.refused('x-colo-lost-heartbeat')).toBe("The feature 'colo' is not enabled")
    const none = { mode: 'none', 'last-mode': 'none', reason: 'none' }
    expect(await primary.run('query-colo-status')).toEqual(none)
    expect(await primary.run('query-migrate')).toEqual({})
  })

  test('a migration starts the secondary, then the primary', async () => {
    await secondary.run('migrate-incoming', { uri })
    expect(await secondary.run('query-status')).toMatchObject({ status: 'inmigrate' })
    await enable(primary)
    const started = migration(primary, 'colo')
    await primary.run('migrate', { uri })
    await started
    expect(secondary.calls).toContain('start secondary')
    expect(primary.calls).toContain('start primary')
    expect(await primary.run('query-colo-status')).toMatchObject({ mode: 'primary' })
    expect(await secondary.run('query-colo-status')).toMatchObject({ mode: 'secondary' })
    expect(await secondary.run('query-status')).toMatchObject({ status: 'running' })
    expect(await primary.refused('migrate', { uri })).toMatch(/in progress/)
  })

  test('checkpoints come from the primary at the delay that was set', async () => {
    await pair()
    const checkpoint = new Promise<void>((resolve) => {
      const push = secondary.calls.push.bind(secondary.calls)
      secondary.calls.push = (...texts) => {
        if (texts.includes('checkpoint')) resolve()
        return push(...texts)
      }
    })
    await primary.run('migrate-set-parameters', { 'x-checkpoint-delay': 1 })
    await checkpoint
    expect(await primary.run('query-migrate-parameters')).toMatchObject({
      'x-checkpoint-delay': 1,
    })
  })

  test('when the primary falls silent the secondary waits for the word to take over', async () => {
    await pair()
    const exit = secondary.graph.events.once('COLO_EXIT')
    primary.colo.close()
    expect(await exit).toEqual({ mode: 'secondary', reason: 'error' })
    expect(secondary.calls).not.toContain('stop true')
    await secondary.run('x-colo-lost-heartbeat')
    const order = secondary.calls.filter((c) => /^(STOP|RESUME|stop)/.test(c))
    expect(order).toEqual(['STOP {}', 'stop true', 'RESUME {}'])
    const after = { mode: 'none', 'last-mode': 'secondary', reason: 'request' }
    expect(await secondary.run('query-colo-status')).toEqual(after)
    expect(await secondary.refused('x-colo-lost-heartbeat')).toMatch(/not enabled/)
  })

  test('a primary that lost its secondary goes on alone', async () => {
    await pair()
    const exit = primary.graph.events.once('COLO_EXIT')
    await primary.run('x-colo-lost-heartbeat')
    expect(await exit).toEqual({ mode: 'primary', reason: 'request' })
    expect(primary.calls).toContain('stop false')
    expect(await primary.run('query-migrate')).toMatchObject({ status: 'completed' })
  })

  test('a checkpoint that fails ends the session on both sides', async () => {
    secondary.failing.checkpoint = new BlockError('EIO', 'no room')
    await pair()
    const both = [primary, secondary].map((rig) => rig.graph.events.once('COLO_EXIT'))
    await primary.run('migrate-set-parameters', { 'x-checkpoint-delay': 1 })
    const [lead, follow] = await Promise.all(both)
    expect(lead).toEqual({ mode: 'primary', reason: 'error' })
    expect(follow).toEqual({ mode: 'secondary', reason: 'error' })
    expect(await primary.run('query-migrate')).toEqual({
      status: 'failed',
      'error-desc': 'no room',
    })
  })
})

describe('qmp / colo / failed start', () => {
  test('a secondary that cannot start fails the migration and waits on', async () => {
    secondary.failing['start secondary'] = new BlockError('EINVAL', 'not today')
    await enable(primary)
    await secondary.run('migrate-incoming', { uri })
    const failed = migration(primary, 'failed')
    await primary.run('migrate', { uri })
    await failed
    expect(primary.calls).not.toContain('start primary')
    expect(await primary.run('query-migrate')).toMatchObject({ 'error-desc': 'not today' })
    expect(await secondary.run('query-status')).toMatchObject({ status: 'inmigrate' })
  })

  test('a primary that cannot start stops the secondary again', async () => {
    primary.failing['start primary'] = new BlockError('EINVAL', 'not here')
    await enable(primary)
    await secondary.run('migrate-incoming', { uri })
    const failed = migration(primary, 'failed')
    await primary.run('migrate', { uri })
    await failed
    expect(secondary.calls).toContain('stop false')
    expect(await secondary.run('query-colo-status')).toMatchObject({ mode: 'none' })
  })

  test('nobody there, no capability, no address: each has its words', async () => {
    expect(await primary.refused('migrate', { uri: 'tcp:nowhere' })).toMatch(
      /expects a valid migration protocol/,
    )
    expect(await primary.refused('migrate', { uri })).toMatch(/x-colo/)
    await enable(primary)
    const failed = migration(primary, 'failed')
    await primary.run('migrate', { uri })
    await failed
    expect(await primary.run('query-migrate')).toMatchObject({
      'error-desc': expect.stringMatching(/Failed to connect to '.*control'/),
    })
    await primary.run('migrate-incoming', { uri })
    expect(await primary.refused('migrate-incoming', { uri })).toMatch(/already been started/)
    expect(await primary.refused('migrate', { uri })).toMatch(/waiting for an incoming/)
  })

  test('a peer that speaks something else is cut off', async () => {
    await secondary.run('migrate-incoming', { uri })
    const socket = net.connect(uri.slice(5))
    const closed = new Promise((resolve) => socket.once('close', resolve))
    socket.write('GET / HTTP/1.1\n\n')
    await closed
    expect(await secondary.run('query-colo-status')).toMatchObject({ mode: 'none' })
  })
})

describe('qmp / colo / capabilities', () => {
  test('switches are kept and shown, unknown ones refused', async () => {
    await enable(primary)
    expect(await primary.run('query-migrate-capabilities')).toContainEqual({
      capability: 'x-colo',
      state: true,
    })
    expect(await primary.refused('migrate-set-capabilities', capability('bogus'))).toBe(
      "Parameter 'capability' does not accept value 'bogus'",
    )
  })
})

describe('qmp / replication / status', () => {
  test('nodes are shown with hyphenated members', async () => {
    primary.statuses = [
      {
        node: 'r',
        mode: 'secondary',
        stage: 'running',
        epoch: 3,
        checkpointAgeMs: 40,
        lastPauseMs: 0.5,
        copiedBytes: 65536,
        forwardFailures: 1,
        lastFailure: {
          node: 'r',
          offset: 512,
          bytes: 1024,
          code: 'EIO',
          message: 'Input/output error',
          atMs: 7,
        },
        missingBytes: 65536,
        copyFailures: 0,
      },
    ]
    expect(await primary.run('query-replication')).toEqual([
      {
        'node-name': 'r',
        mode: 'secondary',
        stage: 'running',
        epoch: 3,
        'checkpoint-age-ms': 40,
        'last-pause-ms': 0.5,
        'copied-bytes': 65536,
        'forward-failures': 1,
        'last-failure': {
          offset: 512,
          length: 1024,
          code: 'EIO',
          error: 'Input/output error',
          'at-ms': 7,
        },
        'missing-bytes': 65536,
        'copy-failures': 0,
      },
    ])
  })

  test('resync and retry reach the node they name', async () => {
    await primary.run('blockdev-add', memory('disk'))
    await primary.run('x-replication-resync', { 'node-name': 'r', source: 'disk' })
    await primary.run('x-replication-retry-failover', { 'node-name': 'r' })
    expect(primary.calls).toEqual(['resync r from disk', 'retry r'])
    const lost = { 'node-name': 'r', source: 'nope' }
    expect(await primary.refused('x-replication-resync', lost)).toMatch(/Cannot find/)
  })
})
