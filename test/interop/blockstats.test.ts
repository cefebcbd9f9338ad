import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect } from 'vitest'
import { Peer } from './blockstats-peer.ts'
import { must, run, withTools } from './nbd-peers.ts'

interface Node {
  readonly [member: string]: unknown
  readonly stats: Readonly<Record<string, unknown>>
}

const TOOLS = ['qemu-system-x86_64', 'qemu-img', 'qemu-io']
const KILO = 1024

let dir: string
beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'blockstats-'))
  await fresh()
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))

async function fresh(): Promise<void> {
  const create = (...args: string[]) => must('qemu-img', ['create', '-q', ...args], dir)
  for (const name of ['a', 'b']) await create('-f', 'raw', `${name}.raw`, '1M')
  await create('-f', 'qcow2', 'base.qcow2', '1M')
  await create('-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'top.qcow2')
  await create('-f', 'qcow2', '-o', 'data_file=data.raw', 'split.qcow2', '1M')
}

/** Runs deeds on a program that ends with them. */
async function on<T>(start: Promise<Peer>, deeds: (peer: Peer) => Promise<T>): Promise<T> {
  const peer = await start
  try {
    return await deeds(peer)
  } finally {
    await peer.end()
  }
}

/** The same deeds on the reference and on ours; both results. */
async function both<T>(deeds: (peer: Peer) => Promise<T>): Promise<{ reference: T; ours: T }> {
  const reference = await on(Peer.reference(dir), deeds)
  await fresh()
  return { reference, ours: await on(Peer.ours(dir), deeds) }
}

const file = (name: string) => ({ driver: 'file', filename: name })
const named = (name: string, filename: string) => ({ ...file(filename), 'node-name': name })

async function buildGraph(peer: Peer): Promise<void> {
  const add = (options: object) => peer.must('blockdev-add', options)
  await add(named('fa', 'a.raw'))
  await add({ driver: 'raw', 'node-name': 'a', file: 'fa' })
  await add({ driver: 'raw', 'node-name': 'b', file: named('fb', 'b.raw'), offset: 64 * KILO })
  const base = { driver: 'qcow2', 'node-name': 'base', file: named('fbase', 'base.qcow2') }
  await add({ driver: 'qcow2', 'node-name': 'top', file: named('ft', 'top.qcow2'), backing: base })
  await add({ driver: 'null-co', 'node-name': 'n', size: 1 << 20 })
  await add({ driver: 'copy-on-read', 'node-name': 'cor', file: 'n' })
  await add({ driver: 'blkdebug', 'node-name': 'bd', image: 'cor' })
  await add({ driver: 'quorum', 'node-name': 'q', 'vote-threshold': 1, children: ['n', 'bd'] })
  await add({ driver: 'copy-before-write', 'node-name': 'cbw', file: 'a', target: 'b' })
  await add({ driver: 'snapshot-access', 'node-name': 'sa', file: 'cbw' })
}

async function serve(peer: Peer, name: string): Promise<string> {
  const path = join(dir, `${name}.sock`)
  await peer.must('nbd-server-start', { addr: { type: 'unix', data: { path } } })
  const options = { type: 'nbd', id: `e-${name}`, 'node-name': name, writable: true }
  await peer.must('block-export-add', options)
  return `nbd+unix:///${name}?socket=${path}`
}

async function io(uri: string, ...commands: string[]): Promise<void> {
  const words = commands.flatMap((command) => ['-c', command])
  await must('qemu-io', ['-f', 'raw', '-d', 'unmap', ...words, uri])
}

/** Waits for the end of all jobs; mirrors are completed. */
async function settled(peer: Peer): Promise<void> {
  for (;;) {
    const jobs = (await peer.must('query-jobs')) as { id: string; status: string }[]
    if (jobs.length === 0) return
    for (const { id, status } of jobs)
      if (status === 'ready') await peer.ask('job-complete', { id })
  }
}

const byNodes = (peer: Peer) =>
  peer.must('query-blockstats', { 'query-nodes': true }) as Promise<Node[]>

describe('interop / blockstats', () => {
  withTools(
    TOOLS,
    'interop / blockstats / nodes are shown in the same order with the same members',
    async () => {
      const { reference, ours } = await both(async (peer) => {
        await buildGraph(peer)
        return byNodes(peer)
      })
      expect(ours).toEqual(reference)
    },
  )

  withTools(TOOLS, 'interop / blockstats / the data file of an image is its parent', async () => {
    const { reference, ours } = await both(async (peer) => {
      const split = { file: named('meta', 'split.qcow2'), 'data-file': named('data', 'data.raw') }
      await peer.must('blockdev-add', { driver: 'qcow2', 'node-name': 's', ...split })
      return byNodes(peer)
    })
    expect(ours).toEqual(reference)
  })

  withTools(
    TOOLS,
    'interop / blockstats / the furthest write is the same at every layer',
    async () => {
      const { reference, ours } = await both(async (peer) => {
        await buildGraph(peer)
        const seen: Record<string, unknown>[] = []
        const look = async () => {
          const nodes = await byNodes(peer)
          seen.push(
            Object.fromEntries(nodes.map((n) => [n['node-name'], n.stats.wr_highest_offset])),
          )
        }
        const uri = await serve(peer, 'b')
        for (const command of [
          'write 4k 4k',
          'write 1000 100',
          'write -z 100k 8k',
          'discard 200k 4k',
          'write -z -u 120k 4k',
          'flush',
        ]) {
          await io(uri, command)
          await look()
        }
        await run('qemu-io', ['-f', 'raw', '-c', 'write 2M 4k', uri])
        await look()
        return seen
      })
      expect(ours).toEqual(reference)
    },
  )

  withTools(TOOLS, 'interop / blockstats / what a job wrote reaches as far', async () => {
    const { reference, ours } = await both(async (peer) => {
      const seen: unknown[] = []
      for (const [name, job] of [
        ['m', 'blockdev-mirror'],
        ['k', 'blockdev-backup'],
      ] as const) {
        await peer.must('blockdev-add', {
          driver: 'raw',
          'node-name': `${name}s`,
          file: file('a.raw'),
        })
        const target = { driver: 'raw', 'node-name': name, file: named(`${name}f`, 'b.raw') }
        await peer.must('blockdev-add', target)
        const options = { 'job-id': 'j', device: `${name}s`, target: name, sync: 'full' }
        await peer.must(job, options)
        await settled(peer)
        const written = (await byNodes(peer)).find((node) => node['node-name'] === name)
        seen.push(written?.stats.wr_highest_offset)
        for (const gone of [name, `${name}s`])
          await peer.must('blockdev-del', { 'node-name': gone })
      }
      return seen
    })
    expect(ours).toEqual(reference)
  })

  withTools(
    TOOLS,
    'interop / blockstats / an export looks like a device of the reference and counts like one',
    async () => {
      const disk = ['-blockdev', 'qcow2,node-name=top,file.driver=file,file.filename=top.qcow2']
      const machine = ['-M', 'pc', '-S', ...disk, '-device', 'virtio-blk-pci,drive=top,id=d']
      const guest = '/machine/peripheral/d/virtio-backend'
      const histogram = { boundaries: [1, 1_000_000_000_000], 'boundaries-write': [5] }
      const commands = ['aio_write 0 64k', 'aio_write 128k 4k', 'aio_read 0 8k', 'aio_flush']
      const device = await on(Peer.reference(dir, machine), async (peer) => {
        await peer.must('block-latency-histogram-set', { id: guest, ...histogram })
        for (const command of commands) {
          const line = `qemu-io -d ${guest} "${command}"`
          await peer.must('human-monitor-command', { 'command-line': line })
        }
        for (let tries = 0; tries < 1000; tries++) {
          const [entry] = (await peer.must('query-blockstats')) as Node[]
          if (entry !== undefined && hasEnded(entry)) return entry
        }
        throw new Error('the reference does not end its requests')
      })
      await fresh()
      const exported = await on(Peer.ours(dir), async (peer) => {
        const image = { driver: 'qcow2', 'node-name': 'top', file: file('top.qcow2') }
        await peer.must('blockdev-add', image)
        const uri = await serve(peer, 'top')
        await peer.must('block-latency-histogram-set', { id: 'e-top', ...histogram })
        await io(uri, 'write 0 64k', 'write 128k 4k', 'read 0 8k')
        const [entry] = (await peer.must('query-blockstats')) as Node[]
        return entry
      })
      const { qdev: _, ...plain } = device
      expect(Object.keys(exported ?? {}).sort()).toEqual(Object.keys(plain).sort())
      expect(shapeOf(exported)).toEqual(shapeOf(plain))
      expect(countsOf(exported)).toEqual(countsOf(device))
    },
  )

  withTools(
    TOOLS,
    'interop / blockstats / the graph is described in the same words and order',
    async () => {
      const { reference, ours } = await both(async (peer) => {
        await buildGraph(peer)
        const before = await peer.must('x-debug-query-block-graph')
        await serve(peer, 'cbw')
        await peer.must('block-export-add', { type: 'nbd', id: 'r', 'node-name': 'q' })
        return [before, await peer.must('x-debug-query-block-graph')]
      })
      expect(ours).toEqual(reference)
    },
  )
})

/** Names of members all the way down; of counters only the names, what stands below only in kind. */
function shapeOf(entry: unknown): unknown {
  if (typeof entry !== 'object' || entry === null || Array.isArray(entry)) return typeof entry
  return Object.fromEntries(Object.entries(entry).map(([name, value]) => [name, shapeOf(value)]))
}

function hasEnded({ stats }: Node): boolean {
  const moved = Number(stats.wr_operations) + Number(stats.rd_operations)
  return moved === 3 && stats.flush_operations === 1
}

/** Counters that do not depend on how long anything took, nor on flushes that a client sends at its end. */
function countsOf(entry: Node | undefined): Record<string, unknown> {
  const counts = Object.entries(entry?.stats ?? {}).filter(
    ([name]) => !name.includes('time') && !name.startsWith('flush'),
  )
  return Object.fromEntries(counts)
}

describe('interop / character devices and types', () => {
  withTools(TOOLS, 'interop / character devices / ring buffers answer the same', async () => {
    const steps: [string, object][] = [
      ['chardev-add', { id: 'r', backend: { type: 'ringbuf', data: { size: 8 } } }],
      ['chardev-add', { id: 'x', backend: { type: 'ringbuf', data: { size: 3 } } }],
      ['chardev-add', { id: 'n', backend: { type: 'null', data: {} } }],
      ['ringbuf-write', { device: 'r', data: 'abcdefghij' }],
      ['ringbuf-read', { device: 'r', size: 3 }],
      ['ringbuf-read', { device: 'r', size: 30 }],
      ['ringbuf-write', { device: 'r', data: 'é\0€' }],
      ['ringbuf-read', { device: 'r', size: 1 }],
      ['ringbuf-read', { device: 'r', size: 30 }],
      ['ringbuf-write', { device: 'r', data: '7aCA9JCAgA==', format: 'base64' }],
      ['ringbuf-read', { device: 'r', size: 30 }],
      ['ringbuf-write', { device: 'r', data: '/v8AYWI=', format: 'base64' }],
      ['ringbuf-read', { device: 'r', size: 3, format: 'base64' }],
      ['ringbuf-read', { device: 'r', size: 3 }],
      ['ringbuf-write', { device: 'r', data: 'a!', format: 'base64' }],
      ['ringbuf-write', { device: 'n', data: 'a' }],
      ['ringbuf-read', { device: 'no', size: 1 }],
      ['ringbuf-read', { device: 'r', size: 0 }],
      ['chardev-change', { id: 'n', backend: { type: 'ringbuf', data: {} } }],
      ['ringbuf-write', { device: 'n', data: 'a' }],
      ['ringbuf-read', { device: 'n', size: 9 }],
      ['chardev-change', { id: 'no', backend: { type: 'null', data: {} } }],
      ['chardev-add', { id: 'm', backend: { type: 'mux', data: { chardev: 'no' } } }],
      ['chardev-add', { id: 'm', backend: { type: 'mux', data: { chardev: 'n' } } }],
      ['chardev-change', { id: 'm', backend: { type: 'null', data: {} } }],
      ['chardev-change', { id: 'n', backend: { type: 'null', data: {} } }],
      ['chardev-remove', { id: 'n' }],
      ['chardev-send-break', { id: 'n' }],
      ['chardev-send-break', { id: 'no' }],
      ['block-latency-histogram-set', { id: '' }],
      ['block-latency-histogram-set', { id: 'no' }],
      ['block-latency-histogram-set', { id: '/objects' }],
    ]
    const { reference, ours } = await both(async (peer) => {
      const answers: unknown[] = []
      for (const [name, args] of steps) answers.push([name, args, await peer.ask(name, args)])
      return answers
    })
    expect(ours).toEqual(reference)
  })

  withTools(
    TOOLS,
    'interop / types / those of ours have the parents and properties of the reference',
    async () => {
      // The reference dies of being asked for the properties of the one, and has none of the other.
      const apart = ['colo-compare', 'filter-drop']
      const list = { abstract: true }
      const described = async (peer: Peer, names?: string[]) => {
        const all = (await peer.must('qom-list-types', list)) as { name: string }[]
        const wanted = names ?? all.map(({ name }) => name).filter((name) => !apart.includes(name))
        const types: unknown[] = []
        for (const name of wanted) {
          const { return: found, error } = await peer.ask('qom-list-properties', { typename: name })
          const properties = Array.isArray(found) ? found.sort(byName) : error
          types.push([name, properties, all.find((type) => type.name === name)])
        }
        return { wanted, types }
      }
      const ours = await on(Peer.ours(dir), (peer) => described(peer))
      const reference = await on(Peer.reference(dir), (peer) => described(peer, ours.wanted))
      expect(ours).toEqual(reference)
    },
  )
})

function byName(one: { name: string }, other: { name: string }): number {
  return one.name < other.name ? -1 : 1
}
