/**
 * Random monitor commands about the graph, most of them sensible, some of them wrong.
 *
 * Invariants:
 * - What is sent depends on the seed and on what the reference showed before, on nothing else.
 */
import type { Random } from '../../src/util/random.ts'
import { FILES, type Step } from './graph-differential-engine.ts'

/** Options as they are sent. */
export type Options = { readonly driver: string; readonly [member: string]: unknown }

/** What the reference has by now. */
export interface World {
  /** Names of nodes that have one. */
  nodes: readonly string[]
  /** Dirty bitmaps, by node. */
  bitmaps: readonly (readonly [string, string])[]
  /** Ids of exports. */
  exports: readonly string[]
  /** With which options a node was last opened. */
  given: Map<string, Options>
}

type Make = (steps: Steps) => Readonly<Record<string, unknown>>

const NODES = ['n0', 'n1', 'n2', 'n3', 'n4', 'n5', 'n6', 'n7']
const GROUPS = ['tg0', 'tg1']
const BITMAPS = ['m0', 'm1', 'm2']
const EXPORTS = ['e0', 'e1', 'n0', 'n1']
const RAW = ['a.raw', 'b.raw', 'c.raw']
const BAD_NAMES = ['5abc', '#block1', '', 'a b', 'x'.repeat(32)]
const CHILDREN = ['file', 'backing', 'children.0', 'children.1', 'children.2', 'image', 'nope']
const SIZES = [0, 512, 1000, 4096, 65536, 1 << 20, 2 << 20, 3 << 20]
const PERMS = ['consistent-read', 'write', 'write-unchanged', 'resize']

/** Makes steps from chance. */
export class Steps {
  readonly random: Random
  readonly world: World

  constructor(random: Random, world: World) {
    this.random = random
    this.world = world
  }

  /** The next command. */
  next(): Step {
    const few = this.world.nodes.length < 3 && this.chance(0.6)
    const execute = few ? 'blockdev-add' : this.#weighted()
    return this.#make(execute)
  }

  chance(probability: number): boolean {
    return this.random.chance(probability)
  }

  pick<T>(items: readonly T[]): T {
    return this.random.pick(items)
  }

  /** A node that is there, or now and then one that is not. */
  node(): string {
    const { nodes } = this.world
    return nodes.length > 0 && this.chance(0.93) ? this.pick(nodes) : this.pick([...NODES, 'nope'])
  }

  /** A name for a new node: mostly a free one. */
  newName(): string {
    const free = NODES.filter((name) => !this.world.nodes.includes(name))
    if (this.chance(0.03)) return this.pick(BAD_NAMES)
    return free.length > 0 && this.chance(0.95) ? this.pick(free) : this.pick(NODES)
  }

  /** Members that are there with some probability each. */
  some(members: Readonly<Record<string, readonly [number, () => unknown]>>): object {
    const out: Record<string, unknown> = {}
    for (const [name, [probability, make]] of Object.entries(members))
      if (this.chance(probability)) out[name] = make()
    return out
  }

  flag = (): boolean => this.chance(0.5)

  size = (): number => this.pick(SIZES)

  /** Options that every node takes. */
  common(): object {
    return this.some({
      'read-only': [0.25, this.flag],
      'auto-read-only': [0.08, this.flag],
      discard: [0.1, () => this.pick(['ignore', 'unmap'])],
      'detect-zeroes': [0.08, () => this.pick(['off', 'on', 'unmap'])],
      cache: [
        0.08,
        () => ({ 'no-flush': this.flag(), ...this.some({ direct: [0.2, () => false] }) }),
      ],
      'force-share': [0.03, this.flag],
    })
  }

  /** A child: a node by name or inline options. */
  ref(depth: number, drivers: readonly string[] = LEAVES): unknown {
    if (this.world.nodes.length > 0 && this.chance(0.65)) return this.node()
    const inline = this.options(this.pick(depth > 1 ? LEAVES : drivers), depth + 1)
    return this.chance(0.3) ? { ...inline, 'node-name': this.newName() } : inline
  }

