import { afterEach, describe, expect, it } from 'vitest'
import { FLAG } from '../../../src/block/driver.ts'
import { checkQcow2 } from '../../../src/drivers/qcow2/check.ts'
import type { Qcow2CreateOptions } from '../../../src/drivers/qcow2/create.ts'
import { encodeNewImage } from '../../../src/drivers/qcow2/create.ts'
import { crash, History, IMAGE, Recorder, random, SECTOR, SIZE } from './qcow2-crash-support.ts'
import { Bench, DRIVERS } from './qcow2-support.ts'

let bench: Bench | undefined
afterEach(async () => {
  await bench?.close()
  bench = undefined
})

const flavours: Record<string, Omit<Qcow2CreateOptions, 'size'>> = {
  'clusters of 4k': { clusterSize: 4096 },
  'clusters of 512, refcounts of 64 bits': { clusterSize: 512, refcountBits: 64 },
  'clusters of 64k': {},
  'lazy refcounts': { clusterSize: 4096, lazyRefcounts: true },
}

/** Works on a disk for a while, then cuts the power at many places; answers what was unsound. */
async function explore(
  options: Omit<Qcow2CreateOptions, 'size'>,
  seed: number,
  rounds: number,
  lies: boolean,
): Promise<string[]> {
  const next = random(seed)
  const recorder = new Recorder()
  recorder.lies = lies
  bench = new Bench([...DRIVERS, recorder.definition])
  const first = encodeNewImage({ size: SIZE, ...options })
  recorder.load(first, first.length)
  const { node, disk } = await bench.open(IMAGE)
  const history = new History()
  for (let step = 1; step <= 60; step++) {
    const offset = next(SIZE / SECTOR) * SECTOR
    const bytes = Math.min(SIZE - offset, (next(40) + 1) * SECTOR)
    const kind = next(20)
    if (kind < 10) {
      history.wrote(step, offset, bytes, step)
      await disk.pwrite(offset, new Uint8Array(bytes).fill(step))
    } else if (kind < 14) {
      history.wrote(step, offset, bytes, 0)
      await disk.pwriteZeroes(offset, bytes, FLAG.MAY_UNMAP)
    } else if (kind < 19) {
      await disk.flush()
      history.flushed(step, recorder.log.length)
    } else {
      history.wrote(step, 0, SIZE, 0)
      await bench.graph.withDrained(node, () => node.driver?.makeEmpty?.())
    }
  }
  await bench.shut(disk)
  const log = [...recorder.log]
  const unsound: string[] = []
  for (let round = 0; round < rounds; round++) {
    const cut = next(log.length + 1)
    const left = crash(first, log, cut, next)
    recorder.load(left.bytes, left.end)
    const where = `seed ${seed}, cut ${cut} of ${log.length}`
    const lazy = options.lazyRefcounts === true
    const after = await bench.open({ ...IMAGE, 'read-only': !lazy })
    const file = after.node.children.get('file')
    if (file === undefined) throw new Error('no file child')
    const found = await checkQcow2(file)
    if (found.corruptions > 0) unsound.push(`${where}: ${found.messages.join('; ')}`)
    const got = new Uint8Array(SIZE)
    await after.disk.pread(0, got)
    for (const text of history.unexplained(got, cut)) unsound.push(`${where}: ${text}`)
    await bench.shut(after.disk)
  }
  return unsound
}

describe('qcow2 / crash', () => {
  for (const [name, options] of Object.entries(flavours))
    it(`qcow2 / crash / ${name} / every power cut leaves a sound image with what was flushed`, async () => {
      expect(await explore(options, 77, 15, false)).toEqual([])
      await bench?.close()
      expect(await explore(options, 78, 15, false)).toEqual([])
    })

  it('qcow2 / crash / a disk that lies about flushes is caught', async () => {
    expect(await explore({ clusterSize: 4096 }, 77, 15, true)).not.toEqual([])
  })
})
