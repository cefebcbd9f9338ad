import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { JsonObject } from '../../../src/qmp/json.ts'
import { decodeText, encodeText, RingBuffer } from '../../../src/qmp/ring-buffer.ts'
import { Rig } from './rig.ts'

let rig: Rig
beforeEach(() => {
  rig = new Rig()
})
afterEach(() => rig.close())

const backend = (type: string, data: JsonObject = {}): JsonObject => ({ type, data })
const add = (id: string, type: string, data: JsonObject = {}) =>
  rig.run('chardev-add', { id, backend: backend(type, data) })
const refusedAdd = (id: string, type: string, data: JsonObject = {}) =>
  rig.refused('chardev-add', { id, backend: backend(type, data) })
const change = (id: string, type: string, data: JsonObject = {}) =>
  rig.refused('chardev-change', { id, backend: backend(type, data) })
const write = (device: string, data: string, more: JsonObject = {}) =>
  rig.run('ringbuf-write', { device, data, ...more })
const read = (device: string, size: number, more: JsonObject = {}) =>
  rig.run('ringbuf-read', { device, size, ...more })
const kinds = async () =>
  ((await rig.run('query-chardev')) as JsonObject[]).map(
    ({ label, filename }) => `${String(label)}: ${String(filename)}`,
  )
const base64 = { format: 'base64' }

describe('qmp / chardevs / ring buffer', () => {
  test('qmp / chardevs / ring buffer / what was written is read once', async () => {
    await add('r', 'ringbuf')
    expect(await read('r', 10)).toBe('')
    await write('r', 'héllo\n\0x')
    expect(await read('r', 3)).toBe('hé')
    expect(await read('r', 100)).toBe('llo\n\0x')
    expect(await read('r', 100)).toBe('')
  })

  test('qmp / chardevs / ring buffer / the newest bytes push out the oldest', async () => {
    await add('r', 'ringbuf', { size: 4 })
    await write('r', 'abcdef')
    expect(await read('r', 2)).toBe('cd')
    await write('r', 'ghi')
    expect(await read('r', 10)).toBe('fghi')
    await add('m', 'memory', { size: 8 })
    await write('m', '123456789')
    expect(await read('m', 100)).toBe('23456789')
    await add('big', 'ringbuf')
    await write('big', 'x'.repeat(70_000))
    expect(await read('big', 100_000)).toHaveLength(65_536)
  })

  test('qmp / chardevs / ring buffer / bytes that are no text travel as base64', async () => {
    await add('r', 'ringbuf')
    await write('r', '/v8A', base64)
    expect(await read('r', 100, base64)).toBe('/v8A')
    await write('r', 'aGk=\n', base64)
    expect(await read('r', 100, { format: 'utf8' })).toBe('hi')
    await write('r', '', base64)
    expect(await read('r', 100, base64)).toBe('')
    const bad = { device: 'r', data: 'a!b', format: 'base64' }
    expect(await rig.refused('ringbuf-write', bad)).toBe('Base64 data contains invalid characters')
    expect(await rig.refused('ringbuf-write', { ...bad, format: 'hex' })).toBe(
      "Parameter 'format' does not accept value 'hex'",
    )
  })

  test('qmp / chardevs / ring buffer / refusals', async () => {
    await add('n', 'null')
    await add('r', 'ringbuf')
    const none = { device: 'no', size: 1 }
    expect(await rig.refused('ringbuf-read', none)).toBe("Device 'no' not found")
    expect(await rig.refused('ringbuf-write', { device: 'no', data: '' })).toBe(
      "Device 'no' not found",
    )
    expect(await rig.refused('ringbuf-read', { ...none, device: 'n' })).toBe(
      'n is not a ringbuf device',
    )
    for (const size of [0, -1]) {
      expect(await rig.refused('ringbuf-read', { device: 'r', size })).toBe(
        'size must be greater than zero',
      )
    }
    const odd = 'size of ringbuf chardev must be power of two'
    for (const size of [3, -8, 65_535]) {
      expect(await refusedAdd('x', 'ringbuf', { size })).toBe(`Failed to add chardev 'x': ${odd}`)
    }
    expect(await refusedAdd('x', 'ringbuf', { size: 1 })).toBe('accepted')
    expect(await refusedAdd('y', 'ringbuf', { size: 0 })).toBe('accepted')
  })
})

