import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { memory, Rig } from './rig.ts'

let rig: Rig
beforeEach(async () => {
  rig = new Rig()
  for (const name of ['src', 'dst']) await rig.run('blockdev-add', memory(name))
})
afterEach(() => rig.close())

const change = (mode: string, type = 'mirror') => ({ id: 'j', type, 'copy-mode': mode })

async function until(seen: (call: string) => boolean): Promise<void> {
  while (!rig.calls.some(seen)) await rig.graph.ctx.breathe()
}

describe('qmp / block-job-change', () => {
  test('makes a running mirror write both disks, and not back', async () => {
    const mirror = { 'job-id': 'j', device: 'src', target: 'dst', sync: 'full' }
    await rig.run('blockdev-mirror', mirror)
    await until((call) => call.startsWith('BLOCK_JOB_READY'))
    expect(await rig.run('query-block-jobs')).toMatchObject([{ 'actively-synced': false }])
    expect(await rig.run('block-job-change', change('background'))).toEqual({})
    expect(await rig.run('block-job-change', change('write-blocking'))).toEqual({})
    expect(await rig.run('query-block-jobs')).toMatchObject([{ 'actively-synced': true }])
    expect(await rig.refused('block-job-change', change('background'))).toBe(
      "Cannot change copy-mode back to 'background'",
    )
  })

  test('refuses a job of another kind, an unknown one and an unknown mode', async () => {
    const backup = { 'job-id': 'j', device: 'src', target: 'dst', sync: 'none' }
    await rig.run('blockdev-backup', backup)
    expect(await rig.refused('block-job-change', change('write-blocking'))).toBe(
      "Job 'j' is 'backup' job, expected 'mirror'",
    )
    expect(await rig.refused('block-job-change', { ...change('background'), id: 'no' })).toBe(
      "Block job 'no' not found",
    )
    expect(await rig.refused('block-job-change', change('sideways'))).toBe(
      "Parameter 'copy-mode' does not accept value 'sideways'",
    )
    expect(await rig.refused('block-job-change', change('background', 'backup'))).toBe(
      "Parameter 'type' does not accept value 'backup'",
    )
  })
})
