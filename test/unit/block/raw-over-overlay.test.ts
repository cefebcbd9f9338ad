import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { STATUS } from '../../../src/block/driver.ts'
import { chainStatus } from '../../../src/block/status.ts'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { MiB, Scenario } from './scenario-rig.ts'

let s: Scenario
beforeEach(() => {
  s = new Scenario()
})
afterEach(() => s.close())

/** raw `top` over an overlay that holds its third MiB, over an image of four. */
async function chain(window: JsonObject = {}): Promise<void> {
  await s.add(await s.qcow2('base', 4 * MiB))
  await s.write('base', 1, 0, 4 * MiB)
  await s.drop('base')
  await s.add(await s.qcow2('overlay', 4 * MiB, { backing: 'base' }))
  await s.write('overlay', 2, 2 * MiB, MiB)
  await s.drop('overlay')
  await s.add({ driver: 'raw', 'node-name': 'top', file: 'overlay', ...window })
}

const KNOWN = STATUS.DATA | STATUS.ZERO

describe('block / status / raw over an overlay', () => {
  it('block / status / raw over an overlay / what the overlay does not hold is not called zero', async () => {
    await chain()
    const top = s.rig.graph.lookup('top')
    const below = await chainStatus(top, undefined, 0, 4 * MiB)
    expect(below).toMatchObject({ bytes: 2 * MiB, depth: -1 })
    expect(below.flags & KNOWN).toBe(0)
    const own = await chainStatus(top, undefined, 2 * MiB, 2 * MiB)
    expect(own).toMatchObject({ bytes: MiB, depth: 0 })
    expect(own.flags & KNOWN).toBe(STATUS.DATA)
  })

  it('block / status / raw over an overlay / an image without one below is zero where it holds nothing', async () => {
    await s.add(await s.qcow2('base', 4 * MiB))
    await s.add({ driver: 'raw', 'node-name': 'top', file: 'base' })
    const status = await chainStatus(s.rig.graph.lookup('top'), undefined, 0, 4 * MiB)
    expect(status.flags & KNOWN).toBe(STATUS.ZERO)
  })

  it('block / status / raw over an overlay / beyond the end of a short image below all is zero', async () => {
    await s.add(await s.qcow2('base', MiB))
    await s.add(await s.qcow2('overlay', 2 * MiB, { backing: 'base' }))
    await s.add({ driver: 'raw', 'node-name': 'top', file: 'overlay' })
    const top = s.rig.graph.lookup('top')
    expect((await chainStatus(top, undefined, 0, MiB)).flags & KNOWN).toBe(0)
    expect((await chainStatus(top, undefined, MiB, MiB)).flags & KNOWN).toBe(STATUS.ZERO)
  })

  it('block / status / raw over an overlay / an overlay of that knows no more', async () => {
    await chain()
    await s.add(await s.qcow2('above', 4 * MiB, { backing: 'top' }))
    const status = await chainStatus(s.rig.graph.lookup('above'), undefined, 0, MiB)
    expect(status.flags & KNOWN).toBe(0)
    expect(await s.shows('above')).toEqual([1, 1, 2, 1])
  })

  it.each([
    ['blockdev-backup', {}, [1, 1, 2, 1]],
    ['blockdev-mirror', {}, [1, 1, 2, 1]],
    ['blockdev-backup', { offset: MiB }, [1, 2, 1]],
    ['blockdev-mirror', { offset: MiB, size: 2 * MiB }, [1, 2]],
  ] as const)(
    'block / status / raw over an overlay / %s copies what shows through %j',
    async (command, window, shown) => {
      await chain(window)
      await s.add(await s.qcow2('target', shown.length * MiB))
      await s.run(command, { 'job-id': 'j', device: 'top', target: 'target', sync: 'full' })
      if (command === 'blockdev-mirror') {
        await s.status('j', 'ready')
        await s.run('block-job-cancel', { device: 'j' })
      }
      await s.jobsEnd()
      expect(await s.shows('target')).toEqual(shown)
    },
  )
})
