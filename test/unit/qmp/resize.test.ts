import { describe, expect, it } from 'vitest'
import { MiB, Scenario } from '../block/scenario-rig.ts'

describe('qmp / resize', () => {
  it('qmp / resize / what an overlay gains is zeroes, whatever its longer backing image holds', async () => {
    const scenario = new Scenario()
    scenario.raw('b', 7, 7)
    const overlay = await scenario.qcow2('q', MiB)
    await scenario.add(scenario.file('b', 'b'))
    await scenario.add({ ...overlay, backing: 'b' })
    expect(await scenario.shows('q')).toEqual([7])
    await scenario.drop('q')
    await scenario.run('block_resize', { 'node-name': 'q', size: 2 * MiB })
    expect(await scenario.shows('q')).toEqual([7, 0])
    await scenario.close()
  })
})