  /** Options of a node with that driver, without its name. */
  options(driver: string, depth = 0): Options {
    const make = DRIVERS[driver] ?? DRIVERS.raw
    return { driver, ...this.common(), ...make?.(this, depth) }
  }

  bitmap(): readonly [string, string] {
    const { bitmaps } = this.world
    if (bitmaps.length > 0 && this.chance(0.85)) return this.pick(bitmaps)
    return [this.node(), this.pick(BITMAPS)]
  }

  /** The options of a node again, changed here and there. */
  reopened(): Options {
    const name = this.node()
    const old = this.world.given.get(name) ?? { driver: 'raw', file: this.node() }
    let options: Record<string, unknown> = { ...old, 'node-name': name }
    for (let changes = this.random.int(3); changes > 0; changes--) options = this.#changed(options)
    return options as Options
  }

  #changed(options: Readonly<Record<string, unknown>>): Record<string, unknown> {
    const keys = Object.keys(options).filter((key) => key !== 'node-name')
    const child = keys.filter((key) => ['file', 'backing', 'image'].includes(key))
    if (child.length > 0 && this.chance(0.4)) return { ...options, [this.pick(child)]: this.node() }
    if (this.chance(0.15)) return { ...options, backing: this.chance(0.4) ? null : this.node() }
    if (this.chance(0.2)) {
      const gone = this.pick(keys.filter((key) => key !== 'driver').concat('read-only'))
      return Object.fromEntries(Object.entries(options).filter(([key]) => key !== gone))
    }
    if (this.chance(0.6)) return { ...options, ...this.common() }
    return { ...options, ...this.options(String(options.driver)) }
  }

  #make(execute: string): Step {
    return { execute, arguments: COMMANDS[execute]?.[1](this) ?? {} }
  }

  #weighted(): string {
    const all = Object.entries(COMMANDS)
    let at = this.random.int(all.reduce((sum, [, [weight]]) => sum + weight, 0))
    for (const [name, [weight]] of all) {
      at -= weight
      if (at < 0) return name
    }
    return 'blockdev-add'
  }

  /** An action of a transaction. */
  action(): object {
    if (this.chance(0.06)) return { type: 'abort', data: {} }
    const type = this.pick(ACTIONS)
    return { type, data: COMMANDS[type]?.[1](this) ?? {} }
  }
}

const ACTIONS = [
  ...['block-dirty-bitmap-add', 'block-dirty-bitmap-remove', 'block-dirty-bitmap-clear'],
  ...['block-dirty-bitmap-enable', 'block-dirty-bitmap-disable', 'block-dirty-bitmap-merge'],
  ...['blockdev-snapshot', 'blockdev-snapshot-sync'],
]

const LEAVES = ['file', 'null-co']
const FORMATS = ['raw', 'qcow2', 'file', 'null-co', 'throttle', 'copy-on-read', 'blkdebug']

