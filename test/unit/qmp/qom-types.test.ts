import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { Rig } from './rig.ts'

let rig: Rig
beforeEach(() => {
  rig = new Rig()
})
afterEach(() => rig.close())

const types = (args: JsonObject = {}) => rig.run('qom-list-types', args) as Promise<JsonObject[]>
const names = async (args: JsonObject = {}) => (await types(args)).map(({ name }) => name)
const properties = async (typename: string) =>
  ((await rig.run('qom-list-properties', { typename })) as JsonObject[]).map(
    ({ name, type }) => `${String(name)}: ${String(type)}`,
  )

describe('qmp / qom types', () => {
  test('qmp / qom types / only what can be made is listed, unless abstract ones are asked for', async () => {
    const made = await types()
    expect(made.every((type) => type.abstract === undefined)).toBe(true)
    expect(made).toContainEqual({ name: 'iothread', parent: 'event-loop-base' })
    const all = await types({ abstract: true })
    expect(all).toContainEqual({ name: 'object', abstract: true })
    expect(all).toContainEqual({ name: 'event-loop-base', parent: 'object', abstract: true })
    expect(all.length).toBeGreaterThan(made.length)
  })

  test('qmp / qom types / a type implements its ancestors and interfaces', async () => {
    expect(await names({ implements: 'iothread' })).toEqual(['iothread'])
    expect(await names({ implements: 'secret_common' })).toEqual(['secret'])
    expect(await names({ implements: 'secret_common', abstract: true })).toEqual([
      'secret_common',
      'secret',
    ])
    expect(await names({ implements: 'authz' })).toEqual(['authz-list', 'authz-simple'])
    expect(await names({ implements: 'nope' })).toEqual([])
    expect(await names({ implements: 'object' })).toEqual(await names())
    const creatable = await names({ implements: 'user-creatable' })
    expect(creatable).toContain('throttle-group')
    expect(creatable).not.toContain('container')
    expect(creatable).not.toContain('chardev-null')
    const interfaces = await names({ implements: 'interface', abstract: true })
    expect(interfaces).toContain('user-creatable')
    expect(interfaces).not.toContain('object')
  })

  test('qmp / qom types / every kind of character device has a type', async () => {
    const chardevs = await types({ implements: 'chardev' })
    const backends = (await rig.run('query-chardev-backends')) as JsonObject[]
    expect(new Set(chardevs.map(({ name }) => name))).toEqual(
      new Set(backends.map(({ name }) => `chardev-${String(name)}`)),
    )
    expect(chardevs).toContainEqual({ name: 'chardev-memory', parent: 'chardev-ringbuf' })
    expect(chardevs).toContainEqual({ name: 'chardev-file', parent: 'chardev-fd' })
  })

  test('qmp / qom types / a type has the properties of its parents and its own', async () => {
    expect(await properties('iothread')).toEqual([
      'type: string',
      'thread-pool-min: int',
      'aio-max-batch: int',
      'thread-pool-max: int',
      'poll-max-ns: int',
      'poll-grow: int',
      'poll-shrink: int',
    ])
    expect(await properties('throttle-group')).toHaveLength(21)
    expect(await properties('throttle-group')).toContain('x-bps-write-max-length: int')
    expect(await properties('container')).toEqual(['type: string'])
    expect(await properties('chardev-socket')).toEqual([
      'type: string',
      'connected: bool',
      'addr: SocketAddress',
    ])
  })

  test('qmp / qom types / what an object lists, its type lists', async () => {
    await rig.run('object-add', { 'qom-type': 'throttle-group', id: 'g' })
    await rig.run('object-add', { 'qom-type': 'iothread', id: 't' })
    for (const [id, typename] of [
      ['g', 'throttle-group'],
      ['t', 'iothread'],
    ]) {
      const own = (await rig.run('qom-list', { path: `/objects/${id}` })) as JsonObject[]
      const known = await properties(String(typename))
      const listed = own.map(({ name, type }) => `${String(name)}: ${String(type)}`)
      expect(known).toEqual(expect.arrayContaining(listed))
    }
  })

  test('qmp / qom types / refusals', async () => {
    const refused = (args: JsonObject) => rig.refused('qom-list-properties', args)
    expect(await refused({ typename: 'nope' })).toBe("Class 'nope' not found")
    expect(await refused({})).toBe("Parameter 'typename' is missing")
    for (const typename of ['interface', 'user-creatable']) {
      expect(await refused({ typename })).toBe("Parameter 'typename' expects a QOM type")
    }
    expect(await rig.refused('qom-list-types', { abstract: 1 })).toBe(
      "Invalid parameter type for 'abstract', expected: boolean",
    )
  })
})
