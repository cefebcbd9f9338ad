/**
 * A replicated pair of ours and one of the real QEMU, side by side: write rate, checkpoint pause,
 * failover.
 *
 * Invariants:
 * - Both engines get the same commands and the same client (fio over NBD), in turns.
 * - Disks live in memory: ours in memory disks, QEMU's in qcow2 files on tmpfs (it has none better).
 * - Both are measured in the state in which they spend their lives: every block of the disk was
 *   written before, and a load runs for two seconds before it counts.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { AioContext } from '../src/aio/aio-context.ts'
import { NbdClient } from '../src/nbd/client.ts'
import { blockstep, Daemon, type Engine, qemu } from './daemon.ts'
import { type BenchRow, percentile } from './measure.ts'

const MiB = 1024 * 1024
const SIZE_MIB = 512

/** What a pair is made of: an engine and the disks that suit it best. */
interface Side {
  readonly engine: Engine
  disk(folder: string, name: string, backing?: unknown): Record<string, unknown>
}

const ours: Side = {
  engine: blockstep,
  disk: (_folder, name, backing) => ({
    driver: 'memory',
    'node-name': name,
    size: SIZE_MIB * MiB,
    ...(backing === undefined ? {} : { backing }),
  }),
}

const theirs: Side = {
  engine: qemu,
  disk: (folder, name, backing) => {
    const filename = join(folder, `${name}.qcow2`)
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', filename, `${SIZE_MIB}M`])
    return {
      driver: 'qcow2',
      'node-name': name,
      file: { driver: 'file', filename },
      ...(backing === undefined ? {} : { backing }),
    }
  },
}

class Pair {
  readonly primary: Daemon
  readonly secondary: Daemon
  readonly folder: string

  private constructor(folder: string, primary: Daemon, secondary: Daemon) {
    this.folder = folder
    this.primary = primary
    this.secondary = secondary
  }

  static async start({ engine, disk }: Side): Promise<Pair> {
    const base = existsSync('/dev/shm') ? '/dev/shm' : '/tmp'
    const folder = mkdtempSync(join(base, 'bench-'))
    const [primary, secondary] = await Promise.all(
      ['p', 's'].map((name) => Daemon.start(engine, join(folder, `${name}.qmp`))),
    )
    if (primary === undefined || secondary === undefined) throw new Error('two were started')
    const pair = new Pair(folder, primary, secondary)
    const { qmp: p } = primary
    const { qmp: s } = secondary
    const listen = (name: string) => ({
      addr: { type: 'unix', data: { path: join(folder, `${name}.nbd`) } },
    })
    const share = (node: string) => ({
      ...{ type: 'nbd', id: `e-${node}`, 'node-name': node, name: node, writable: true },
    })
    await s.run('blockdev-add', disk(folder, 'local'))
    const hidden = disk(folder, 'hidden', 'local')
    await s.run('blockdev-add', {
      driver: 'replication',
      'node-name': 'top',
      mode: 'secondary',
      'top-id': 'top',
      file: disk(folder, 'active', hidden),
    })
    await s.run('nbd-server-start', listen('s'))
    for (const node of ['local', 'top']) await s.run('block-export-add', share(node))
    await p.run('blockdev-add', disk(folder, 'own'))
    await p.run('blockdev-add', {
      driver: 'quorum',
      'node-name': 'colo',
      'vote-threshold': 1,
      'read-pattern': 'fifo',
      children: ['own'],
    })
    await p.run('nbd-server-start', listen('p'))
    await p.run('block-export-add', share('colo'))
    await p.run('blockdev-add', {
      driver: 'replication',
      'node-name': 'replica',
      mode: 'primary',
      file: {
        driver: 'nbd',
        server: { type: 'unix', path: join(folder, 's.nbd') },
        export: 'local',
      },
    })
    await p.run('x-blockdev-change', { parent: 'colo', node: 'replica' })
    await s.run('xen-set-replication', { enable: true, primary: false })
    await p.run('xen-set-replication', { enable: true, primary: true })
    return pair
  }

  uri(side: 'p' | 's', name: string): string {
    return `nbd+unix:///${name}?socket=${join(this.folder, `${side}.nbd`)}`
  }

  /** Bytes a second that one fio job writes to the primary's guest disk. */
  fio(pattern: string, block: string, depth: number, seconds: number): number {
    const out = execFileSync('fio', [
      ...['--name=x', '--ioengine=nbd', `--uri=${this.uri('p', 'colo')}`],
      ...[`--rw=${pattern}`, `--bs=${block}`, `--iodepth=${depth}`, `--size=${SIZE_MIB}M`],
      ...['--time_based', '--ramp_time=2', `--runtime=${seconds}`, '--output-format=json'],
    ])
    const text = out.toString()
    // fio's NBD engine talks on stdout before the report.
    const report = JSON.parse(text.slice(text.indexOf('\n{') + 1)) as {
      jobs: { write: { bw_bytes: number } }[]
    }
    return report.jobs[0]?.write.bw_bytes ?? 0
  }

