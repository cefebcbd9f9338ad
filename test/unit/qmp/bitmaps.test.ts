import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { Rig } from './rig.ts'

const MiB = 1024 * 1024

let rig: Rig
beforeEach(() => {
  rig = new Rig()
})
afterEach(() => rig.close())

const on = (name: string, more: JsonObject = {}): JsonObject => ({ node: 'a', name, ...more })

async function disk(): Promise<BlockBackend> {
  await rig.run('blockdev-add', { driver: 'memory', 'node-name': 'a', size: 64 * MiB })
  const node = rig.graph.lookup('a')
  return BlockBackend.create(rig.graph, node, { perm: PERM.WRITE | PERM.RESIZE, shared: PERM.ALL })
}

test('qmp / bitmaps / the digest is the one that other programs compute', async () => {
  const user = await disk()
  await rig.run('block-dirty-bitmap-add', on('b', { granularity: 65536 }))
  await user.pwrite(0, new Uint8Array(200 * 1024))
  await user.pwrite(10 * MiB, new Uint8Array(65536))
  expect(await rig.run('x-debug-block-dirty-bitmap-sha256', on('b'))).toEqual({
    sha256: '57d7529e5d66e5e6a61cf191c723bffa683a6403c834071cd49c4b90aff96b99',
  })
  await user.close()
})

test('qmp / bitmaps / unknown nodes and bitmaps are named in the refusal', async () => {
  const user = await disk()
  await rig.run('block-dirty-bitmap-add', on('b'))
  const no = (verb: string, args: JsonObject) => rig.refused(`block-dirty-bitmap-${verb}`, args)
  expect(await no('add', { node: 'z', name: 'b' })).toBe("Cannot find device='z' nor node-name='z'")
  for (const verb of ['remove', 'clear', 'enable', 'disable']) {
    expect(await no(verb, { node: 'z', name: 'b' })).toBe("Node 'z' not found")
    expect(await no(verb, on('z'))).toBe("Dirty bitmap 'z' not found")
  }
  const merge = (target: string, ...bitmaps: (string | JsonObject)[]) =>
    no('merge', { node: 'a', target, bitmaps })
  expect(await merge('z', 'b')).toBe("Dirty bitmap 'z' not found")
  expect(await merge('b', { node: 'z', name: 'b' })).toBe("Node 'z' not found")
  expect(await merge('b')).toBe("Parameter 'bitmaps' expects at least one bitmap")
  expect(await merge('b', 'b')).toBe('accepted')
  await user.close()
})

test('qmp / bitmaps / bitmaps of a disk and of its file follow when it grows', async () => {
  const dir = fs.mkdtempSync(join(tmpdir(), 'blockstep-'))
  fs.writeFileSync(join(dir, 'f'), new Uint8Array(MiB))
  const file = { driver: 'file', 'node-name': 'f', filename: join(dir, 'f') }
  await rig.run('blockdev-add', { driver: 'raw', 'node-name': 'a', file })
  for (const node of ['a', 'f'])
    await rig.run('block-dirty-bitmap-add', { node, name: 'b', granularity: 65536 })
  await rig.run('block_resize', { 'node-name': 'a', size: 8 * MiB })
  const node = rig.graph.lookup('a')
  const options = { perm: PERM.WRITE, shared: PERM.ALL }
  const user = await BlockBackend.create(rig.graph, node, options)
  await user.pwrite(7 * MiB, new Uint8Array(1))
  for (const name of ['a', 'f'])
    expect(
      rig.graph
        .lookup(name)
        .bitmaps.need('b')
        .bits.get(7 * MiB),
    ).toBe(true)
  await user.close()
  fs.rmSync(dir, { recursive: true })
})
