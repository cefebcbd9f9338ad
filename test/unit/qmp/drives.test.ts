import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { memory, Rig } from './rig.ts'

const SIZE = 65536

let rig: Rig
let dir: string
beforeEach(async () => {
  rig = new Rig()
  dir = mkdtempSync(join(tmpdir(), 'blockstep-drives-'))
  await rig.run('blockdev-add', memory('src'))
  const { driver } = rig.graph.lookup(undefined, 'src')
  await driver?.pwrite?.(0, new Uint8Array(SIZE / 2).fill(7), 0)
})
afterEach(async () => {
  await rig.close()
  rmSync(dir, { recursive: true })
})

const at = (name: string): string => join(dir, name)
const names = (): string[] => [...rig.graph.nodes()].map((node) => node.name)

async function event(start: string): Promise<void> {
  while (!rig.calls.some((call) => call.startsWith(start))) await rig.graph.ctx.breathe()
}

const mirror = (more: JsonObject): JsonObject => ({
  'job-id': 'j',
  device: 'src',
  target: at('t'),
  sync: 'full',
  ...more,
})

function half(file: Buffer): void {
  expect(file.length).toBe(SIZE)
  expect(file.subarray(0, SIZE / 2).every((byte) => byte === 7)).toBe(true)
  expect(file.subarray(SIZE / 2).every((byte) => byte === 0)).toBe(true)
}

describe('qmp / drive-mirror', () => {
  test('makes its target, copies what is allocated, and holds the target no longer than the job', async () => {
    await rig.run('drive-mirror', mirror({ format: 'raw' }))
    await event('BLOCK_JOB_READY')
    expect(names().length).toBeGreaterThan(1)
    await rig.run('block-job-cancel', { device: 'j' })
    await event('BLOCK_JOB_COMPLETED')
    await rig.graph.settled()
    expect(names()).toEqual(['src'])
    half(readFileSync(at('t')))
  })

  test('an existing target is probed and named, and replaces the source', async () => {
    await rig.run('drive-mirror', mirror({ format: 'qcow2' }))
    await event('BLOCK_JOB_READY')
    await rig.run('job-cancel', { id: 'j' })
    await event('BLOCK_JOB_CANCELLED')
    rig.calls.length = 0
    await rig.run('drive-mirror', mirror({ mode: 'existing', 'node-name': 'copy' }))
    await event('BLOCK_JOB_READY')
    expect(rig.graph.lookup(undefined, 'copy').definition.name).toBe('qcow2')
  })

  test('refuses what cannot be made or opened and leaves no node behind', async () => {
    const wrong: [JsonObject, string][] = [
      [{ device: 'no' }, "Cannot find device='no' nor node-name='no'"],
      [
        { target: '/nonexistent/t', format: 'raw' },
        "Could not create '/nonexistent/t': No such file or directory",
      ],
      [
        { mode: 'existing', target: at('no') },
        `Could not open '${at('no')}': No such file or directory`,
      ],
      [{ format: 'zz' }, "Unknown file format 'zz'"],
      [{ target: 'bogus:x', format: 'raw' }, "Unknown protocol 'bogus'"],
      [
        { replaces: 'src' },
        'a node-name must be provided when replacing a named node of the graph',
      ],
      [{ format: 'raw', sync: 'bitmap' }, "Sync mode 'bitmap' not supported"],
      [{ format: 'raw', 'job-id': '5' }, "Invalid job ID '5'"],
      [{ format: 'qcow2', 'node-name': 'src' }, "Duplicate nodes with node-name='src'"],
    ]
    for (const [more, text] of wrong) {
      expect(await rig.refused('drive-mirror', mirror(more))).toBe(text)
    }
    await rig.graph.settled()
    expect(names()).toEqual(['src'])
  })
})

describe('qmp / drive-backup', () => {
  test('copies into a file that it makes', async () => {
    await rig.run('drive-backup', mirror({ format: 'raw' }))
    await event('BLOCK_JOB_COMPLETED')
    await rig.graph.settled()
    half(readFileSync(at('t')))
    expect(names()).toEqual(['src'])
  })

  test('a transaction that fails takes it back', async () => {
    const data = mirror({ format: 'raw' })
    const actions = [
      { type: 'drive-backup', data },
      { type: 'abort', data: {} },
    ]
    expect(await rig.refused('transaction', { actions })).toBe(
      'Transaction aborted using Abort action',
    )
    await rig.graph.settled()
    expect(names()).toEqual(['src'])
    expect(await rig.run('query-jobs')).toEqual([])
    expect(existsSync(at('t'))).toBe(true)
  })
})
