import * as fs from 'node:fs'
import { afterEach, describe, expect, it } from 'vitest'
import { STATUS } from '../../../src/block/driver.ts'
import { Bench } from './qcow2-support.ts'

let bench: Bench
afterEach(() => bench.close())

function start(): Bench {
  bench = new Bench()
  return bench
}

describe('file', () => {
  it('file / open / a missing file, a folder and a device are named', async () => {
    const b = start()
    const open = (filename: string) => b.open({ driver: 'file', 'node-name': 'f', filename })
    await expect(open('/nonexistent')).rejects.toThrow(
      /^Could not open '\/nonexistent': No such file or directory$/,
    )
    await expect(open('/tmp')).rejects.toThrow("Could not open '/tmp': Is a directory")
    await expect(open('/dev/null')).rejects.toThrow(
      "'file' driver requires '/dev/null' to be a regular file",
    )
    expect(b.graph.nodes()).toEqual([])
  })

  it('file / length / an odd length is rounded up and its rest reads as zeroes', async () => {
    const b = start()
    fs.writeFileSync(b.path('f'), Buffer.alloc(1000, 1))
    const { disk } = await b.open({ driver: 'file', 'node-name': 'f', filename: b.path('f') })
    expect(disk.length()).toBe(1024)
    const got = new Uint8Array(1024).fill(9)
    await disk.pread(0, got)
    expect([...got.subarray(998, 1002)]).toEqual([1, 1, 0, 0])
  })

  it('file / requests / small ones finish inline, large ones later, over shared memory too', async () => {
    const b = start()
    fs.writeFileSync(b.path('f'), '')
    fs.truncateSync(b.path('f'), 1 << 20)
    const { node, disk } = await b.open({ driver: 'file', 'node-name': 'f', filename: b.path('f') })
    const small = new Uint8Array(new SharedArrayBuffer(65536)).fill(3)
    const large = new Uint8Array(new SharedArrayBuffer(1 << 19)).fill(4)
    expect(node.driver?.pwrite(0, small, 0)).toBeUndefined()
    expect(node.driver?.pread(0, small)).toBeUndefined()
    const later = node.driver?.pwrite(1 << 19, large, 0)
    expect(later).toBeInstanceOf(Promise)
    await later
    large.fill(0)
    await disk.pread(1 << 19, large)
    expect(large.every((byte) => byte === 4)).toBe(true)
  })

  it('file / status / a file without blocks is one hole', async () => {
    const b = start()
    fs.writeFileSync(b.path('f'), '')
    fs.truncateSync(b.path('f'), 1 << 20)
    const { disk } = await b.open({ driver: 'file', 'node-name': 'f', filename: b.path('f') })
    expect(((await disk.blockStatus(0, 4096)).flags & STATUS.ZERO) !== 0).toBe(true)
    await disk.pwrite(0, new Uint8Array(512).fill(1))
    expect(((await disk.blockStatus(0, 4096)).flags & STATUS.DATA) !== 0).toBe(true)
  })

  it('file / reopen / read-only changes, the file does not', async () => {
    const b = start()
    fs.writeFileSync(b.path('f'), Buffer.alloc(4096))
    const options = { driver: 'file', 'node-name': 'f', filename: b.path('f') } as const
    const node = await b.graph.add(options)
    await b.graph.setReadOnly(node, true)
    expect(node.readOnly).toBe(true)
    await b.graph.setReadOnly(node, false)
    const other = { ...options, filename: b.path('g') }
    await expect(b.graph.reopen([{ node, options: other }])).rejects.toThrow(
      "Cannot change the option 'filename'",
    )
  })

  it('file / describe / says where the bytes are', async () => {
    const b = start()
    fs.writeFileSync(b.path('f'), Buffer.alloc(4096))
    const node = await b.graph.add({ driver: 'file', 'node-name': 'f', filename: b.path('f') })
    const filename = b.path('f')
    expect(node.driver?.describe?.()).toMatchObject({
      kind: 'file',
      filename,
      readOnly: false,
      size: 4096,
    })
  })
})
