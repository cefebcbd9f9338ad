/**
 * What a guest feels of a job: the tail of its write latency while the job runs, and without it.
 *
 * Invariants:
 * - The guest writes 4 KiB at random places, one after the other, over NBD on a unix socket.
 * - With and without are measured on the same open disk, the one right after the other.
 */
import { join } from 'node:path'
import { AioContext } from '../src/aio/aio-context.ts'
import { NbdClient } from '../src/index.ts'
import { Random } from '../src/util/random.ts'
import { blockstep, Daemon, type Qmp, qemu, startJob } from './daemon.ts'
import { FILE_JOBS, type JobImages } from './job-files.ts'
import { type BenchRow, percentile } from './measure.ts'

const WRITE_BYTES = 4096
const ROUNDS = 4
/** A background mirror need not ever be done against a guest that writes on. */
const LONGEST_MS = 2000
const WITHOUT_MS = 300

/** Which node of a job's disks the guest uses. */
const GUESTS: Readonly<Record<string, string>> = {
  'backup, raw to raw': 'source',
  'mirror, raw to raw': 'source',
  'commit (active), qcow2 to raw': 'top',
  'stream, raw to qcow2': 'top',
}

/** Writes until told to stop; answers how long each write took, in microseconds. */
async function writeUntil(
  client: NbdClient,
  random: Random,
  over: () => boolean,
): Promise<number[]> {
  const data = Buffer.alloc(WRITE_BYTES, 7)
  const blocks = client.size / WRITE_BYTES
  const times: number[] = []
  while (!over()) {
    const start = process.hrtime.bigint()
    await client.write(random.int(blocks) * WRITE_BYTES, data)
    times.push(Number(process.hrtime.bigint() - start) / 1000)
  }
  return times
}

interface Samples {
  readonly without: number[]
  readonly during: number[]
}

async function guestOf(
  qmp: Qmp,
  images: JobImages,
  node: string,
  address: string,
): Promise<Samples> {
  await qmp.run('block-export-add', {
    ...{ type: 'nbd', id: 'guest', 'node-name': node, name: 'guest', writable: true },
  })
  const ctx = new AioContext()
  const client = await NbdClient.connect({
    ctx,
    address: { type: 'unix', path: address },
    exportName: 'guest',
  })
  const random = new Random(1)
  const end = performance.now() + WITHOUT_MS
  const without = await writeUntil(client, random, () => performance.now() > end)
  let over = false
  const failures: Error[] = []
  const latest = performance.now() + LONGEST_MS
  const job = startJob(qmp, images.run)
  void job.copied
    .catch((error: Error) => failures.push(error))
    .finally(() => {
      over = true
    })
  const during = await writeUntil(client, random, () => over || performance.now() > latest)
  for (const failure of failures) throw failure
  await job.end()
  await client.disconnect()
  await ctx.close()
  await qmp.run('block-export-del', { id: 'guest', mode: 'hard' })
  return { without, during }
}

async function round(daemon: Daemon, folder: string, name: string): Promise<Samples> {
  const images = FILE_JOBS[name]
  const node = GUESTS[name]
  if (images === undefined || node === undefined) throw new Error(`no job is called ${name}`)
  const { qmp } = daemon
  const nodes = await images.open(qmp, folder)
  const samples = await guestOf(qmp, images, node, join(folder, `${daemon.engine.name}.nbd`))
  await removeAll(qmp, nodes)
  return samples
}

/** An export goes a moment after its last client. */
async function removeAll(qmp: Qmp, nodes: readonly string[]): Promise<void> {
  for (const node of nodes)
    for (;;) {
      const gone = await qmp.run('blockdev-del', { 'node-name': node }).then(
        () => true,
        () => false,
      )
      if (gone) break
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
}

/** The 99th percentile of all rounds together, in microseconds: one round has few writes. */
const tail = (rounds: readonly (readonly number[])[]): number => percentile(rounds.flat(), 0.99)

/** Rows: p99 write latency during a job as a multiple of that without; QEMU's as context. */
export async function guestRows(folder: string): Promise<BenchRow[]> {
  const daemons: Daemon[] = []
  const rounds: Record<string, Samples[]> = {}
  try {
    for (const engine of [blockstep, qemu]) {
      const daemon = await Daemon.start(engine, join(folder, `${engine.name}-guest.qmp`))
      daemons.push(daemon)
      await daemon.qmp.run('nbd-server-start', {
        addr: { type: 'unix', data: { path: join(folder, `${engine.name}.nbd`) } },
      })
    }
    for (let i = 0; i < ROUNDS; i++)
      for (const name of Object.keys(GUESTS))
        for (const daemon of daemons) {
          rounds[`${name} ${daemon.engine.name}`] ??= []
          rounds[`${name} ${daemon.engine.name}`]?.push(await round(daemon, folder, name))
        }
  } finally {
    for (const daemon of daemons) await daemon.close()
  }
  return Object.keys(GUESTS).map((name) => rowOf(name, rounds))
}

function rowOf(name: string, rounds: Readonly<Record<string, readonly Samples[]>>): BenchRow {
  const [ours, theirs] = ['blockstep', 'QEMU'].map((engine) => {
    const all = rounds[`${name} ${engine}`] ?? []
    const during = tail(all.map((samples) => samples.during))
    const without = tail(all.map((samples) => samples.without))
    const times = `${during.toFixed(0)} / ${without.toFixed(0)} us`
    return { ratio: during / without, times }
  })
  return {
    what: `guest's p99 4 KiB write while ${name} runs / without it`,
    ratio: ours?.ratio ?? Number.NaN,
    detail: `${ours?.times}; QEMU ${theirs?.ratio.toFixed(2)}: ${theirs?.times}`,
  }
}