const DRIVERS: Readonly<Record<string, (steps: Steps, depth: number) => object>> = {
  file: (s) => ({
    filename: s.pick(s.chance(0.6) ? RAW : FILES),
    ...s.some({
      locking: [0.8, () => s.pick(['off', 'off', 'off', 'auto', 'on'])],
      aio: [0.05, () => s.pick(['threads', 'native', 'io_uring'])],
    }),
  }),
  'null-co': (s) => ({
    ...s.some({ size: [0.9, () => (s.chance(0.7) ? 1 << 20 : s.size())] }),
    ...s.some({ 'read-zeroes': [0.2, s.flag] }),
  }),
  raw: (s, depth) => ({
    file: s.ref(depth, FORMATS),
    ...s.some({ offset: [0.15, s.size], size: [0.15, s.size] }),
  }),
  qcow2: (s, depth) => ({
    file: s.chance(0.8)
      ? { driver: 'file', filename: s.pick(FILES.slice(8)), locking: 'off' }
      : s.ref(depth),
    ...s.some({ backing: [0.35, () => (s.chance(0.3) ? null : s.ref(depth, FORMATS))] }),
    ...s.some({
      'lazy-refcounts': [0.05, s.flag],
      'pass-discard-request': [0.05, s.flag],
      'overlap-check': [0.05, () => s.pick(['none', 'cached', 'all', { template: 'none' }])],
      'cache-size': [0.05, () => s.pick([0, 65536, 1 << 20, 1 << 24])],
      'l2-cache-size': [0.05, () => s.pick([0, 65536, 1 << 20])],
      'cache-clean-interval': [0.03, () => s.pick([0, 10])],
    }),
  }),
  quorum: (s, depth) => ({
    children: Array.from({ length: s.random.int(4) }, () => s.ref(depth, FORMATS)),
    'vote-threshold': s.pick([1, 1, 1, 2, 2, 3, 0]),
    ...s.some({
      'read-pattern': [0.4, () => s.pick(['fifo', 'quorum'])],
      blkverify: [0.1, s.flag],
      'rewrite-corrupted': [0.15, s.flag],
    }),
  }),
  throttle: (s, depth) => ({
    'throttle-group': s.pick([...GROUPS, 'nope']),
    file: s.ref(depth, FORMATS),
  }),
  'copy-on-read': (s, depth) => ({ file: s.ref(depth, ['qcow2', ...FORMATS]) }),
  compress: (s, depth) => ({ file: s.ref(depth, ['qcow2', 'qcow2', 'raw']) }),
  preallocate: (s, depth) => ({
    file: s.ref(depth),
    ...s.some({ 'prealloc-align': [0.2, s.size], 'prealloc-size': [0.2, s.size] }),
  }),
  blkverify: (s, depth) => ({ raw: s.ref(depth), test: s.ref(depth, FORMATS) }),
  'null-aio': (s) => ({ size: s.size() }),
  blkdebug: (s, depth) => ({
    image: s.ref(depth, FORMATS),
    ...s.some({
      align: [0.1, () => s.pick([512, 4096, 1000, 0])],
      'max-transfer': [0.05, s.size],
      'opt-write-zero': [0.05, s.size],
      'opt-discard': [0.05, s.size],
      'take-child-perms': [0.08, () => [s.pick(PERMS)]],
      'unshare-child-perms': [0.08, () => [s.pick(PERMS)]],
      'inject-error': [0.1, () => [{ event: 'read_aio', ...s.some({ errno: [0.5, () => 5] }) }]],
      'set-state': [0.05, () => [{ event: 'read_aio', new_state: s.random.int(3) }]],
    }),
  }),
}

const bitmapArgs: Make = (s) => {
  const [node, name] = s.bitmap()
  return { node, name }
}

