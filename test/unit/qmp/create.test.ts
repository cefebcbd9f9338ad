import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { Rig } from './rig.ts'

let rig: Rig
let dir: string
beforeEach(() => {
  rig = new Rig()
  dir = mkdtempSync(join(tmpdir(), 'blockstep-create-'))
})
afterEach(async () => {
  await rig.close()
  rmSync(dir, { recursive: true })
})

const at = (name: string): string => join(dir, name)

/** Makes an image; the error that its job ended with. */
async function create(options: JsonObject): Promise<unknown> {
  await rig.run('blockdev-create', { 'job-id': 'c', options })
  await rig.jobs.get('c').done
  const [info] = (await rig.run('query-jobs')) as JsonObject[]
  expect(info).toMatchObject({ status: 'concluded', 'current-progress': 1, 'total-progress': 1 })
  expect(await rig.run('query-block-jobs')).toEqual([])
  await rig.run('job-dismiss', { id: 'c' })
  return info?.error
}

describe('qmp / blockdev-create', () => {
  test('a file gets its length, allocated when that is wanted', async () => {
    expect(await create({ driver: 'file', filename: at('a'), size: 1 << 20 })).toBeUndefined()
    expect(statSync(at('a'))).toMatchObject({ size: 1 << 20, blocks: 0 })
    const full = { driver: 'file', filename: at('b'), size: 1 << 20, preallocation: 'full' }
    expect(await create(full)).toBeUndefined()
    expect(statSync(at('b')).size).toBe(1 << 20)
    expect(statSync(at('b')).blocks).toBeGreaterThan(0)
  })

  test('what is wrong with a file ends the job with an error', async () => {
    const file = { driver: 'file', filename: at('a'), size: 512 }
    expect(await create({ ...file, filename: '/nonexistent/a' })).toBe(
      "Could not create '/nonexistent/a': No such file or directory",
    )
    expect(await create({ ...file, size: -1 })).toBe('Could not resize file: Invalid argument')
    expect(await create({ ...file, preallocation: 'metadata' })).toBe(
      'Unsupported preallocation mode: metadata',
    )
    expect(await create(file)).toBeUndefined()
    await rig.run('blockdev-add', { driver: 'file', 'node-name': 'a', filename: at('a') })
    expect(await create(file)).toBe('Failed to get "write" lock')
  })

  test('an image is made on a node, opens, and is only there when the options make sense', async () => {
    await create({ driver: 'file', filename: at('a'), size: 0 })
    await rig.run('blockdev-add', { driver: 'file', 'node-name': 'f', filename: at('a') })
    const image = { driver: 'qcow2', file: 'f', size: 1 << 20 }
    expect(await create({ ...image, 'cluster-size': 4096 })).toBeUndefined()
    const made = readFileSync(at('a'))
    const wrong: [JsonObject, string][] = [
      [{ size: 1000 }, 'Image size must be a multiple of 512 bytes'],
      [{ 'cluster-size': 1000 }, 'Cluster size must be a power of two between 512 and 2048k'],
      [{ 'backing-fmt': 'raw' }, 'Backing format cannot be used without backing file'],
      [{ 'data-file-raw': true }, 'data-file-raw requires data-file'],
      [{ file: 'no' }, "Cannot find device='no' nor node-name='no'"],
      [{ encrypt: { format: 'luks' } }, 'Encryption is not supported'],
    ]
    for (const [options, error] of wrong) expect(await create({ ...image, ...options })).toBe(error)
    expect(readFileSync(at('a')).equals(made)).toBe(true)
    await rig.run('blockdev-add', { driver: 'qcow2', 'node-name': 'q', file: 'f' })
    expect(rig.graph.lookup(undefined, 'q').length()).toBe(1 << 20)
    expect(await create(image)).toContain("Permission conflict on node 'f'")
  })

  test('a preallocated image holds every cluster', async () => {
    await create({ driver: 'file', filename: at('a'), size: 0 })
    const file = { driver: 'file', filename: at('a') }
    const image = { driver: 'qcow2', file, size: 1 << 20, preallocation: 'metadata' }
    expect(await create(image)).toBeUndefined()
    expect(statSync(at('a')).size).toBeGreaterThan(1 << 20)
    const backed = { ...image, 'backing-file': at('b'), 'backing-fmt': 'raw' }
    expect(await create(backed)).toContain('Backing file and preallocation')
  })

  test('no job is started for a driver that makes no images, or for a bad request', async () => {
    const refused = (options: JsonObject) =>
      rig.refused('blockdev-create', { 'job-id': 'c', options })
    expect(await refused({ driver: 'quorum' })).toBe('Driver does not support blockdev-create')
    expect(await refused({ driver: 'luks', size: 1 })).toBe(
      'Driver does not support blockdev-create',
    )
    expect(await refused({ driver: 'file', size: 1 })).toBe(
      "Parameter 'options.filename' is missing",
    )
    expect(
      await rig.refused('blockdev-create', {
        'job-id': '5',
        options: { driver: 'file', filename: at('a'), size: 1 },
      }),
    ).toBe("Invalid job ID '5'")
    expect(await rig.run('query-jobs')).toEqual([])
    expect(rig.calls).toEqual([])
  })
})
