import * as fs from 'node:fs'
import { afterEach, describe, expect, it } from 'vitest'
import type { BlockBackend } from '../../src/block/backend.ts'
import { FLAG } from '../../src/block/driver.ts'
import type { BlockNode } from '../../src/block/node.ts'
import { createQcow2, type Qcow2CreateOptions } from '../../src/drivers/qcow2/create.ts'
import { hostSeed, Random } from '../../src/util/random.ts'
import { drop, storeOf, take } from '../unit/drivers/qcow2-snapshots-support.ts'
import { Bench, haveTool, qcow2, qemuCheck, run } from '../unit/drivers/qcow2-support.ts'

const MiB = 1024 * 1024
const seed = process.env.SEED === undefined ? hostSeed() : Number(process.env.SEED)

let bench: Bench | undefined
afterEach(async () => {
  await bench?.close()
  bench = undefined
})

const flavours: Record<string, Omit<Qcow2CreateOptions, 'size'>> = {
  plain: {},
  'clusters of 512': { clusterSize: 512 },
  'clusters of 2M': { clusterSize: 2 * MiB },
  'version 2': { version: 2 },
  'refcounts of 2 bits': { refcountBits: 2, clusterSize: 4096 },
  'refcounts of 64 bits': { refcountBits: 64, clusterSize: 4096 },
  'lazy refcounts': { lazyRefcounts: true },
  'extended L2': { extendedL2: true },
}

interface World {
  readonly random: Random
  bytes: Uint8Array
  /** What every snapshot holds, by name. */
  readonly kept: Map<string, Uint8Array>
}

async function change(world: World, disk: BlockBackend): Promise<void> {
  const { random, bytes } = world
  const offset = random.int(bytes.length / 512) * 512
  const length = Math.min(bytes.length - offset, (random.int(400) + 1) * 512)
  const range = bytes.subarray(offset, offset + length)
  const kind = random.int(10)
  if (kind < 5) {
    range.fill(random.int(255) + 1)
    await disk.pwrite(offset, range.slice())
  } else if (kind < 7) {
    range.fill(0)
    await disk.pwriteZeroes(offset, length, random.int(2) === 0 ? FLAG.MAY_UNMAP : 0)
  } else if (kind < 8) {
    range.fill(random.int(255) + 1)
    await disk.pwrite(offset, range.slice(), FLAG.WRITE_COMPRESSED)
  } else await disk.flush()
}

async function snapshots(world: World, b: Bench, node: BlockNode, name: string): Promise<void> {
  const { random, kept } = world
  const list = storeOf(node).list()
  if (list.length < 2 || (list.length < 4 && random.int(2) === 0)) {
    // Narrow counters are full after three snapshots; a refusal must leave nothing behind.
    const refused = await take(b, node, name).then(
      () => false,
      () => true,
    )
    if (!refused) kept.set(name, world.bytes.slice())
    return
  }
  const gone = list[random.int(list.length)]
  await drop(b, node, gone?.id ?? '')
  kept.delete(gone?.name ?? '')
}

async function resize(world: World, b: Bench, node: BlockNode): Promise<void> {
  const size = (2 + world.random.int(5)) * MiB - 512 * world.random.int(3)
  await b.graph.withDrained(node, () => node.driver?.truncate?.(size))
  const bytes = new Uint8Array(size)
  bytes.set(world.bytes.subarray(0, size))
  world.bytes = bytes
}

function same(b: Bench, path: string, world: World): void {
  qemuCheck(path)
  const raw = b.path('raw')
  run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', path, raw)
  expect(Buffer.compare(fs.readFileSync(raw), world.bytes)).toBe(0)
  for (const [name, bytes] of world.kept) {
    run('qemu-img', 'convert', '-l', `snapshot.name=${name}`, '-O', 'raw', path, raw)
    // The tool reads a snapshot at the length that the disk has now.
    const seen = fs.readFileSync(raw).subarray(0, bytes.length)
    const should = bytes.subarray(0, seen.length)
    expect(Buffer.compare(seen, should), `snapshot ${name}`).toBe(0)
  }
}

describe.skipIf(!haveTool('qemu-img'))(
  `interop / qcow2 / snapshots (needs qemu-img; SEED=${seed})`,
  () => {
    for (const [name, options] of Object.entries(flavours))
      it(`interop / qcow2 / snapshots / ${name} / taken and dropped here and there`, async () => {
        bench = new Bench()
        const path = bench.path('a')
        await createQcow2(path, { size: 4 * MiB, ...options })
        const random = new Random(seed)
        const world: World = { random, bytes: new Uint8Array(4 * MiB), kept: new Map() }
        for (let round = 0; round < 2; round++) {
          const { node, disk } = await bench.open(qcow2(path, { discard: 'unmap' }))
          expect(
            storeOf(node)
              .list()
              .map((one) => one.name),
          ).toEqual([...world.kept.keys()])
          for (let step = 0; step < 30; step++) {
            if (random.int(6) === 0) await snapshots(world, bench, node, `s${round}.${step}`)
            else if (random.int(20) === 0 && options.version !== 2) await resize(world, bench, node)
            else await change(world, disk)
          }
          await bench.shut(disk)
          same(bench, path, world)
          const [first] = world.kept.keys()
          if (first === undefined) continue
          // The other tool changes what was made here; it needs counters with room to do so.
          if (options.refcountBits !== 2) {
            run('qemu-img', 'snapshot', '-a', first, path)
            world.bytes = world.kept.get(first)?.slice() ?? world.bytes
          }
          run('qemu-img', 'snapshot', '-d', first, path)
          world.kept.delete(first)
          if (random.int(2) === 0 && options.refcountBits !== 2) {
            run('qemu-img', 'snapshot', '-c', `q${round}`, path)
            world.kept.set(`q${round}`, world.bytes.slice())
          }
          same(bench, path, world)
        }
      })
  },
)
