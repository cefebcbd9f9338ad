/**
 * Jobs between image files against `qemu-img convert` and the same jobs of the real QEMU.
 *
 * Invariants:
 * - All files lie on tmpfs, so that all ways find the same page cache: everything is in it.
 * - A target is a fresh, empty image for every run, made before the clock starts.
 * - Nobody syncs: a job does not flush its target, and `qemu-img` is told not to (`-t unsafe`).
 * - What `qemu-img` needs to start and end is taken off its time: only the copying is compared.
 */
import { execFileSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { closeSync, ftruncateSync, openSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { blockstep, Daemon, type JobRun, type Qmp, qemu, timeJob } from './daemon.ts'
import { bestMs, rate } from './job-memory.ts'
import type { BenchRow } from './measure.ts'

const MiB = 1024 * 1024
const SIZE = 768 * MiB
const ROUNDS = 5

/** Writes a raw image full of bytes that are not zero. */
function makeFull(path: string, bytes: number): void {
  const fd = openSync(path, 'w')
  const piece = randomFillSync(new Uint8Array(MiB))
  for (let at = 0; at < bytes; at += MiB) writeSync(fd, piece)
  closeSync(fd)
}

/** Makes a fresh empty image. */
function makeEmpty(path: string, format: Format, bytes: number): void {
  rmSync(path, { force: true })
  if (format === 'qcow2')
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', path, `${bytes}`])
  else {
    const fd = openSync(path, 'w')
    ftruncateSync(fd, bytes)
    closeSync(fd)
  }
}

/** What is in an image file. */
type Format = 'raw' | 'qcow2'

/** Opens an image as a node. */
async function addImage(
  qmp: Qmp,
  name: string,
  driver: Format,
  filename: string,
  backing?: string,
): Promise<void> {
  await qmp.run('blockdev-add', {
    ...{ driver, 'node-name': name, file: { driver: 'file', filename } },
    ...(backing === undefined ? {} : { backing }),
  })
}

/** Images of a job: each is opened for it and closed after it. */
export interface JobImages {
  readonly run: JobRun
  /** Makes the files and opens them; answers the nodes, the last one first. */
  open(qmp: Qmp, folder: string): Promise<string[]>
}

function copies(command: string, done: JobRun['done'], format: Format): JobImages {
  return {
    run: { command, args: { device: 'source', target: 'target', sync: 'full' }, done },
    async open(qmp, folder) {
      const target = join(folder, `target.${format}`)
      makeEmpty(target, format, SIZE)
      await addImage(qmp, 'source', 'raw', join(folder, 'source.raw'))
      await addImage(qmp, 'target', format, target)
      return ['target', 'source']
    },
  }
}

/** `top` over a raw image; the one of them that is `fresh` is made anew. */
function chain(run: JobRun, base: string, top: string, fresh: 'base' | 'top'): JobImages {
  return {
    run,
    async open(qmp, folder) {
      const [below, above] = [join(folder, base), join(folder, top)]
      if (fresh === 'base') makeEmpty(below, 'raw', SIZE)
      else makeEmpty(above, 'qcow2', SIZE)
      await addImage(qmp, 'base', 'raw', below)
      await addImage(qmp, 'top', 'qcow2', above, 'base')
      return ['top', 'base']
    },
  }
}

const COMMIT: JobRun = {
  command: 'block-commit',
  args: { device: 'top' },
  done: 'BLOCK_JOB_READY',
}
const STREAM: JobRun = {
  command: 'block-stream',
  args: { device: 'top' },
  done: 'BLOCK_JOB_COMPLETED',
}

/** Copies from an image to another, and within a chain of two. */
export const FILE_JOBS: Readonly<Record<string, JobImages>> = {
  'backup, raw to raw': copies('blockdev-backup', 'BLOCK_JOB_COMPLETED', 'raw'),
  'backup, raw to qcow2': copies('blockdev-backup', 'BLOCK_JOB_COMPLETED', 'qcow2'),
  'mirror, raw to raw': copies('blockdev-mirror', 'BLOCK_JOB_READY', 'raw'),
  'commit (active), qcow2 to raw': chain(COMMIT, 'base.raw', 'full.qcow2', 'base'),
  'stream, raw to qcow2': chain(STREAM, 'source.raw', 'thin.qcow2', 'top'),
}

async function jobOf(daemon: Daemon, folder: string, images: JobImages): Promise<number> {
  const { qmp } = daemon
  const nodes = await images.open(qmp, folder)
  const ms = await timeJob(qmp, images.run)
  for (const node of nodes) await qmp.run('blockdev-del', { 'node-name': node })
  return ms
}

function qemuImg(args: readonly string[]): number {
  const start = performance.now()
  execFileSync('qemu-img', args)
  return performance.now() - start
}

function convert(folder: string, format: Format): number {
  const target = join(folder, `target.${format}`)
  makeEmpty(target, format, SIZE)
  const options = ['-n', '-t', 'unsafe', '-f', 'raw', '-O', format]
  return qemuImg(['convert', ...options, join(folder, 'source.raw'), target])
}

/** Jobs that `qemu-img convert` can stand beside, with the format of the target. */
const CONVERTS: Readonly<Record<string, Format>> = {
  'backup, raw to raw': 'raw',
  'backup, raw to qcow2': 'qcow2',
}

/** A run of `qemu-img` that copies nothing. */
const START = 'qemu-img, start and end'

/** Rows: time of a job on image files against the peers. */
export async function fileRows(folder: string): Promise<BenchRow[]> {
  makeFull(join(folder, 'source.raw'), SIZE)
  const full = join(folder, 'full.qcow2')
  execFileSync('qemu-img', ['convert', '-O', 'qcow2', join(folder, 'source.raw'), full])
  const daemons: Daemon[] = []
  try {
    for (const engine of [blockstep, qemu])
      daemons.push(await Daemon.start(engine, join(folder, `${engine.name}.qmp`)))
    const source = join(folder, 'source.raw')
    const ways: Record<string, () => Promise<number>> = {
      [START]: async () => qemuImg(['info', '-f', 'raw', source]),
    }
    for (const [name, images] of Object.entries(FILE_JOBS)) {
      for (const daemon of daemons)
        ways[`${name} ${daemon.engine.name}`] = () => jobOf(daemon, folder, images)
      const format = CONVERTS[name]
      if (format !== undefined)
        ways[`${name} qemu-img convert`] = async () => convert(folder, format)
    }
    return rowsOf(await bestMs(ways, ROUNDS))
  } finally {
    for (const daemon of daemons) await daemon.close()
  }
}

/** A row for each job and each peer that can do it. */
function rowsOf(best: Readonly<Record<string, number>>): BenchRow[] {
  const rows: BenchRow[] = []
  for (const name of Object.keys(FILE_JOBS))
    for (const peer of ['QEMU', 'qemu-img convert']) {
      const ours = best[`${name} blockstep`] ?? Number.NaN
      const whole = best[`${name} ${peer}`]
      if (whole === undefined) continue
      const theirs = whole - (peer === 'QEMU' ? 0 : (best[START] ?? 0))
      rows.push({
        what: `${name}, files: blockstep / ${peer} (bytes a second)`,
        ratio: theirs / ours,
        ...(name in CONVERTS ? { goal: '>= 1' } : {}),
        detail: `${rate(ours, SIZE)} / ${rate(theirs, SIZE)}`,
      })
    }
  return rows
}
