import * as fs from 'node:fs'
import type { BlockdevOptions } from '../../src/block/driver.ts'
import type { Qcow2CreateOptions } from '../../src/drivers/qcow2/create.ts'
import { createQcow2 } from '../../src/drivers/qcow2/create.ts'
import type { Bench } from '../unit/drivers/qcow2-support.ts'
import { driverSuite } from './driver-suite.ts'

const SIZE = 1024 * 1024

function file(bench: Bench, bytes: number = SIZE): BlockdevOptions {
  fs.closeSync(fs.openSync(bench.path('f'), 'w'))
  fs.truncateSync(bench.path('f'), bytes)
  return { driver: 'file', filename: bench.path('f'), discard: 'unmap' }
}

async function qcow2(
  bench: Bench,
  options: Partial<Qcow2CreateOptions> = {},
): Promise<BlockdevOptions> {
  await createQcow2(bench.path('q'), { size: SIZE, ...options })
  const below = { driver: 'file', filename: bench.path('q') }
  return { driver: 'qcow2', file: below, discard: 'unmap' }
}

const named = (options: BlockdevOptions): BlockdevOptions => ({ ...options, 'node-name': 'disk' })
const memory: BlockdevOptions = { driver: 'memory', size: SIZE, discard: 'unmap' }

driverSuite({ name: 'file', make: (bench) => named(file(bench)) })
driverSuite({ name: 'memory', make: () => named(memory) })
driverSuite({
  name: 'null-co',
  forgets: true,
  make: () => named({ driver: 'null-co', size: SIZE, 'read-zeroes': true }),
})
driverSuite({ name: 'raw', make: (bench) => named({ driver: 'raw', file: file(bench) }) })
driverSuite({
  name: 'raw with a window',
  make: (bench) => named({ driver: 'raw', file: file(bench, 3 * SIZE), offset: SIZE, size: SIZE }),
})
driverSuite({ name: 'qcow2', make: async (bench) => named(await qcow2(bench)) })
driverSuite({
  name: 'qcow2 with clusters of 512',
  make: async (bench) => named(await qcow2(bench, { clusterSize: 512 })),
})
driverSuite({
  name: 'qcow2 with subclusters',
  make: async (bench) => named(await qcow2(bench, { extendedL2: true })),
})
driverSuite({
  name: 'qcow2 version 2',
  make: async (bench) => named(await qcow2(bench, { version: 2 })),
})
driverSuite({
  name: 'qcow2 over an empty backing image',
  make: async (bench) => named({ ...(await qcow2(bench)), backing: memory }),
})
driverSuite({ name: 'blkdebug', make: () => named({ driver: 'blkdebug', image: memory }) })
driverSuite({
  name: 'blkdebug with an alignment of 4096',
  make: () => named({ driver: 'blkdebug', image: memory, align: 4096, 'max-transfer': 65536 }),
})
driverSuite({
  name: 'qcow2 over an aligned child',
  make: async (bench) => {
    const below = await qcow2(bench)
    const image = below.file as BlockdevOptions
    return named({ ...below, file: { driver: 'blkdebug', image, align: 512 } })
  },
})
