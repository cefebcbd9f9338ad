/** The library's functions about images, in this process, without a foreign program. */
import { existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import {
  checkImage,
  compareImages,
  convertImage,
  createImage,
  type ImageExtent,
  inspectImage,
  mapImage,
  Runtime,
} from '../../../src/index.ts'

const MIB = 1024 * 1024
let dir: string

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'blockstep-images-'))
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

const at = (name: string): string => join(dir, name)

async function write(file: string, offset: number, data: Buffer): Promise<void> {
  await using runtime = await Runtime.create()
  await runtime.addNode({
    driver: 'qcow2',
    'node-name': 'w',
    file: { driver: 'file', filename: file },
  })
  const disk = await runtime.openBackend('w')
  await disk.pwrite(offset, data)
  await disk.flush()
}

async function mapped(file: string): Promise<ImageExtent[]> {
  const all: ImageExtent[] = []
  for await (const extent of mapImage(file)) all.push(extent)
  return all
}

/** An image with a MiB of data at 3 MiB. */
async function base(name = 'base'): Promise<string> {
  await createImage(at(name), { format: 'qcow2', size: 10 * MIB })
  await write(at(name), 3 * MIB, Buffer.alloc(MIB, 7))
  return at(name)
}

describe('images / create', () => {
  test('an overlay is as long as its backing image, which lies beside it', async () => {
    await base()
    const made = await createImage(at('top'), {
      format: 'qcow2',
      backingFile: 'base',
      backingFormat: 'qcow2',
    })
    expect(made.size).toBe(10 * MIB)
    const { backingFile, virtualSize, members } = await inspectImage(at('top'))
    expect(backingFile).toBe(at('base'))
    expect(virtualSize).toBe(10 * MIB)
    expect(members['backing-filename']).toBe('base')
  })

  test('options reach the image', async () => {
    const options = { clusterSize: 4096, lazyRefcounts: true, compressionType: 'zstd' } as const
    await createImage(at('i'), { format: 'qcow2', size: MIB, ...options })
    const { members } = await inspectImage(at('i'))
    expect(members['cluster-size']).toBe(4096)
    const data = { 'lazy-refcounts': true, 'compression-type': 'zstd' }
    expect(members['format-specific']).toMatchObject({ type: 'qcow2', data })
  })

  test('a size that is no multiple of a sector is rounded up', async () => {
    expect((await createImage(at('i'), { format: 'qcow2', size: 1000 })).size).toBe(1024)
  })

  test('nothing of a new file stays when it fails; an old file is not touched', async () => {
    const bad = { format: 'qcow2', size: MIB, clusterSize: 3 } as const
    await expect(createImage(at('new'), bad)).rejects.toThrow(/Cluster size must be/)
    expect(existsSync(at('new'))).toBe(false)
    writeFileSync(at('old'), 'precious')
    await expect(createImage(at('old'), bad)).rejects.toThrow(/Cluster size must be/)
    expect(readFileSync(at('old'), 'utf8')).toBe('precious')
  })

  test('refused: no size, no backing format, no backing image', async () => {
    const format = 'qcow2'
    await expect(createImage(at('i'), { format })).rejects.toThrow('needs a size parameter')
    const backingFile = 'missing'
    const lone = createImage(at('i'), { format, size: MIB, backingFile })
    await expect(lone).rejects.toThrow('Backing file specified without backing format')
    const overlay = { format, size: MIB, backingFile, backingFormat: 'qcow2' } as const
    await expect(createImage(at('i'), overlay)).rejects.toThrow('No such file or directory')
    expect(existsSync(at('i'))).toBe(false)
    await createImage(at('i'), { ...overlay, uncheckedBacking: true })
    expect(existsSync(at('i'))).toBe(true)
  })
})

