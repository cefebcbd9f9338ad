/**
 * The end of a secondary's process in every stage and in every way: its three images stay whole and
 * show a state that a manager can name, and the primary goes on.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'
import { createPrimary, createQcow2, Runtime } from '../../src/index.ts'
import { fill } from '../support/graph.ts'

const MiB = 1024 * 1024
const SIZE = 4 * MiB
const VICTIM = fileURLToPath(new URL('./exit-victim.mjs', import.meta.url))

/** What a byte of each half MiB holds: the checkpoint with the guest's writes, and the primary's. */
const KEPT = [0x21, 0x21, 0, 0, 0x33, 0x33, 0, 0]
const CHECKPOINT = [0x21, 0x21, 0, 0, 0, 0, 0, 0]
const PRIMARY = [0x21, 0x22, 0x22, 0, 0, 0, 0, 0]

interface Case {
  readonly stage: string
  /** What it says it is in. */
  readonly named: string
  /** What the chain may show when it was killed, and when it was closed. */
  readonly killed: readonly (readonly number[])[]
  readonly closed: readonly (readonly number[])[]
}

const CASES: readonly Case[] = [
  { stage: 'running', named: 'running', killed: [KEPT], closed: [PRIMARY] },
  {
    stage: 'checkpointing',
    named: 'running',
    killed: [KEPT, CHECKPOINT, PRIMARY],
    closed: [PRIMARY],
  },
  { stage: 'interrupted', named: 'interrupted', killed: [CHECKPOINT], closed: [CHECKPOINT] },
  { stage: 'failover', named: 'failover', killed: [KEPT], closed: [KEPT] },
  { stage: 'failover-failed', named: 'failover-failed', killed: [KEPT], closed: [KEPT] },
  { stage: 'failed over', named: 'done', killed: [KEPT], closed: [KEPT] },
  { stage: 'stopped', named: 'done', killed: [PRIMARY], closed: [PRIMARY] },
]

const WAYS = ['SIGKILL', 'SIGTERM', 'process.exit'] as const

/** The victim's process and the lines that it says. */
class Victim {
  readonly exited: Promise<number | string>
  said = ''
  readonly #child: ChildProcess
  readonly #lines: AsyncIterator<string>

  constructor(what: object) {
    this.#child = spawn(process.execPath, [VICTIM, JSON.stringify(what)], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    const { stdout } = this.#child
    if (stdout === null) throw new Error('no output')
    this.#lines = createInterface({ input: stdout })[Symbol.asyncIterator]()
    this.exited = new Promise((resolve) => {
      this.#child.once('exit', (code, signal) => resolve(code ?? signal ?? 'lost'))
    })
  }

  async line(): Promise<string> {
    const { value, done } = await this.#lines.next()
    return done === true ? 'nothing' : value
  }

  async order(order: string): Promise<string> {
    this.#child.stdin?.write(`${order}\n`)
    return this.line()
  }

  kill(): void {
    this.#child.kill('SIGKILL')
  }
}

function checkImage(path: string, clean: boolean): void {
  const { error, status, stdout } = spawnSync('qemu-img', ['check', path], { encoding: 'utf8' })
  if (error !== undefined && process.env.CI !== 'true') {
    console.log('skipped: qemu-img is missing')
    return
  }
  // 3: clusters that nothing uses, which a kill may leave behind; nothing is damaged.
  expect(clean ? [0] : [0, 3], `${path}: ${stdout}`).toContain(status)
}

/** What the chain of the three images shows, a byte of each half MiB; -1 where it is torn. */
async function shown(folder: string): Promise<number[]> {
  await using runtime = await Runtime.create()
  const image = (name: string) => ({
    driver: 'qcow2',
    file: { driver: 'file', filename: join(folder, name) },
  })
  const hidden = { ...image('hidden'), backing: image('local') }
  await runtime.addNode({ ...image('active'), 'node-name': 'top', backing: hidden })
  const bytes = new Uint8Array(SIZE)
  await (await runtime.openBackend('top')).pread(0, bytes)
  return Array.from({ length: 8 }, (_, i) => {
    const half = bytes.subarray((i * MiB) / 2, ((i + 1) * MiB) / 2)
    return half.every((byte) => byte === half[0]) ? (half[0] ?? -1) : -1
  })
}

async function play(
  { stage, named, killed, closed }: Case,
  way: string,
  crashConsistent: boolean,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'exit-'))
  const names = ['local', 'hidden', 'active']
  for (const name of names) await createQcow2(join(folder, name), { size: SIZE })
  const victim = new Victim({ folder, stage, way, crashConsistent, sector: (2 * MiB) / 512 })
  try {
    expect(await victim.line()).toBe('ready')
    const at = { type: 'unix', path: join(folder, 'nbd') } as const
    await using primary = await createPrimary({ disk: { memory: SIZE }, secondary: at })
    await fill(primary.backend, 0x21, 0, MiB)
    await primary.checkpoint()
    expect(await victim.order('checkpoint')).toBe('checkpoint')
    await fill(primary.backend, 0x22, MiB / 2, MiB)
    // Only that option promises anything for what was not flushed.
    if (!crashConsistent || stage === 'stopped') await primary.backend.flush()
    expect(await victim.order('write')).toBe('write')
    expect(await victim.order('die')).toBe(named)
    const end = way === 'SIGTERM' ? 0 : way === 'SIGKILL' ? 'SIGKILL' : 7
    expect(await victim.exited).toBe(end)
    if (way === 'SIGTERM') expect(await victim.line()).toBe('settled')
    // The primary's guest does not notice; its manager does.
    await fill(primary.backend, 0x24, 0, 4096)
    expect(primary.status()).toMatchObject({ error: 'I/O error occurred' })
    for (const name of names) checkImage(join(folder, name), way === 'SIGTERM')
    const allowed = way === 'SIGTERM' ? closed : killed
    expect(allowed).toContainEqual(await shown(folder))
    for (const name of names) checkImage(join(folder, name), false)
  } finally {
    victim.kill()
    rmSync(folder, { recursive: true, force: true })
  }
}

const ALL = CASES.flatMap((one) => WAYS.map((way) => [one.stage, way, one] as const))

it.each(ALL)(
  'replication / exit / %s, by %s: what was flushed and checkpointed is there',
  { timeout: 60_000 },
  async (_stage, way, one) => play(one, way, false),
)

it.each(ALL.filter(([, way]) => way !== 'SIGTERM'))(
  'replication / exit / %s, by %s: crash-consistent, with nothing flushed',
  { timeout: 60_000 },
  async (_stage, way, one) => play(one, way, true),
)
