import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { isObject, type JsonObject, type JsonValue } from '../../../src/qmp/json.ts'
import { Rig } from './rig.ts'

let rig: Rig
let schema: Map<string, JsonObject>
beforeEach(async () => {
  rig = new Rig()
  const answer = await rig.run('query-qmp-schema')
  const entries = (Array.isArray(answer) ? answer : []).filter(isObject)
  schema = new Map(entries.map((entry) => [String(entry.name), entry]))
  expect(schema.size).toBe(entries.length)
})
afterEach(() => rig.close())

const objects = (value: JsonValue | undefined): JsonObject[] =>
  Array.isArray(value) ? value.filter(isObject) : []

function argumentsOf(name: string): JsonObject {
  return schema.get(String(schema.get(name)?.['arg-type'])) ?? {}
}

describe('qmp / query-qmp-schema', () => {
  test('names every command and nothing that cannot be sent', async () => {
    const shown = [...schema.values()].filter((entry) => entry['meta-type'] === 'command')
    const names = new Set(shown.map((entry) => entry.name))
    expect(names).toEqual(new Set(Object.keys(rig.commands)))
  })

  test('every type that is mentioned is described', () => {
    for (const entry of schema.values()) {
      const inner = [...objects(entry.members), ...objects(entry.variants)]
      const mentioned = [entry['arg-type'], entry['ret-type'], entry['element-type']]
      for (const type of [...mentioned, ...inner.map((one) => one.type)]) {
        if (type !== undefined) expect(schema.has(String(type)), String(entry.name)).toBe(true)
      }
    }
  })

  test('members say their type and whether they may be absent', () => {
    expect(objects(argumentsOf('job-cancel').members)).toEqual([{ name: 'id', type: 'str' }])
    const members = objects(argumentsOf('block-job-cancel').members)
    expect(members).toEqual([
      { name: 'device', type: 'str' },
      { name: 'force', type: 'bool', default: null },
    ])
  })

  test('a union lists a case for every value of its tag, and may contain itself', () => {
    const options = argumentsOf('blockdev-add')
    expect(options.tag).toBe('driver')
    const tag = objects(options.members).find((member) => member.name === 'driver')
    const cases = objects(options.variants).map((variant) => variant.case)
    expect(cases).toEqual(schema.get(String(tag?.type))?.values)
    const qcow2 = objects(options.variants).find((variant) => variant.case === 'qcow2')
    const file = objects(schema.get(String(qcow2?.type))?.members)[0]
    const branches = objects(schema.get(String(file?.type))?.members)
    expect(branches.map((branch) => branch.type)).toContain(options.name)
  })

  test('out-of-band commands and events are marked', () => {
    expect(schema.get('yank')?.['allow-oob']).toBe(true)
    expect(schema.get('STOP')?.['meta-type']).toBe('event')
    expect(objects(argumentsOf('BLOCK_JOB_PENDING').members)).toHaveLength(2)
  })
})