  /** Writes once over the first `mib` MiB of the primary's guest disk. */
  dirty(mib: number): void {
    if (mib === 0) return
    execFileSync('fio', [
      ...['--name=x', '--ioengine=nbd', `--uri=${this.uri('p', 'colo')}`, '--rw=write'],
      ...['--bs=1M', '--iodepth=4', `--size=${mib}M`, '--output=/dev/null'],
    ])
  }

  /** Milliseconds of one checkpoint, on a monitor that is awake as that of a running pair is. */
  async checkpointMs(): Promise<number> {
    await this.secondary.qmp.run('query-status')
    const start = performance.now()
    await this.secondary.qmp.run('xen-colo-do-checkpoint')
    return performance.now() - start
  }

  async close(): Promise<void> {
    for (const daemon of [this.primary, this.secondary]) await daemon.close()
    rmSync(this.folder, { recursive: true, force: true })
  }
}

interface Failover {
  readonly firstWriteMs: number
  readonly mergedMs: number
}

async function failover(pair: Pair): Promise<Failover> {
  const { qmp } = pair.secondary
  // The guest is there already: what is measured is the engine, not the start of a client.
  const guest = await NbdClient.connect({
    ctx: new AioContext(),
    address: { type: 'unix', path: join(pair.folder, 's.nbd') },
    exportName: 'top',
  })
  const start = performance.now()
  await qmp.run('xen-set-replication', { enable: false, primary: false, failover: true })
  await guest.write(0, Buffer.alloc(4096, 1))
  const firstWriteMs = performance.now() - start
  await guest.disconnect()
  for (;;) {
    const nodes = (await qmp.run('query-named-block-nodes', { flat: true })) as {
      'node-name': string
    }[]
    if (!nodes.some((node) => node['node-name'] === 'active'))
      return { firstWriteMs, mergedMs: performance.now() - start }
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
}

interface Numbers {
  readonly rates: Record<string, number>
  readonly pauses: Record<string, number>
  readonly failover: Failover
}

const LOADS = [
  ['4 KiB random, depth 1', 'randwrite', '4k', 1],
  ['4 KiB random, depth 32', 'randwrite', '4k', 32],
  ['1 MiB sequential, depth 4', 'write', '1M', 4],
] as const

async function measure(side: Side): Promise<Numbers> {
  const pair = await Pair.start(side)
  try {
    const rates: Record<string, number> = {}
    pair.dirty(SIZE_MIB)
    await pair.checkpointMs()
    for (const [what, pattern, block, depth] of LOADS) {
      rates[what] = pair.fio(pattern, block, depth, 4)
      await pair.checkpointMs()
    }
    const pauses: Record<string, number> = {}
    for (const mib of [0, 16, 256]) {
      const times: number[] = []
      for (let i = 0; i < 5; i++) {
        pair.dirty(mib)
        times.push(await pair.checkpointMs())
      }
      pauses[`${mib} MiB`] = percentile(times, 0.5)
    }
    pair.dirty(64)
    return { rates, pauses, failover: await failover(pair) }
  } finally {
    await pair.close()
  }
}

/** The rows of this benchmark; needs `qemu-system-x86_64`, `qemu-img`, `qemu-io` and `fio`. */
export async function bench(): Promise<BenchRow[]> {
  const our: Numbers[] = []
  const their: Numbers[] = []
  for (let round = 0; round < 2; round++) {
    our.push(await measure(ours))
    their.push(await measure(theirs))
  }
  const best = (all: readonly Numbers[], pick: (n: Numbers) => number, largest: boolean): number =>
    (largest ? Math.max : Math.min)(...all.map(pick))
  const rows: BenchRow[] = LOADS.map(([what]) => {
    const a = best(our, (n) => n.rates[what] ?? 0, true)
    const b = best(their, (n) => n.rates[what] ?? 0, true)
    return {
      what: `replicated write rate, ${what}: blockstep / QEMU`,
      ratio: a / b,
      ...(what.endsWith('32') ? { goal: '>= 3' } : {}),
      detail: `${(a / MiB).toFixed(1)} MiB/s / ${(b / MiB).toFixed(1)} MiB/s`,
    }
  })
  for (const dirty of ['0 MiB', '16 MiB', '256 MiB']) {
    const a = best(our, (n) => n.pauses[dirty] ?? 0, false)
    const b = best(their, (n) => n.pauses[dirty] ?? 0, false)
    rows.push({
      what: `checkpoint command with ${dirty} dirty: blockstep / QEMU`,
      ratio: a / b,
      ...(dirty === '256 MiB' ? { goal: '<= 0.02' } : {}),
      detail: `${a.toFixed(2)} ms / ${b.toFixed(2)} ms`,
    })
  }
  for (const [what, pick] of [
    ['failover command to first accepted write', (n: Numbers) => n.failover.firstWriteMs],
    ['failover command to finished merge (64 MiB)', (n: Numbers) => n.failover.mergedMs],
  ] as const) {
    const a = best(our, pick, false)
    const b = best(their, pick, false)
    const detail = `${a.toFixed(1)} ms / ${b.toFixed(1)} ms`
    const goal = what.endsWith('write') ? { goal: '<= 1' } : {}
    rows.push({ what: `${what}: blockstep / QEMU`, ratio: a / b, ...goal, detail })
  }
  return rows
}
