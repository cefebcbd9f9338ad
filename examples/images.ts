import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  checkImage,
  compareImages,
  convertImage,
  createImage,
  inspectImage,
  mapImage,
  Runtime,
} from '../src/index.ts'

const KIB = 1024
const MIB = 1024 * KIB
const folder = await mkdtemp(join(tmpdir(), 'blockstep-example-'))
const disk = join(folder, 'disk.qcow2')
const copy = join(folder, 'copy.raw')
try {
  await createImage(disk, { format: 'qcow2', size: 64 * MIB })
  await fill(disk)

  const { format, virtualSize } = await inspectImage(disk)
  console.log('the disk is', format, 'of', virtualSize / MIB, 'MiB')

  for await (const { start, length, data } of mapImage(disk)) {
    if (data) console.log(length / KIB, 'KiB of data at', start / MIB, 'MiB')
  }

  const { corruptions, leaks, allocatedClusters, totalClusters } = await checkImage(disk)
  const verdict = corruptions + leaks === 0 ? 'no errors,' : 'errors,'
  console.log(verdict, allocatedClusters, 'of', totalClusters, 'clusters used')

  await convertImage(disk, copy, { format: 'raw' })
  const { equal } = await compareImages(disk, copy)
  console.log('the copy shows the same:', equal)
} finally {
  await rm(folder, { recursive: true })
}

async function fill(filename: string): Promise<void> {
  await using runtime = await Runtime.create()
  const file = { driver: 'file', filename }
  await runtime.addNode({ driver: 'qcow2', 'node-name': 'disk', file })
  const guest = await runtime.openBackend('disk')
  await guest.pwrite(MIB, Buffer.alloc(64 * KIB, 1))
  await guest.flush()
}