describe('images / map', () => {
  test('each layer owns what it decides, and the last one what nobody holds', async () => {
    await base()
    await createImage(at('top'), {
      format: 'qcow2',
      size: 12 * MIB,
      backingFile: 'base',
      backingFormat: 'qcow2',
    })
    await write(at('top'), 0, Buffer.alloc(MIB, 8))
    const seen = (await mapped(at('top'))).map(({ start, depth, present, data }) => [
      start / MIB,
      depth,
      present,
      data,
    ])
    expect(seen).toEqual([
      [0, 0, true, true],
      [1, 1, false, false],
      [3, 1, true, true],
      [4, 1, false, false],
      [10, 0, false, false],
    ])
  })

  test('an empty image is one run of no bytes', async () => {
    writeFileSync(at('empty'), '')
    expect(await mapped(at('empty'))).toMatchObject([{ start: 0, length: 0, data: false }])
  })

  test('whoever stops early leaves nothing open', async () => {
    await base()
    for await (const extent of mapImage(at('base'))) {
      expect(extent.start).toBe(0)
      break
    }
  })
})

describe('images / names', () => {
  test('a node by its options is an image too', async () => {
    await base()
    const file = { driver: 'file', filename: at('base') }
    const window = { driver: 'raw', offset: 3 * MIB, size: MIB, file: { driver: 'qcow2', file } }
    const name = `json:${JSON.stringify(window)}`
    expect((await inspectImage(name)).virtualSize).toBe(MIB)
    await convertImage(name, at('copy'), { format: 'raw' })
    expect(readFileSync(at('copy')).equals(Buffer.alloc(MIB, 7))).toBe(true)
    await expect(inspectImage('json:{"driver": "nosuch"}')).rejects.toThrow(/does not accept/)
    await expect(inspectImage('json:')).rejects.toThrow("Parameter 'driver' is missing")
  })
})

describe('images / compare and convert', () => {
  for (const [name, options] of [
    ['raw', { format: 'raw' }],
    ['qcow2', { format: 'qcow2' }],
    ['qcow2 of small clusters', { format: 'qcow2', clusterSize: 512 }],
    ['compressed qcow2', { format: 'qcow2', compress: true }],
    [
      'compressed qcow2 of large clusters',
      { format: 'qcow2', compress: true, clusterSize: 2097152 },
    ],
  ] as const) {
    test(`a copy as ${name} shows the same`, async () => {
      await base()
      await convertImage(at('base'), at('copy'), options)
      expect(await compareImages(at('base'), at('copy'))).toEqual({
        equal: true,
        sizesDiffer: false,
        commonLength: 10 * MIB,
      })
      if (options.format !== 'qcow2') return
      expect(await checkImage(at('copy'))).toMatchObject({ corruptions: 0, leaks: 0 })
    })
  }

  test('into an image that is there: what it held is gone', async () => {
    await base()
    await createImage(at('old'), { format: 'qcow2', size: 10 * MIB })
    await write(at('old'), 0, Buffer.alloc(MIB, 9))
    await convertImage(at('base'), at('old'), { format: 'qcow2', existing: true })
    expect((await compareImages(at('base'), at('old'))).equal).toBe(true)
  })

  test('a copy over a backing image hides what lies below', async () => {
    await base()
    await createImage(at('empty'), { format: 'qcow2', size: 10 * MIB })
    const below = { backingFile: 'base', backingFormat: 'qcow2' }
    await convertImage(at('empty'), at('copy'), { format: 'qcow2', ...below })
    expect((await compareImages(at('empty'), at('copy'))).equal).toBe(true)
  })

  test('the first sector with other content is named', async () => {
    await base()
    await convertImage(at('base'), at('copy'), { format: 'qcow2' })
    await write(at('copy'), 3 * MIB + 5 * 512 + 17, Buffer.from('x'))
    expect(await compareImages(at('base'), at('copy'))).toMatchObject({
      equal: false,
      mismatchOffset: 3 * MIB + 5 * 512,
    })
  })

  test('what is longer is the same as long as it adds zeroes', async () => {
    await base()
    await createImage(at('long'), { format: 'qcow2', size: 12 * MIB })
    await convertImage(at('base'), at('long'), { format: 'qcow2', existing: true })
    expect(await compareImages(at('base'), at('long'))).toMatchObject({
      equal: true,
      sizesDiffer: true,
    })
    await write(at('long'), 11 * MIB, Buffer.from('x'))
    expect(await compareImages(at('long'), at('base'))).toMatchObject({
      equal: false,
      mismatchOffset: 11 * MIB,
    })
  })

  test('refused: onto itself, into what is too small, compressed raw', async () => {
    await base()
    const self = convertImage(at('base'), at('base'), { format: 'qcow2' })
    await expect(self).rejects.toThrow('Source and target are the same file')
    await createImage(at('small'), { format: 'raw', size: MIB })
    const small = convertImage(at('base'), at('small'), { format: 'raw', existing: true })
    await expect(small).rejects.toThrow('is smaller than the source')
    const packed = convertImage(at('base'), at('raw'), { format: 'raw', compress: true })
    await expect(packed).rejects.toThrow('Compression not supported for this file format')
    expect(existsSync(at('raw'))).toBe(false)
  })

  test('progress ends at the length of the disk', async () => {
    await base()
    const told: number[] = []
    await convertImage(at('base'), at('copy'), {
      format: 'raw',
      onProgress: (done, total) => told.push(done / total),
    })
    expect(told.at(-1)).toBe(1)
    expect(told.toSorted((a, b) => a - b)).toEqual(told)
  })
})

