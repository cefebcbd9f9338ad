import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { BlockNode } from '../../../src/block/node.ts'
import { copyBeforeWriteDriver } from '../../../src/drivers/copy-before-write.ts'
import { fileDriver } from '../../../src/drivers/file.ts'
import { rawDriver } from '../../../src/drivers/raw.ts'
import { startBackup } from '../../../src/job/backup.ts'
import { startMirror } from '../../../src/job/start-mirror.ts'
import { type Bench, bench, isAll, pattern, readAt, until } from './fixture.ts'

const MIB = 1024 * 1024
const SIZE = 20 * MIB

let folder = ''

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'job-'))
})

afterEach(() => rmSync(folder, { recursive: true }))

/** A file with holes but for two pieces of data. */
function sparse(name: string, data: readonly number[]): string {
  const path = join(folder, name)
  const fd = openSync(path, 'w')
  ftruncateSync(fd, SIZE)
  for (const at of data) writeSync(fd, pattern(0x11, MIB), 0, MIB, at)
  closeSync(fd)
  return path
}

function raw(b: Bench, name: string, filename: string): Promise<BlockNode> {
  return b.add({ driver: 'raw', 'node-name': name, file: { driver: 'file', filename } })
}

async function run(b: Bench, kind: string, source: BlockNode, target: BlockNode): Promise<void> {
  const options = { jobId: 'j', source, target, sync: 'full' } as const
  if (kind === 'backup') {
    const { job, bodies } = await startBackup(b.graph, b.registry, b.pool, options)
    expect(bodies).toHaveLength(1)
    await job.done
    expect(job.error).toBeUndefined()
    return
  }
  const job = await startMirror(b.graph, b.registry, b.pool, options)
  await until(() => job.ready || job.completed)
  job.userCancel(false)
  await job.done
  expect(job.error).toBeUndefined()
}

const allocated = (path: string): number => statSync(path).blocks * 512

for (const kind of ['backup', 'mirror']) {
  test(`job / sparse / ${kind} / holes of a file stay holes in a new file`, async () => {
    const from = sparse('from.raw', [0, 10 * MIB + 65536])
    const to = sparse('to.raw', [])
    await using b = bench(copyBeforeWriteDriver, fileDriver, rawDriver)
    await run(b, kind, await raw(b, 'source', from), await raw(b, 'target', to))
    expect(Buffer.compare(readFileSync(from), readFileSync(to))).toBe(0)
    expect(allocated(to)).toBeLessThan(4 * MIB)
  })

  test(`job / sparse / ${kind} / a hole covers what the target held there`, async () => {
    const from = sparse('from.raw', [5 * MIB])
    const to = join(folder, 'to.raw')
    writeFileSync(to, pattern(0xee, SIZE))
    await using b = bench(copyBeforeWriteDriver, fileDriver, rawDriver)
    await run(b, kind, await raw(b, 'source', from), await raw(b, 'target', to))
    expect(Buffer.compare(readFileSync(from), readFileSync(to))).toBe(0)
  })

  test(`job / sparse / ${kind} / empty memory leaves a file as empty as it was`, async () => {
    const to = sparse('to.raw', [])
    await using b = bench(copyBeforeWriteDriver, fileDriver, rawDriver)
    const source = await b.add({ driver: 'memory', 'node-name': 'source', size: SIZE })
    await (await b.guest(source)).pwrite(3 * MIB, pattern(0x22, MIB))
    await run(b, kind, source, await raw(b, 'target', to))
    expect(isAll(readFileSync(to).subarray(3 * MIB, 4 * MIB), 0x22)).toBe(true)
    expect(allocated(to)).toBeLessThan(2 * MIB)
  })

  test(`job / sparse / ${kind} / zeroes of a file take no room in memory`, async () => {
    const from = sparse('from.raw', [7 * MIB])
    await using b = bench(copyBeforeWriteDriver, fileDriver, rawDriver)
    const target = await b.add({ driver: 'memory', 'node-name': 'target', size: SIZE })
    await run(b, kind, await raw(b, 'source', from), target)
    expect(Buffer.compare(await readAt(target.driver!, 0, SIZE), readFileSync(from))).toBe(0)
    const status = await target.driver?.blockStatus?.(0, SIZE)
    expect(status?.bytes).toBe(7 * MIB)
  })
}

test('job / sparse / mirror / a target that looks for zeroes finds them in data of memory', async () => {
  const to = sparse('to.raw', [])
  await using b = bench(fileDriver, rawDriver)
  const source = await b.add({ driver: 'memory', 'node-name': 'source', size: SIZE })
  await (await b.guest(source)).pwrite(0, pattern(0, SIZE))
  const target = await b.add({
    driver: 'raw',
    'node-name': 'target',
    'detect-zeroes': 'unmap',
    discard: 'unmap',
    file: { driver: 'file', filename: to },
  })
  await run(b, 'mirror', source, target)
  expect(allocated(to)).toBe(0)
})

test.each(['ignore', 'unmap'] as const)(
  'job / sparse / mirror / a full file with discard=%s',
  async (discard) => {
    const from = sparse('from.raw', [5 * MIB])
    const to = join(folder, 'to.raw')
    writeFileSync(to, pattern(0xee, SIZE))
    await using b = bench(fileDriver, rawDriver)
    const target = await b.add({
      driver: 'raw',
      'node-name': 'target',
      discard,
      file: { driver: 'file', filename: to },
    })
    await run(b, 'mirror', await raw(b, 'source', from), target)
    expect(Buffer.compare(readFileSync(from), readFileSync(to))).toBe(0)
    expect(allocated(to) < 2 * MIB).toBe(discard === 'unmap')
  },
)

test('job / backup / a file that was renamed while it is open is still the one that is written', async () => {
  const from = sparse('from.raw', [0])
  const to = sparse('to.raw', [])
  await using b = bench(copyBeforeWriteDriver, fileDriver, rawDriver)
  const source = await raw(b, 'source', from)
  const target = await raw(b, 'target', to)
  renameSync(to, join(folder, 'moved.raw'))
  const { job, bodies } = await startBackup(b.graph, b.registry, b.pool, {
    jobId: 'b',
    source,
    target,
    sync: 'full',
  })
  expect(bodies).toHaveLength(1)
  await job.done
  expect(job.error).toBeUndefined()
  expect(Buffer.compare(readFileSync(from), readFileSync(join(folder, 'moved.raw')))).toBe(0)
})