describe('qmp / chardevs / text', () => {
  const text = (...bytes: number[]) => decodeText(Uint8Array.from(bytes))

  test('qmp / chardevs / text / it ends at a zero byte, and writes zeroes as two bytes', () => {
    expect(text(0x61, 0, 0x62)).toBe('a')
    expect([...encodeText('a\0\0b')]).toEqual([0x61, 0xc0, 0x80, 0xc0, 0x80, 0x62])
    expect(decodeText(encodeText('€😀\0é'))).toBe('€😀\0é')
  })

  test('qmp / chardevs / text / a sequence that is none becomes one character', () => {
    expect(text(0xfe, 0xff)).toBe('\u{fffd}\u{fffd}')
    expect(text(0xc3)).toBe('\u{fffd}')
    expect(text(0xa9, 0xc3, 0xa9)).toBe('\u{fffd}é')
    expect(text(0xe2, 0x82, 0x61)).toBe('\u{fffd}a')
    expect(text(0xed, 0xa0, 0x80)).toBe('\u{fffd}')
    expect(text(0xf4, 0x90, 0x80, 0x80)).toBe('\u{fffd}')
    expect(text(0xc1, 0x81)).toBe('\u{fffd}')
  })

  test('qmp / chardevs / text / what was read stays what it was', () => {
    const ring = new RingBuffer(4)
    ring.write(Buffer.from('abcd'))
    const first = ring.read(2)
    ring.write(Buffer.from('efgh'))
    expect(first.toString()).toBe('ab')
    expect(ring.read(9).toString()).toBe('efgh')
  })
})

describe('qmp / chardevs / change', () => {
  test('qmp / chardevs / change / another kind takes the place of the old', async () => {
    await add('c', 'null')
    expect(await change('c', 'ringbuf')).toBe('accepted')
    await write('c', 'kept')
    expect(await kinds()).toEqual(['c: ringbuf'])
    expect(await change('c', 'ringbuf', { size: 3 })).toMatch(/power of two/)
    expect(await read('c', 9)).toBe('kept')
    expect(await change('no', 'null')).toBe("Chardev 'no' does not exist")
    expect(await change('c', 'zz')).toBe("Parameter 'type' does not accept value 'zz'")
    expect(await kinds()).toEqual(['c: ringbuf'])
  })

  test('qmp / chardevs / change / a multiplexer and what it uses stay', async () => {
    const missing = "Failed to add chardev 'm': mux: base chardev no not found"
    expect(await refusedAdd('m', 'mux', { chardev: 'no' })).toBe(missing)
    await add('c', 'null')
    await add('m', 'mux', { chardev: 'c' })
    expect(await change('m', 'null')).toBe('Mux device hotswap not supported yet')
    expect(await change('c', 'null')).toBe('Chardev user does not support chardev hotswap')
    expect(await rig.refused('chardev-remove', { id: 'c' })).toBe("Chardev 'c' is busy")
    expect(await refusedAdd('n', 'mux', { chardev: 'c' })).toBe(
      "Failed to add chardev 'n': Device 'c' is in use",
    )
    await rig.run('chardev-remove', { id: 'm' })
    await rig.run('chardev-remove', { id: 'c' })
    expect(await kinds()).toEqual([])
  })

  test('qmp / chardevs / change / a break goes to any device there is', async () => {
    await add('c', 'null')
    expect(await rig.run('chardev-send-break', { id: 'c' })).toEqual({})
    expect(await rig.refused('chardev-send-break', { id: 'no' })).toBe("Chardev 'no' not found")
  })
})
