/** What a pair promises when something goes wrong, one promise a test, through the public way in. */
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import {
  BlockError,
  type BufferStale,
  createPrimary,
  createQcow2,
  createSecondary,
  type ForwardError,
  type HiddenWatermark,
  Runtime,
  type ServerAddress,
  type StageChange,
} from '../../src/index.ts'
import { fill, patternOf } from '../support/graph.ts'
import { turn } from '../support/tap.ts'

const K64 = 65536
const MiB = 1024 * 1024
const folder = mkdtempSync(join(tmpdir(), 'promises-'))
let names = 0

afterAll(() => rmSync(folder, { recursive: true, force: true }))

type UnixAddress = ServerAddress & { readonly type: 'unix' }
const socket = (): UnixAddress => ({ type: 'unix', path: join(folder, `s${names++}`) })

/** A line between two sockets that counts, and that can hang or be cut. */
class Line implements AsyncDisposable {
  readonly address: UnixAddress = socket()
  /** Bytes that went to the other end. */
  sent = 0
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  #hangs = false

  constructor(to: string) {
    this.#server = createServer((near) => {
      const far = connect(to)
      for (const end of [near, far]) {
        this.#sockets.add(end)
        end.on('error', () => undefined)
        end.on('close', () => this.#sockets.delete(end))
      }
      near.on('data', (bytes) => {
        this.sent += bytes.length
        if (!this.#hangs) far.write(bytes)
      })
      far.on('data', (bytes) => void near.write(bytes))
      near.on('close', () => far.destroy())
      far.on('close', () => near.destroy())
    })
  }

