import * as fs from 'node:fs'
import type { BlockdevOptions } from '../../src/block/driver.ts'
import type { Qcow2CreateOptions } from '../../src/drivers/qcow2/create.ts'
import { createQcow2 } from '../../src/drivers/qcow2/create.ts'
import { NbdServer } from '../../src/nbd/server.ts'
import type { Bench } from '../unit/drivers/qcow2-support.ts'
import { type DriverCase, driverSuite, fullBench, viewSuite } from './driver-suite.ts'

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

/** A disk behind a server of our own, over a socket. */
async function nbd(bench: Bench): Promise<BlockdevOptions> {
  const far = fullBench()
  const { disk } = await far.open({ ...memory, 'node-name': 'far' })
  const server = new NbdServer({ ctx: far.ctx })
  const path = bench.path('socket')
  await server.listen({ type: 'unix', path })
  server.addExport({ name: '', backend: disk, readOnly: false })
  bench.onClose(async () => {
    await server.close()
    await far.close()
  })
  return { driver: 'nbd', server: { type: 'unix', path }, discard: 'unmap' }
}

const named = (options: BlockdevOptions): BlockdevOptions => ({ ...options, 'node-name': 'disk' })
const memory: BlockdevOptions = { driver: 'memory', size: SIZE, discard: 'unmap' }

/** A filter and what was written inside of it are reopened as one, or not at all. */
const NO_REOPEN = /Block format '[\w-]+' used by node '[\w#-]+' does not support reopening files/

/** Every driver bare: what is made, and what it can beside the usual. */
const TABLE: readonly DriverCase[] = [
  { name: 'file', make: file },
  { name: 'memory', make: () => memory },
  {
    name: 'null-co',
    content: 'gone',
    make: () => ({ driver: 'null-co', size: SIZE, 'read-zeroes': true }),
  },
  {
    name: 'null-aio',
    content: 'gone',
    make: () => ({ driver: 'null-aio', size: SIZE, 'read-zeroes': true }),
  },
  { name: 'raw', make: (bench) => ({ driver: 'raw', file: file(bench) }) },
  {
    name: 'raw with a window',
    make: (bench) => ({ driver: 'raw', file: file(bench, 3 * SIZE), offset: SIZE, size: SIZE }),
  },
  { name: 'qcow2', make: (bench) => qcow2(bench) },
  { name: 'qcow2 with clusters of 512', make: (bench) => qcow2(bench, { clusterSize: 512 }) },
  { name: 'qcow2 with subclusters', make: (bench) => qcow2(bench, { extendedL2: true }) },
  { name: 'qcow2 version 2', make: (bench) => qcow2(bench, { version: 2 }) },
  {
    name: 'qcow2 over an empty backing image',
    make: async (bench) => ({ ...(await qcow2(bench)), backing: memory }),
  },
  { name: 'blkdebug', make: () => ({ driver: 'blkdebug', image: memory }) },
  {
    name: 'blkdebug with an alignment of 4096',
    make: () => ({ driver: 'blkdebug', image: memory, align: 4096, 'max-transfer': 65536 }),
  },
  {
    name: 'qcow2 over an aligned child',
    make: async (bench) => {
      const below = await qcow2(bench)
      const image = below.file as BlockdevOptions
      return { ...below, file: { driver: 'blkdebug', image, align: 512 } }
    },
  },
  {
    name: 'throttle',
    make: () => ({ driver: 'throttle', 'throttle-group': 'free', file: memory }),
  },
  {
    name: 'copy-on-read',
    reopen: NO_REOPEN,
    make: () => ({ driver: 'copy-on-read', file: { ...memory, backing: memory } }),
  },
  {
    name: 'compress',
    reopen: NO_REOPEN,
    make: async (bench) => ({ driver: 'compress', file: await qcow2(bench) }),
  },
  {
    name: 'copy-before-write',
    reopen: NO_REOPEN,
    make: () => ({ driver: 'copy-before-write', file: memory, target: memory }),
  },
  {
    name: 'blkverify',
    reopen: NO_REOPEN,
    make: () => ({ driver: 'blkverify', test: memory, raw: memory }),
  },
  {
    name: 'quorum',
    reopen: NO_REOPEN,
    make: () => ({ driver: 'quorum', children: [memory, memory, memory], 'vote-threshold': 2 }),
  },
  { name: 'nbd', make: (bench) => nbd(bench) },
  {
    name: 'preallocate',
    make: (bench) => ({ driver: 'preallocate', file: file(bench) }),
  },
]

/** A bound on requests that is not below what a driver takes at least: `compress` whole clusters. */
const mostAtOnce = ({ driver }: BlockdevOptions): number => (driver === 'compress' ? 65536 : 32768)

/** What is put over each of them: one filter, or several that have to agree. */
const OVER: readonly (readonly [
  name: string,
  reopens: boolean,
  over: (file: BlockdevOptions) => BlockdevOptions,
])[] = [
  ['throttle', true, (below) => ({ driver: 'throttle', 'throttle-group': 'free', file: below })],
  [
    'blkdebug of 512 bytes and copy-on-read',
    false,
    (below) => ({
      driver: 'copy-on-read',
      file: { driver: 'blkdebug', align: 512, 'max-transfer': mostAtOnce(below), image: below },
    }),
  ],
]

for (const one of TABLE) {
  driverSuite({ ...one, make: async (bench) => named(await one.make(bench)) })
  for (const [name, reopens, over] of OVER)
    driverSuite({
      name: `${one.name} under ${name}`,
      content: one.content ?? 'kept',
      reopen: reopens ? (one.reopen ?? 'yes') : NO_REOPEN,
      make: async (bench) => named(over(await one.make(bench))),
    })
}

viewSuite({
  name: 'snapshot-access',
  value: 7,
  make: async (bench) => {
    await bench.graph.add({ ...memory, 'node-name': 'source' })
    const { disk } = await bench.openNode(bench.graph.lookup('source'))
    await disk.pwrite(0, new Uint8Array(SIZE).fill(7))
    await disk.close()
    const filter = { driver: 'copy-before-write', 'node-name': 'filter', target: memory }
    const guest = await bench.open({ ...filter, file: 'source' })
    await guest.disk.pwrite(100_000, new Uint8Array(300_000).fill(9))
    return { driver: 'snapshot-access', 'node-name': 'disk', 'read-only': true, file: 'filter' }
  },
})