describe('images / check', () => {
  /** Sets the stored count of a cluster in an image whose only refcount block is cluster 2. */
  function setCount(file: string, cluster: number, count: number): void {
    const bytes = readFileSync(file)
    bytes.writeUInt16BE(count, 2 * 65536 + 2 * cluster)
    writeFileSync(file, bytes)
  }

  test('leaks are found and given back', async () => {
    await base()
    truncateSync(at('base'), readFileSync(at('base')).length + 4 * 65536)
    const last = readFileSync(at('base')).length / 65536 - 1
    setCount(at('base'), last, 1)
    expect(await checkImage(at('base'))).toMatchObject({ leaks: 1, corruptions: 0 })
    const repaired = await checkImage(at('base'), { repair: 'leaks' })
    expect(repaired).toMatchObject({ leaks: 0, leaksFixed: 1, corruptionsFixed: 0 })
    expect(repaired.before.leaks).toBe(1)
    expect((await checkImage(at('base'))).leaks).toBe(0)
  })

  test('a count that is too low is a corruption, which `leaks` leaves alone', async () => {
    await base()
    const before = readFileSync(at('base'))
    setCount(at('base'), 5, 0)
    const found = await checkImage(at('base'), { repair: 'leaks' })
    expect(found.corruptions).toBeGreaterThan(0)
    const repaired = await checkImage(at('base'), { repair: 'all' })
    expect(repaired).toMatchObject({ corruptions: 0, leaks: 0 })
    expect(repaired.corruptionsFixed).toBe(found.corruptions)
    expect(readFileSync(at('base')).equals(before)).toBe(true)
  })

  test('a raw image has nothing to check', async () => {
    writeFileSync(at('raw'), Buffer.alloc(4096))
    await expect(checkImage(at('raw'))).rejects.toMatchObject({ code: 'ENOTSUP' })
  })
})

test('examples / images / prints what it says', async () => {
  const log = vi.spyOn(console, 'log').mockImplementation(() => {})
  try {
    await import('../../../examples/images.ts')
    expect(log.mock.calls.map((words) => words.join(' '))).toEqual([
      'the disk is qcow2 of 64 MiB',
      '64 KiB of data at 1 MiB',
      'no errors, 1 of 1024 clusters used',
      'the copy shows the same: true',
    ])
  } finally {
    log.mockRestore()
  }
})