  async open(): Promise<this> {
    this.#server.listen(this.address.path)
    await once(this.#server, 'listening')
    return this
  }

  /** Nothing arrives any more; both ends still think that they are connected. */
  hang(on: boolean): void {
    this.#hangs = on
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close()
    for (const end of this.#sockets) end.destroy()
  }
}

const pathOf = (address: ServerAddress): string => (address as UnixAddress).path

test('replication / promises / a hung connection is cut after a timeout, and the guest goes on', async () => {
  const disk = { memory: MiB }
  await using secondary = await createSecondary({ disk, exportAt: socket() })
  await using line = await new Line(pathOf(secondary.address)).open()
  await using primary = await createPrimary({
    disk,
    secondary: line.address,
    requestTimeout: 1,
    reconnectDelay: 0,
  })
  const errors: ForwardError[] = []
  primary.on('forward-error', (error) => errors.push(error))
  line.hang(true)
  await fill(primary.backend, 0x22, K64, 4096)
  expect(await patternOf(primary.backend, K64, 4096)).toBe(0x22)
  expect(errors).toMatchObject([{ offset: K64, length: 4096 }])
  expect(primary.status()).toMatchObject({
    error: 'I/O error occurred',
    forwardFailures: 1,
    lastFailure: { offset: K64, bytes: 4096, atMs: expect.any(Number) as number },
  })
  await expect(primary.checkpoint()).rejects.toMatchObject({ code: 'EIO' })
  line.hang(false)
  // The next connection is made behind our back: try until it is there.
  while (primary.status().error !== undefined) await primary.resync().catch(turn)
  await primary.checkpoint()
  await secondary.checkpoint()
  expect(await patternOf(secondary.backend, K64, 4096)).toBe(0x22)
})

test('replication / promises / a resync copies only what is missing, then the error clears', async () => {
  const fault = { event: 'none', iotype: 'write', errno: 5, once: true }
  const image = { driver: 'memory', size: 16 * MiB }
  const disk = { driver: 'blkdebug', image, 'inject-error': [fault] }
  await using secondary = await createSecondary({ disk, exportAt: socket() })
  await using line = await new Line(pathOf(secondary.address)).open()
  const own = { memory: 16 * MiB }
  await using primary = await createPrimary({ disk: own, secondary: line.address })
  await fill(primary.backend, 0x22, 3 * MiB + 512, 1024)
  expect(primary.status()).toMatchObject({ missingBytes: K64, forwardFailures: 1 })
  await fill(primary.backend, 0x23, 5 * MiB, MiB)
  await expect(primary.checkpoint()).rejects.toMatchObject({ code: 'EIO' })
  const before = line.sent
  await primary.resync()
  expect(line.sent - before).toBeGreaterThanOrEqual(K64)
  expect(line.sent - before).toBeLessThan(2 * K64)
  expect(primary.status()).toMatchObject({ missingBytes: 0, forwardFailures: 0 })
  expect(primary.status().error).toBeUndefined()
  await primary.checkpoint()
  await secondary.checkpoint()
  expect(await patternOf(secondary.backend, 3 * MiB + 512, 1024)).toBe(0x22)
})

test('replication / promises / a watermark warns once before the hidden disk is full', async () => {
  const disk = { memory: 4 * MiB }
  await using secondary = await createSecondary({
    disk,
    exportAt: socket(),
    hiddenWatermark: 4 * K64,
  })
  await using primary = await createPrimary({ disk, secondary: secondary.address })
  const warnings: HiddenWatermark[] = []
  secondary.on('hidden-watermark', (warning) => warnings.push(warning))
  await fill(primary.backend, 0x22, 0, 3 * K64)
  expect(warnings).toEqual([])
  await fill(primary.backend, 0x22, 3 * K64, 8 * K64)
  expect(warnings).toEqual([{ bytes: expect.any(Number) as number, watermark: 4 * K64 }])
  await primary.checkpoint()
  await secondary.checkpoint()
  await fill(primary.backend, 0x23, 0, 8 * K64)
  expect(warnings).toHaveLength(2)
})

/** Clusters that an image holds itself; undefined without the tool. */
function allocated(file: string): number | undefined {
  const { error, stdout } = spawnSync('qemu-img', ['check', '-U', '--output=json', file], {
    encoding: 'utf8',
  })
  if (error !== undefined && process.env.CI !== 'true') {
    console.log('skipped: qemu-img is missing')
    return undefined
  }
  const report = JSON.parse(stdout) as { 'allocated-clusters'?: number; corruptions?: number }
  expect(report.corruptions ?? 0).toBe(0)
  return report['allocated-clusters'] ?? 0
}

test('replication / promises / after a failover active and hidden images are empty', async () => {
  const files = { active: join(folder, 'e-active'), hidden: join(folder, 'e-hidden') }
  for (const file of Object.values(files)) await createQcow2(file, { size: 4 * MiB })
  const disk = { memory: 4 * MiB }
  await using secondary = await createSecondary({
    disk,
    active: { file: files.active, format: 'qcow2' },
    hidden: { file: files.hidden, format: 'qcow2' },
    exportAt: socket(),
  })
  await using primary = await createPrimary({ disk, secondary: secondary.address })
  await fill(primary.backend, 0x22, 0, MiB)
  await fill(secondary.backend, 0x33, MiB, MiB)
  await secondary.failover()
  for (const file of Object.values(files)) expect(allocated(file) ?? 0).toBe(0)
})

test('replication / promises / a buffer that cannot be emptied after a failover is named stale', async () => {
  const disk = { memory: 4 * MiB }
  await using secondary = await createSecondary({ disk, exportAt: socket() })
  await using primary = await createPrimary({ disk, secondary: secondary.address })
  const stale: BufferStale[] = []
  secondary.on('buffer-stale', (told) => stale.push(told))
  await fill(primary.backend, 0x22, 0, MiB)
  await fill(secondary.backend, 0x33, MiB, MiB)
  secondary.runtime.graph.lookup(undefined, 'hidden').needDriver().makeEmpty = () => {
    throw new BlockError('ENOSPC', 'no room to write the empty table')
  }
  await secondary.failover()
  expect(stale).toEqual([{ buffer: 'hidden', error: 'no room to write the empty table' }])
  expect(secondary.status()).toMatchObject({ stage: 'done' })
  expect(await patternOf(secondary.backend, 0, MiB)).toBe(0)
  expect(await patternOf(secondary.backend, MiB, MiB)).toBe(0x33)
})

test('replication / promises / a failed commit keeps the view and can be retried', async () => {
  const fault = { event: 'none', iotype: 'write', errno: 5, once: true, sector: 4096 }
  const image = { driver: 'memory', size: 4 * MiB }
  const disk = { driver: 'blkdebug', image, 'inject-error': [fault] }
  await using secondary = await createSecondary({ disk, exportAt: socket() })
  await using primary = await createPrimary({
    disk: { memory: 4 * MiB },
    secondary: secondary.address,
  })
  const stages: StageChange[] = []
  secondary.on('stage', (change) => stages.push(change))
  await fill(primary.backend, 0x22, 0, MiB)
  await fill(secondary.backend, 0x33, 2 * MiB, MiB)
  await expect(secondary.failover()).rejects.toMatchObject({ code: 'EIO' })
  expect(secondary.status()).toMatchObject({ stage: 'failover-failed' })
  expect(await patternOf(secondary.backend, 0, 2 * MiB)).toBe(0)
  expect(await patternOf(secondary.backend, 2 * MiB, MiB)).toBe(0x33)
  await fill(secondary.backend, 0x34, 0, K64)
  await secondary.retryFailover()
  expect(secondary.status().error).toBeUndefined()
  expect(await patternOf(secondary.backend, 0, K64)).toBe(0x34)
  expect(await patternOf(secondary.backend, 2 * MiB, MiB)).toBe(0x33)
  const names = stages.map(({ stage }) => stage)
  expect(names).toEqual(['failover', 'failover-failed', 'failover', 'done'])
})

test('replication / promises / a failover is tried on every disk, and what failed is told together', async () => {
  await using runtime = await Runtime.create()
  await runtime.startNbdServer(socket())
  const add = async (name: string): Promise<void> => {
    const disk = (role: string, more: object = {}) => ({
      driver: 'memory',
      'node-name': `${name}-${role}`,
      size: MiB,
      ...more,
    })
    await runtime.addNode(disk('local'))
    await runtime.addExport({ id: name, nodeName: `${name}-local`, writable: true })
    const file = disk('active', { backing: disk('hidden', { backing: `${name}-local` }) })
    const role = { driver: 'replication', mode: 'secondary', 'top-id': `${name}-top`, file }
    await runtime.addNode({ ...role, 'node-name': `${name}-top` })
  }
  await add('old')
  await runtime.replication.startAll('secondary')
  // Two that never started stand in the way; the newest is asked first.
  await add('young')
  await add('newest')
  const refused = 'Block replication is not running'
  await expect(runtime.replication.stopAll(true)).rejects.toMatchObject({
    code: 'EINVAL',
    message: `${refused}; ${refused}`,
    context: { node: 'newest-top' },
  })
  await runtime.replication.settled()
  const stages = runtime.replication.list().map(({ node, stage }) => [node, stage])
  expect(stages).toEqual([
    ['newest-top', 'none'],
    ['young-top', 'none'],
    ['old-top', 'done'],
  ])
})

test('replication / promises / an export that comes after the failover is shut out as well', async () => {
  const disk = { memory: MiB }
  await using secondary = await createSecondary({ disk, exportAt: socket() })
  await secondary.failover()
  const { runtime, address } = secondary
  await runtime.addExport({ id: 'late', nodeName: 'local', name: 'late', writable: true })
  const late = await createPrimary({ disk, secondary: address, exportName: 'late' })
  await fill(late.backend, 0x22, 0, 4096)
  expect(late.status()).toMatchObject({ forwardFailures: 1 })
  await late.close()
  expect(await patternOf(secondary.backend, 0, 4096)).toBe(0)
})

test('replication / promises / the pause of a checkpoint is measured and reported', async () => {
  const latencyMs = 40
  const disk = {
    driver: 'null-co',
    size: MiB,
    'latency-ns': latencyMs * 1_000_000,
    'read-zeroes': true,
  }
  await using secondary = await createSecondary({ disk, exportAt: socket() })
  await using primary = await createPrimary({
    disk: { memory: MiB },
    secondary: secondary.address,
  })
  expect(secondary.status()).toMatchObject({ lastPauseMs: 0, epoch: 0 })
  const write = fill(primary.backend, 0, 0, 4096)
  const local = secondary.runtime.graph.lookup(undefined, 'local')
  while (local.gate.inFlight === 0) await turn()
  await secondary.checkpoint()
  await write
  const { lastPauseMs, epoch, checkpointAgeMs } = secondary.status()
  expect(epoch).toBe(1)
  expect(lastPauseMs).toBeGreaterThan(latencyMs / 4)
  expect(checkpointAgeMs).toBeGreaterThanOrEqual(0)
})

test('replication / promises / a close in every stage settles, and says so afterwards', async () => {
  const disk = { memory: MiB }
  const stages: readonly [string, (s: Awaited<ReturnType<typeof createSecondary>>) => unknown][] = [
    ['running', () => undefined],
    ['failover', (secondary) => secondary.runtime.replication.stopAll(true)],
    ['done by failover', (secondary) => secondary.failover()],
    ['done by stop', (secondary) => secondary.stop()],
  ]
  for (const [name, reach] of stages) {
    const secondary = await createSecondary({ disk, exportAt: socket() })
    const primary = await createPrimary({ disk, secondary: secondary.address })
    await fill(primary.backend, 0x22, 0, MiB / 2)
    await fill(secondary.backend, 0x33, MiB / 4, MiB / 2)
    await reach(secondary)
    const orders = [
      secondary.checkpoint(),
      secondary.stop(),
      primary.checkpoint(),
      secondary.close(),
      primary.close(),
    ]
    const settled = await Promise.allSettled(orders)
    expect(settled, name).toHaveLength(orders.length)
    expect(settled.at(-1)?.status, name).toBe('fulfilled')
    expect(settled.at(-2)?.status, name).toBe('fulfilled')
    expect(() => secondary.status()).toThrow('closed')
    expect(secondary.runtime.graph.nodes(), name).toEqual([])
  }
})
