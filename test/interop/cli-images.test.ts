/** The image subcommands beside qemu-img: the same output, the same exit status, the same images. */
import { cpSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, vi } from 'vitest'
import { here } from '../support/cli.ts'
import { must, type Ran, run, withTools } from './nbd-peers.ts'

vi.setConfig({ testTimeout: 120_000, hookTimeout: 60_000 })

const TOOLS = ['qemu-img', 'qemu-io']
const root = mkdtempSync(join(tmpdir(), 'blockstep-beside-'))
const start = join(root, 'start')
afterAll(() => rmSync(root, { recursive: true, force: true }))

const img = (...args: string[]): Promise<string> => must('qemu-img', args, start)
const io = (file: string, ...commands: string[]): Promise<string> =>
  must('qemu-io', [...commands.flatMap((command) => ['-c', command]), file], start)

/** Stores a refcount in an image of 64 KiB clusters whose first refcount block is cluster 2. */
function setCount(name: string, cluster: number, count: number): void {
  const bytes = readFileSync(join(start, name))
  bytes.writeUInt16BE(count, 2 * 65536 + 2 * cluster)
  writeFileSync(join(start, name), bytes)
}

beforeAll(async () => {
  cpSync(import.meta.dirname, start, {
    recursive: true,
    filter: (path) => path === import.meta.dirname,
  })
  if ((await run('qemu-img', ['--version'])).code !== 0) return
  await img('create', '-q', '-f', 'qcow2', 'base', '10M')
  await io('base', 'write -P 1 0 1M', 'write -P 2 5M 128k')
  await img('create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'top', '12M')
  await io('top', 'write -P 3 512k 64k', 'write -z 2M 1M', 'write -P 4 11M 64k')
  await img('snapshot', '-c', 's1', 'top')
  await img('bitmap', '--add', 'top', 'b0')
  await img('convert', '-O', 'qcow2', '-c', 'base', 'packed')
  await img('create', '-q', '-f', 'qcow2', '-o', 'data_file=df.data,data_file_raw=on', 'df', '1M')
  await img('create', '-q', '-f', 'qcow2', '-o', 'compat=0.10,cluster_size=4k', 'old', '1G')
  await img('create', '-q', '-f', 'raw', 'empty', '0')
  writeFileSync(join(start, 'full.raw'), Buffer.alloc(1000 * 512, 'raw '))
  cpSync(join(start, 'base'), join(start, 'leaky'))
  truncateSync(join(start, 'leaky'), 27 * 65536)
  setCount('leaky', 24, 1)
  cpSync(join(start, 'leaky'), join(start, 'corrupt'))
  setCount('corrupt', 6, 0)
  cpSync(join(start, 'leaky'), join(start, 'high'))
  setCount('high', 6, 2)
})

interface Both {
  ours: Ran
  theirs: Ran
  /** Folder in which ours worked, and theirs. */
  dirs: [string, string]
}

let count = 0

/** The same words given to both, each in a copy of the images. */
async function both(args: readonly string[]): Promise<Both> {
  const dirs = [0, 1].map(() => join(root, `run${count++}`)) as [string, string]
  for (const dir of dirs) cpSync(start, dir, { recursive: true })
  const ended = await here(dirs[0], ...args)
  const ours = { code: ended.status ?? -1, out: ended.stdout, err: ended.stderr }
  const theirs = await run('qemu-img', [...args], dirs[1])
  return { ours, theirs, dirs }
}

/** What can be compared of a run: the words (as a value where they are JSON) and the status. */
function shown({ out, code }: Ran): unknown {
  const json = /^[[{]/.test(out)
  return { code, out: json ? JSON.parse(out) : out }
}

function same(name: string, commands: readonly string[]): void {
  withTools(TOOLS, `interop / cli / ${name} prints and ends as qemu-img does`, async () => {
    for (const line of commands) {
      const { ours, theirs } = await both(line.split(' '))
      expect(shown(ours), `${line}\n${ours.err}`).toEqual(shown(theirs))
    }
  })
}

same('info', [
  ...['info top', 'info --output=json top', 'info full.raw', 'info --output=json packed'],
  ...['info df', 'info old', 'info --backing-chain --output=json top', 'info missing'],
])
same('map', [
  ...['map top', 'map --output=json top', 'map --output=json packed', 'map packed'],
  ...['map --output=json full.raw', 'map --output=json empty', 'map --output=json old'],
])
same('check', [
  ...['check top', 'check --output=json top', 'check packed', 'check full.raw', 'check missing'],
  ...['check leaky', 'check --output=json leaky', 'check -r leaks leaky', 'check df', 'check high'],
  ...['check corrupt', 'check --output=json corrupt', 'check --output=json -r all leaky'],
])
same('compare', [
  ...['compare base packed', 'compare top base', 'compare base top', 'compare -s base top'],
  ...['compare -q base top', 'compare full.raw base', 'compare base missing'],
])
same('create', [
  ...['create -f qcow2 z 1G', 'create -f qcow2 -o cluster_size=4k,lazy_refcounts=on z 64M'],
  ...['create -f qcow2 -b base -F qcow2 z', 'create z 3M', 'create -f qcow2 z 1000'],
  ...['create -f qcow2 -o extended_l2=on,compression_type=zstd,preallocation=metadata z 1M'],
])

withTools(
  TOOLS,
  'interop / cli / convert makes images that qemu-img calls equal and sound',
  async () => {
    for (const line of [
      ...['convert -O raw top z', 'convert -O qcow2 top z', 'convert -O qcow2 -c packed z'],
      ...['convert -f raw -O qcow2 -o cluster_size=512 full.raw z', 'convert -O raw empty z'],
      ...['convert -O qcow2 -o compat=0.10,cluster_size=4k top z'],
    ]) {
      const { ours, theirs, dirs } = await both(line.split(' '))
      expect(ours, line).toEqual(theirs)
      const [z, y] = dirs.map((dir) => join(dir, 'z')) as [string, string]
      expect((await run('qemu-img', ['compare', '-s', z, y])).out, line).toBe(
        'Images are identical.\n',
      )
      if (line.includes('qcow2')) await must('qemu-img', ['check', z])
    }
  },
)

withTools(
  TOOLS,
  'interop / cli / a repaired image is sound for qemu-img and shows the same',
  async () => {
    for (const name of ['leaky', 'corrupt', 'high']) {
      const { ours, dirs } = await both(['check', '-r', 'all', name])
      expect(ours.code, ours.err).toBe(0)
      await must('qemu-img', ['check', join(dirs[0], name)])
      const verdict = await run('qemu-img', ['compare', join(dirs[0], name), join(start, 'base')])
      expect(verdict.out).toBe('Images are identical.\n')
    }
  },
)
