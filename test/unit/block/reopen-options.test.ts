import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { BlockdevOptions } from '../../../src/block/driver.ts'
import { toJson } from '../../../src/qmp/json.ts'
import { Rig } from '../qmp/rig.ts'

let rig: Rig
beforeEach(() => {
  rig = new Rig()
})
afterEach(() => rig.close())

const MiB = 1024 * 1024
const nothing = (name: string, more = {}): BlockdevOptions => ({
  driver: 'null-co',
  'node-name': name,
  size: MiB,
  ...more,
})

const reopen = (...options: BlockdevOptions[]) =>
  rig.run('blockdev-reopen', { options: toJson(options) })

const refused = (options: BlockdevOptions, words: string) =>
  expect(reopen(options)).rejects.toThrow(words)

describe('block / reopen / options', () => {
  it('block / reopen / options / fixed ones must come again as they are', async () => {
    await rig.graph.add(nothing('n', { 'read-zeroes': true }))
    await refused(nothing('n'), "Option 'read-zeroes' cannot be reset to its default value")
    await refused(
      nothing('n', { 'read-zeroes': true, size: 512 }),
      "Cannot change the option 'size'",
    )
    await refused(
      nothing('n', { 'read-zeroes': true, 'force-share': true, 'read-only': true }),
      "Cannot change the option 'force-share'",
    )
    await reopen(nothing('n', { 'read-zeroes': true, 'read-only': true }))
    expect(rig.graph.lookup('n').readOnly).toBe(true)
  })

  it('block / reopen / options / nested ones are named with dots', async () => {
    const image = nothing('n')
    await rig.graph.add({ driver: 'blkdebug', 'node-name': 'd', image })
    const rules = { 'inject-error': [{ event: 'none' }] }
    await refused(
      { driver: 'blkdebug', 'node-name': 'd', image, ...rules },
      "Cannot change the option 'inject-error.0.event'",
    )
  })

  it('block / reopen / options / only file and backing can be moved', async () => {
    for (const name of ['a', 'b']) await rig.graph.add(nothing(name))
    await rig.graph.add({ driver: 'blkdebug', 'node-name': 'd', image: 'a' })
    await refused({ driver: 'blkdebug', 'node-name': 'd', image: 'b' }, "change the option 'image'")
    await rig.graph.add({ driver: 'raw', 'node-name': 'r', file: 'a' })
    const inline = { driver: 'raw', 'node-name': 'r', file: { driver: 'null-co' } }
    await refused(inline, "Cannot change the option 'file.driver'")
    const gone = { driver: 'raw', 'node-name': 'r', file: 'gone' }
    await refused(gone, "Cannot find device='' nor node-name='gone'")
  })

  it('block / reopen / options / whoever loses its users takes nothing of what is below', async () => {
    await rig.graph.add(nothing('f'))
    await rig.graph.add({ driver: 'raw', 'node-name': 'q', file: 'f' })
    await rig.graph.add({ driver: 'raw', 'node-name': 'between', file: 'f' })
    await reopen({ driver: 'raw', 'node-name': 'q', file: 'between' })
    await reopen({ driver: 'raw', 'node-name': 'q', file: 'f' })
    await rig.run('blockdev-del', { 'node-name': 'between' })
    expect(rig.graph.find('between')).toBeUndefined()
  })

  it('block / reopen / options / a copy-on-read with a bottom holds the links down to it', async () => {
    const layer = (name: string, backing?: string) => ({
      ...{ driver: 'memory', 'node-name': name, size: MiB },
      ...(backing === undefined ? {} : { backing }),
    })
    await rig.graph.add(layer('base'))
    await rig.graph.add(layer('mid', 'base'))
    await rig.graph.add(layer('top', 'mid'))
    const cor = { driver: 'copy-on-read', 'node-name': 'c', file: 'top', bottom: 'mid' }
    await rig.graph.add(cor)
    await refused(layer('top', 'base'), "Cannot change frozen 'backing' link from 'top' to 'mid'")
    await rig.run('blockdev-del', { 'node-name': 'c' })
    await reopen(layer('top', 'base'))
    expect(rig.graph.lookup('top').child('backing')?.node.name).toBe('base')
  })
})

describe('drivers / blkdebug / options', () => {
  let folder: string
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'rules-'))
  })
  afterEach(() => rmSync(folder, { recursive: true, force: true }))

  it.each([
    ['event = "none"\n', 'no group defined'],
    ['[inject-error]\nevent = "bogus"\n', 'invalid parameter value: bogus'],
    ['[inject-error]\nevent = "none"\nfoo = "1"\n', "Invalid parameter 'foo'"],
    ['[bogus]\nevent = "none"\n', "There is no option group 'bogus'"],
  ])('drivers / blkdebug / config / refuses %j', async (text, words) => {
    const config = join(folder, 'rules')
    writeFileSync(config, text)
    const options = { driver: 'blkdebug', 'node-name': 'd', image: nothing('n'), config }
    await expect(rig.graph.add(options)).rejects.toThrow(words)
  })

  it('drivers / blkdebug / limits / a maximum is a multiple of the best size', async () => {
    const limits = { 'opt-write-zero': 1024, 'max-write-zero': 512 }
    const options = { driver: 'blkdebug', 'node-name': 'd', image: nothing('n'), ...limits }
    await expect(rig.graph.add(options)).rejects.toThrow('constraints with max-write-zero 512')
  })

  it('drivers / preallocate / alignments are whole sectors', async () => {
    const options = { driver: 'preallocate', 'node-name': 'p', file: nothing('n') }
    const odd = rig.graph.add({ ...options, 'prealloc-align': 5 })
    await expect(odd).rejects.toThrow('is not aligned to 512')
    expect((await rig.graph.add(options)).length()).toBe(MiB)
  })
})
