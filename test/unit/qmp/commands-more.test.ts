import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { JsonObject, JsonValue } from '../../../src/qmp/json.ts'
import { memory, Rig } from './rig.ts'

let rig: Rig

beforeEach(() => {
  rig = new Rig()
})

afterEach(() => rig.close())

const run = (name: string, args?: JsonObject): Promise<JsonValue> => rig.run(name, args)
const refused = (name: string, args?: JsonObject): Promise<string> => rig.refused(name, args)

describe('qmp / commands / typed', () => {
  const type = (line: string) => run('human-monitor-command', { 'command-line': line })

  test('nodes are added and deleted by typed commands, and refusals are text', async () => {
    const add = 'drive_add -n buddy driver=raw,file.driver=null-co,file.size=65536,node-name=hh'
    expect(await type(add)).toBe('')
    expect(rig.graph.find('hh')?.length()).toBe(65536)
    expect(await type(add)).toBe("Duplicate nodes with node-name='hh'\r\n")
    expect(await type('drive_add -n buddy driver=null-co')).toBe(
      "'node-name' needs to be specified\r\n",
    )
    expect(await type('drive_del hh')).toBe('')
    expect(await type('drive_del hh')).toBe("Device 'hh' not found\r\n")
    expect(await type('nosuchcmd')).toBe("unknown command: 'nosuchcmd'\r\n")
    expect(await type('info block-jobs')).toBe('No active jobs\r\n')
  })

  test('a node that is in use stays', async () => {
    await run('blockdev-add', memory('a'))
    await run('blockdev-add', { driver: 'raw', 'node-name': 'b', file: 'a' })
    expect(await type('drive_del a')).toBe('Block device a is in use\r\n')
  })

  test('the old spelling of an NBD server is understood', async () => {
    const file = 'file.driver=nbd,file.host=127.0.0.1,file.port=1,file.export=x'
    const line = `drive_add -n buddy driver=copy-before-write,target=t,${file},node-name=r`
    expect(await type(line)).toMatch(/Failed to connect to '127.0.0.1:1'/)
  })
})

describe('qmp / commands / bitmaps', () => {
  const bitmaps = async (): Promise<JsonValue> => run('query-named-block-nodes', { flat: true })

  test('a bitmap is made, shown, switched off, merged and taken away', async () => {
    await run('blockdev-add', memory('a'))
    const b = { node: 'a', name: 'b' }
    await run('block-dirty-bitmap-add', { ...b, granularity: 4096 })
    await run('block-dirty-bitmap-disable', b)
    expect(await bitmaps()).toMatchObject([
      {
        'dirty-bitmaps': [
          { name: 'b', recording: false, granularity: 4096, count: 0, busy: false },
        ],
      },
    ])
    await run('block-dirty-bitmap-enable', b)
    await run('block-dirty-bitmap-add', { ...b, name: 'c', granularity: 4096 })
    await run('block-dirty-bitmap-merge', { node: 'a', target: 'c', bitmaps: ['b', b] })
    await run('block-dirty-bitmap-clear', b)
    await run('block-dirty-bitmap-remove', b)
    expect(await refused('block-dirty-bitmap-clear', b)).toBe("Dirty bitmap 'b' not found")
  })

  test('what cannot be is refused', async () => {
    await run('blockdev-add', memory('a'))
    const add = (more: JsonObject) =>
      refused('block-dirty-bitmap-add', { node: 'a', name: 'b', ...more })
    expect(await add({ name: '' })).toBe('Bitmap name cannot be empty')
    expect(await add({ granularity: 1000 })).toBe('Granularity must be power of 2 and at least 512')
    expect(await add({ node: 'nope' })).toBe("Cannot find device='nope' nor node-name='nope'")
    expect(await add({})).toBe('accepted')
    expect(await add({})).toBe('Bitmap already exists: b')
  })

  test('an export holds the bitmaps it shows', async () => {
    await run('blockdev-add', memory('a'))
    await run('block-dirty-bitmap-add', { node: 'a', name: 'b' })
    await run('nbd-server-start', {
      addr: { type: 'inet', data: { host: '127.0.0.1', port: '0' } },
    })
    const add = (more: JsonObject) => refused('nbd-server-add', { device: 'a', ...more })
    expect(await add({ bitmap: 'zz' })).toBe("Bitmap 'zz' is not found")
    expect(await add({ bitmap: 'b' })).toBe("Enabled bitmap 'b' incompatible with readonly export")
    expect(await add({ bitmap: 'b', writable: true })).toBe('accepted')
    expect(await refused('block-dirty-bitmap-remove', { node: 'a', name: 'b' })).toMatch(/in use/)
    await run('nbd-server-remove', { name: 'a' })
    await run('block-dirty-bitmap-remove', { node: 'a', name: 'b' })
  })
})