const COMMANDS: Readonly<Record<string, readonly [number, Make]>> = {
  'blockdev-add': [
    30,
    (s) => {
      const options = s.options(s.pick(Object.keys(DRIVERS)))
      return s.chance(0.98) ? { ...options, 'node-name': s.newName() } : options
    },
  ],
  'blockdev-del': [10, (s) => ({ 'node-name': s.node() })],
  'blockdev-reopen': [
    16,
    (s) => ({ options: Array.from({ length: s.chance(0.85) ? 1 : 2 }, () => s.reopened()) }),
  ],
  'x-blockdev-change': [
    7,
    (s) => ({
      parent: s.node(),
      ...(s.chance(0.5) ? { node: s.node() } : { child: s.pick(CHILDREN) }),
      ...s.some({ child: [0.04, () => s.pick(CHILDREN)] }),
    }),
  ],
  block_resize: [6, (s) => ({ 'node-name': s.node(), size: s.chance(0.03) ? -512 : s.size() })],
  'blockdev-snapshot': [6, (s) => ({ node: s.node(), overlay: s.node() })],
  'blockdev-snapshot-sync': [
    4,
    (s) => ({
      'node-name': s.node(),
      'snapshot-file': s.pick(['snap0.qcow2', 'snap1.qcow2', 'a.qcow2', 'folder/x/y']),
      ...s.some({
        'snapshot-node-name': [0.85, () => s.newName()],
        format: [0.4, () => s.pick(['qcow2', 'qcow2', 'raw', 'nope'])],
        mode: [0.2, () => s.pick(['existing', 'absolute-paths'])],
      }),
    }),
  ],
  'change-backing-file': [
    4,
    (s) => ({
      device: s.node(),
      'image-node-name': s.node(),
      'backing-file': s.pick(['base.qcow2', 'a.raw', '', 'nowhere']),
    }),
  ],
  'block-dirty-bitmap-add': [
    8,
    (s) => ({
      node: s.node(),
      name: s.chance(0.97) ? s.pick(BITMAPS) : s.pick(['', 'x'.repeat(1100)]),
      ...s.some({
        granularity: [0.3, () => s.pick([512, 4096, 65536, 1000, 256, 0])],
        persistent: [0.3, s.flag],
        disabled: [0.2, s.flag],
      }),
    }),
  ],
  'block-dirty-bitmap-remove': [3, bitmapArgs],
  'block-dirty-bitmap-clear': [2, bitmapArgs],
  'block-dirty-bitmap-enable': [2, bitmapArgs],
  'block-dirty-bitmap-disable': [2, bitmapArgs],
  'block-dirty-bitmap-merge': [
    4,
    (s) => {
      const [node, target] = s.bitmap()
      const bitmaps = Array.from({ length: s.random.int(3) }, () => {
        const [from, name] = s.bitmap()
        return s.chance(0.5) ? name : { node: from, name }
      })
      return { node, target, bitmaps }
    },
  ],
  'nbd-server-start': [3, () => ({ addr: { type: 'unix', data: { path: 'nbd.sock' } } })],
  'nbd-server-stop': [1, () => ({})],
  'nbd-server-add': [
    2,
    (s) => ({
      device: s.node(),
      ...s.some({
        name: [0.5, () => s.pick(EXPORTS)],
        writable: [0.6, s.flag],
        bitmap: [0.15, () => s.bitmap()[1]],
      }),
    }),
  ],
  'block-export-add': [
    6,
    (s) => ({
      type: 'nbd',
      id: s.chance(0.97) ? s.pick(EXPORTS) : '5bad',
      'node-name': s.node(),
      ...s.some({
        name: [0.3, () => s.pick(EXPORTS)],
        writable: [0.6, s.flag],
        writethrough: [0.05, s.flag],
        'allocation-depth': [0.1, s.flag],
        bitmaps: [0.15, () => [s.bitmap()[1]]],
      }),
    }),
  ],
  'block-export-del': [
    4,
    (s) => ({
      id: s.world.exports.length > 0 && s.chance(0.85) ? s.pick(s.world.exports) : s.pick(EXPORTS),
      ...s.some({ mode: [0.2, () => s.pick(['safe', 'hard'])] }),
    }),
  ],
  'block-set-write-threshold': [
    2,
    (s) => ({ 'node-name': s.node(), 'write-threshold': s.pick([0, 1000, 1 << 20, 1 << 30]) }),
  ],
  'object-add': [
    5,
    (s) => ({
      'qom-type': s.chance(0.85) ? 'throttle-group' : 'iothread',
      id: s.chance(0.95) ? s.pick(GROUPS) : s.pick(['5', '', 'a b']),
      ...s.some({ limits: [0.3, () => limits(s)] }),
    }),
  ],
  'object-del': [2, (s) => ({ id: s.pick(GROUPS) })],
  'qom-set': [
    2,
    (s) => ({ path: `/objects/${s.pick(GROUPS)}`, property: 'limits', value: limits(s) }),
  ],
  'qom-get': [2, (s) => ({ path: `/objects/${s.pick(GROUPS)}`, property: 'limits' })],
  transaction: [8, (s) => ({ actions: Array.from({ length: s.random.int(4) }, () => s.action()) })],
}

function limits(s: Steps): object {
  const number = (): number => s.pick([0, 1000, 1 << 20, 10])
  return s.some({
    'bps-total': [0.4, number],
    'bps-read': [0.2, number],
    'iops-total': [0.3, number],
    'iops-total-max': [0.2, number],
    'iops-total-max-length': [0.1, () => s.pick([0, 1, 10])],
    'iops-size': [0.2, number],
    nope: [0.03, number],
  })
}
