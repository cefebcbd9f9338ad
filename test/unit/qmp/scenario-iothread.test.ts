import { afterEach, beforeEach, expect, test } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { memory, Rig } from './rig.ts'

let rig: Rig
beforeEach(() => {
  rig = new Rig()
})
afterEach(() => rig.close())

test('scenario / graph / G16 a node that somebody uses goes to a thread only by force', async () => {
  await rig.run('object-add', { 'qom-type': 'iothread', id: 'io0' })
  await rig.run('blockdev-add', memory('disk'))
  const move = { 'node-name': 'disk', iothread: 'io0' }
  await rig.run('x-blockdev-set-iothread', move)
  const user = await BlockBackend.create(rig.graph, rig.graph.lookup('disk'), {
    perm: PERM.CONSISTENT_READ,
    shared: PERM.ALL,
  })
  expect(await rig.refused('x-blockdev-set-iothread', move)).toBe(
    'Node disk is associated with a BlockBackend and could be in use ' +
      '(use force=true to override this check)',
  )
  await rig.run('x-blockdev-set-iothread', { ...move, force: true })
  await user.close()
  await rig.run('x-blockdev-set-iothread', { 'node-name': 'disk', iothread: null })
})
