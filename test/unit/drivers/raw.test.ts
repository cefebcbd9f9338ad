import * as fs from 'node:fs'
import { afterEach, describe, expect, it } from 'vitest'
import { Bench } from './qcow2-support.ts'

let bench: Bench
afterEach(() => bench.close())

function start(bytes: number): { b: Bench; file: { driver: string; filename: string } } {
  bench = new Bench()
  fs.writeFileSync(
    bench.path('f'),
    Buffer.alloc(bytes)
      .fill(1, 0, bytes / 2)
      .fill(2, bytes / 2),
  )
  return { b: bench, file: { driver: 'file', filename: bench.path('f') } }
}

describe('raw', () => {
  it('raw / window / one that does not fit is refused with the numbers', async () => {
    const { b, file } = start(1000)
    const open = (more: object) => b.open({ driver: 'raw', 'node-name': 'r', file, ...more })
    await expect(open({ offset: 4096 })).rejects.toThrow(
      'Offset (4096) cannot be greater than size of the containing file (1024)',
    )
    await expect(open({ offset: 512, size: 1024 })).rejects.toThrow(
      'The sum of offset (512) and size (1024) has to be smaller or equal to the ' +
        ' actual size of the containing file (1024)',
    )
    await expect(open({ size: 100 })).rejects.toThrow('Specified size is not multiple of 512')
  })

  it('raw / window / a reopen moves it', async () => {
    const { b, file } = start(2 << 20)
    const options = { driver: 'raw', 'node-name': 'r', file } as const
    const { node, disk } = await b.open(options)
    const first = async (): Promise<number | undefined> => {
      const got = new Uint8Array(512)
      await disk.pread(0, got)
      return got[0]
    }
    expect(await first()).toBe(1)
    await b.graph.reopen([{ node, options: { ...options, offset: 1 << 20 } }])
    expect(await first()).toBe(2)
    expect(disk.length()).toBe(1 << 20)
    await b.graph.reopen([{ node, options }])
    expect(await first()).toBe(1)
  })

  it('raw / describe / passes on the file with the window', async () => {
    const { b, file } = start(4096)
    const { node } = await b.open({
      driver: 'raw',
      'node-name': 'r',
      file,
      offset: 512,
      size: 1024,
    })
    expect(node.driver?.describe?.()).toMatchObject({ kind: 'file', offset: 512, size: 1024 })
  })
})
