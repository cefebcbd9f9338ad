import { afterEach, beforeEach, expect, test } from 'vitest'
import { NbdClient } from '../../../src/nbd/client.ts'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { memory, Rig } from './rig.ts'

let rig: Rig

beforeEach(() => {
  rig = new Rig()
})
afterEach(() => rig.close())

/** Serves a small disk, under `exp` too when asked. */
async function serve(...names: string[]): Promise<void> {
  const addr = { type: 'inet', data: { host: '127.0.0.1', port: '0' } }
  await rig.run('nbd-server-start', { addr })
  await rig.run('blockdev-add', memory('disk'))
  for (const name of names) await rig.run('nbd-server-add', { device: 'disk', name })
}

function open(exportName: string): Promise<NbdClient> {
  const address = rig.exports.server?.address
  if (address === undefined) throw new Error('no server')
  return NbdClient.connect({ ctx: rig.graph.ctx, address, exportName })
}

test('scenario / nbd / N02 an idle export that is removed hard is gone at once', async () => {
  await serve('exp')
  const client = await open('exp')
  await client.read(0, Buffer.alloc(512))
  await client.disconnect()
  await rig.run('nbd-server-remove', { name: 'exp', mode: 'hard' })
  expect(rig.calls).toContain('BLOCK_EXPORT_DELETED {"id":"exp"}')
  await expect(open('exp')).rejects.toMatchObject({ message: 'Requested export not available' })
  const again = await rig.refused('nbd-server-remove', { name: 'exp', mode: 'hard' })
  expect(again).toBe("Export 'exp' is not found")
})

test('scenario / nbd / N03 an export with a client is removed once the client left', async () => {
  await serve('exp')
  const client = await open('exp')
  const remove = (mode?: string): Promise<string> =>
    rig.refused('nbd-server-remove', { name: 'exp', ...(mode === undefined ? {} : { mode }) })
  expect(await remove()).toBe("export 'exp' still in use")
  expect(await remove('safe')).toBe("export 'exp' still in use")
  await client.read(0, Buffer.alloc(512))
  await client.disconnect()
  expect(await remove()).toBe('accepted')
  expect(await remove()).toBe("Export 'exp' is not found")
})

test('scenario / nbd / N10 a list of iothreads is refused, each with its own reason', async () => {
  await rig.run('object-add', { 'qom-type': 'iothread', id: 't0' })
  await rig.run('object-add', { 'qom-type': 'iothread', id: 't1' })
  await serve()
  const add = (iothread: JsonObject[string]): Promise<string> =>
    rig.refused('block-export-add', {
      type: 'nbd',
      id: 'e',
      'node-name': 'disk',
      name: 'e',
      iothread,
    })
  const list = "Invalid parameter type for 'iothread', expected: string"
  const said = [await add(['t0']), await add(['t0', 't1']), await add([]), await add(['t0', 'x'])]
  expect(new Set(said).size).toBe(4)
  for (const text of said) expect(text.startsWith(list)).toBe(true)
  expect(said[3]).toBe(`${list}; iothread "x" not found`)
  expect(await add(5)).toBe(list)
  expect(await add('x')).toBe('iothread "x" not found')
  expect(await add('t0')).toBe('accepted')
})
