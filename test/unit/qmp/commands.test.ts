import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { isObject, type JsonObject, type JsonValue } from '../../../src/qmp/json.ts'
import { BlockError } from '../../../src/util/errors.ts'
import { memory, Rig } from './rig.ts'

let rig: Rig

beforeEach(() => {
  rig = new Rig()
})

afterEach(() => rig.close())

const run = (name: string, args?: JsonObject): Promise<JsonValue> => rig.run(name, args)
const refused = (name: string, args?: JsonObject): Promise<string> => rig.refused(name, args)

describe('qmp / commands / nodes', () => {
  test('newest node first, with its image', async () => {
    await run('blockdev-add', memory('a'))
    await run('blockdev-add', { driver: 'raw', 'node-name': 'b', file: 'a' })
    const nodes = await run('query-named-block-nodes', { flat: true })
    expect(nodes).toMatchObject([
      { 'node-name': 'b', drv: 'raw', ro: false, image: { 'virtual-size': 65536, format: 'raw' } },
      { 'node-name': 'a', drv: 'memory', backing_file_depth: 0 },
    ])
  })

  test('a backing image is counted and shown inside', async () => {
    await run('blockdev-add', memory('a'))
    await run('blockdev-add', { ...memory('b'), backing: 'a' })
    const nodes = await run('query-named-block-nodes')
    expect(nodes).toMatchObject([
      { 'node-name': 'b', backing_file_depth: 1, image: { 'backing-image': { format: 'memory' } } },
      {},
    ])
  })

  test('names and drivers are refused in the words of the protocol', async () => {
    await run('blockdev-add', memory('a'))
    expect(await refused('blockdev-add', memory('a'))).toBe("Duplicate nodes with node-name='a'")
    expect(await refused('blockdev-add', memory('0a'))).toBe("Invalid node-name: '0a'")
    expect(await refused('blockdev-add', { driver: 'null-co' })).toBe(
      "'node-name' must be specified for the root node",
    )
    expect(await refused('blockdev-add', { driver: 'blkreplay', 'node-name': 'x' })).toBe(
      "Unknown driver 'blkreplay'",
    )
    expect(await refused('blockdev-del', { 'node-name': 'nope' })).toBe(
      "Failed to find node with node-name='nope'",
    )
  })

  test('x-blockdev-change refuses what cannot be', async () => {
    await run('blockdev-add', memory('n0'))
    await run('blockdev-add', { driver: 'raw', 'node-name': 'r0', file: 'n0' })
    const change = (args: JsonObject) => refused('x-blockdev-change', args)
    expect(await change({ parent: 'nope' })).toBe("Cannot find device='nope' nor node-name='nope'")
    expect(await change({ parent: 'n0' })).toBe('Either child or node must be specified')
    expect(await change({ parent: 'n0', node: 'a', child: 'b' })).toBe(
      'The parameters child and node are in conflict',
    )
    expect(await change({ parent: 'n0', node: 'r0' })).toBe(
      'The node n0 does not support adding a child',
    )
    expect(await change({ parent: 'n0', node: 'nope' })).toBe("Node 'nope' not found")
    expect(await change({ parent: 'r0', child: 'file' })).toBe(
      'The node r0 does not support removing a child',
    )
    expect(await change({ parent: 'r0', child: 'zz' })).toBe("Node 'r0' does not have child 'zz'")
  })

  test('block_resize checks the size and the driver', async () => {
    await run('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 65536 })
    const resize = (size: number, name = 'n') =>
      refused('block_resize', { 'node-name': name, size })
    expect(await resize(-5, 'x')).toBe("Cannot find device='' nor node-name='x'")
    expect(await resize(-5)).toBe("Parameter 'size' expects a >0 size")
    expect(await resize(5)).toBe('Image format driver does not support resize')
    expect(await resize(512)).toBe('Image format driver does not support resize')
  })

  test('blockdev-reopen needs names that exist', async () => {
    expect(await refused('blockdev-reopen', { options: [{ driver: 'null-co' }] })).toBe(
      'node-name not specified',
    )
    expect(await refused('blockdev-reopen', { options: [memory('nope')] })).toBe(
      "Failed to find node with node-name='nope'",
    )
  })
})

describe('qmp / commands / chains', () => {
  test('an overlay is put over a node and its users move onto it', async () => {
    await run('blockdev-add', memory('a'))
    await run('blockdev-add', { ...memory('over'), backing: null })
    await run('nbd-server-start', {
      addr: { type: 'inet', data: { host: '127.0.0.1', port: '0' } },
    })
    await run('nbd-server-add', { device: 'a', writable: true })
    await run('blockdev-snapshot', { node: 'a', overlay: 'over' })
    expect(await run('query-block-exports')).toMatchObject([{ 'node-name': 'over' }])
    expect(await refused('blockdev-del', { 'node-name': 'a' })).toMatch(/in use|busy/)
    expect(await refused('blockdev-snapshot', { node: 'a', overlay: 'over' })).toMatch(
      /busy|in use/,
    )
  })

  test('block-commit finds its images before it starts', async () => {
    await run('blockdev-add', memory('a'))
    await run('blockdev-add', { ...memory('b'), backing: 'a' })
    const commit = (args: JsonObject) =>
      refused('block-commit', { 'job-id': 'j', device: 'b', ...args })
    expect(await commit({ device: 'nope' })).toBe("Device 'nope' not found")
    expect(await commit({ base: 'zz' })).toBe("Can't find 'zz' in the backing chain")
    expect(await commit({ base: 'zz', 'base-node': 'a' })).toBe(
      "'base-node' and 'base' are mutually exclusive",
    )
    expect(await commit({ 'base-node': 'b' })).toBe('cannot commit an image into itself')
    expect(await commit({ speed: -1 })).toBe("Parameter 'speed' expects a non-negative value")
    expect(await run('query-jobs')).toEqual([])
  })

  test('an active commit becomes ready and moves the users of the top to the base', async () => {
    await run('blockdev-add', memory('a'))
    await run('blockdev-add', { ...memory('b'), backing: 'a' })
    const ready = rig.graph.events.once('BLOCK_JOB_READY')
    await run('block-commit', { 'job-id': 'j', device: 'b' })
    await ready
    const ended = rig.graph.events.once('BLOCK_JOB_COMPLETED')
    await run('job-complete', { id: 'j' })
    expect(await ended).toMatchObject({ device: 'j', type: 'commit' })
  })

  test('a backup that keeps old data runs until it is cancelled', async () => {
    await run('blockdev-add', memory('a'))
    await run('blockdev-add', memory('t'))
    const backup = { device: 'a', target: 't', sync: 'none' }
    expect(await refused('blockdev-backup', { ...backup, 'job-id': '5x' })).toBe(
      "Invalid job ID '5x'",
    )
    expect(await refused('blockdev-backup', { ...backup, target: 'a', 'job-id': 'j' })).toBe(
      'Source and target cannot be the same',
    )
    await run('blockdev-backup', { ...backup, 'job-id': 'j' })
    expect(await run('query-block-jobs')).toMatchObject([{ device: 'j', type: 'backup' }])
    const ended = rig.graph.events.once('BLOCK_JOB_CANCELLED')
    await run('block-job-cancel', { device: 'j' })
    expect(await ended).toMatchObject({ device: 'j' })
  })
})

describe('qmp / commands / exports', () => {
  const addr = { type: 'inet', data: { host: '127.0.0.1', port: '0' } }

  test('a server runs once and its exports have ids and names of their own', async () => {
    await run('blockdev-add', memory('a'))
    expect(await refused('nbd-server-stop')).toBe('NBD server not running')
    expect(await refused('nbd-server-add', { device: 'a' })).toBe('NBD server not running')
    await run('nbd-server-start', { addr })
    expect(await refused('nbd-server-start', { addr })).toBe('NBD server already running')
    await run('nbd-server-add', { device: 'a', writable: true })
    expect(await refused('nbd-server-add', { device: 'a' })).toBe(
      "Block export id 'a' is already in use",
    )
    expect(await refused('nbd-server-add', { device: 'nope' })).toBe(
      "Cannot find device='nope' nor node-name='nope'",
    )
    const add = { type: 'nbd', id: 'e1', 'node-name': 'a' }
    expect(await refused('block-export-add', add)).toBe("NBD server already has export named 'a'")
    await run('block-export-add', { ...add, name: 'other', 'x-exclusive': true })
    expect(await refused('block-export-add', { ...add, id: '5' })).toBe('Invalid block export id')
    expect(await refused('block-export-add', { ...add, id: 'e2', 'node-name': 'nope' })).toBe(
      "Cannot find device='' nor node-name='nope'",
    )
    expect(await run('query-block-exports')).toEqual([
      { id: 'e1', type: 'nbd', 'node-name': 'a', 'shutting-down': false },
      { id: 'a', type: 'nbd', 'node-name': 'a', 'shutting-down': false },
    ])
    expect(await refused('blockdev-del', { 'node-name': 'a' })).toBe('Node a is in use')
  })

  test('an export that ends says so before the command returns', async () => {
    await run('blockdev-add', memory('a'))
    await run('nbd-server-start', { addr })
    await run('block-export-add', { type: 'nbd', id: 'e1', 'node-name': 'a' })
    await run('nbd-server-add', { device: 'a', name: 'second' })
    await run('block-export-del', { id: 'e1' })
    expect(rig.calls).toEqual(['BLOCK_EXPORT_DELETED {"id":"e1"}'])
    expect(await refused('block-export-del', { id: 'e1' })).toBe("Export 'e1' is not found")
    await run('nbd-server-stop')
    expect(rig.calls).toEqual([
      'BLOCK_EXPORT_DELETED {"id":"e1"}',
      'BLOCK_EXPORT_DELETED {"id":"second"}',
    ])
    await run('blockdev-del', { 'node-name': 'a' })
  })
})

describe('qmp / commands / replication', () => {
  test('orders reach the registry', async () => {
    await run('xen-set-replication', { enable: true, primary: false })
    await run('xen-colo-do-checkpoint')
    await run('xen-set-replication', { enable: false, primary: true, failover: true })
    expect(rig.calls).toEqual(['start secondary', 'checkpoint', 'stop true'])
  })

  test('failover belongs to stopping', async () => {
    expect(
      await refused('xen-set-replication', { enable: true, primary: true, failover: false }),
    ).toBe("Parameter 'failover' is only for stopping replication")
  })

  test('the status never fails', async () => {
    expect(await run('query-xen-replication-status')).toEqual({ error: false })
    rig.broken = new BlockError('EIO', 'I/O error occurred')
    expect(await run('query-xen-replication-status')).toEqual({
      desc: 'I/O error occurred',
      error: true,
    })
  })
})

describe('qmp / commands / jobs, objects, state', () => {
  test('unknown jobs have two classes of refusal', async () => {
    expect(await refused('job-cancel', { id: 'j' })).toBe('Job not found')
    expect(await refused('block-job-set-speed', { device: 'j', speed: -1 })).toBe(
      "Block job 'j' not found",
    )
    expect(await run('query-jobs')).toEqual([])
    expect(await run('query-block-jobs')).toEqual([])
  })

  test('objects live under their path', async () => {
    await run('object-add', { 'qom-type': 'iothread', id: 'i0', props: { 'poll-max-ns': 7 } })
    expect(await run('qom-get', { path: '/objects/i0', property: 'poll-max-ns' })).toBe(7)
    expect(await run('qom-get', { path: 'i0', property: 'type' })).toBe('iothread')
    expect(await refused('qom-get', { path: '/objects/i0', property: 'x' })).toBe(
      "Property 'iothread.x' not found",
    )
    expect(await refused('qom-list', { path: '/objects/rew0' })).toBe(
      "Device '/objects/rew0' not found",
    )
    const listed = await run('qom-list', { path: '/objects' })
    expect(listed).toContainEqual({ name: 'i0', type: 'child<iothread>' })
    expect(await refused('object-add', { 'qom-type': 'iothread', id: 'i0' })).toBe(
      "attempt to add duplicate property 'i0' to object (type 'container')",
    )
    await run('object-del', { id: 'i0' })
    expect(await refused('object-del', { id: 'i0' })).toBe("object 'i0' not found")
    expect(await refused('object-add', { 'qom-type': 'iothread', id: '5x' })).toBe(
      "Parameter 'id' expects an identifier",
    )
  })

  test('limits of a throttle group are read, changed and refused', async () => {
    const add = (limits: JsonObject) =>
      refused('object-add', { 'qom-type': 'throttle-group', id: 'g', limits })
    expect(await add({ 'bps-total': 1, 'bps-read': 1 })).toMatch(/cannot be used at the same time/)
    expect(await add({ 'iops-total': '5' })).toBe(
      "Invalid parameter type for 'limits.iops-total', expected: integer",
    )
    expect(await add({ 'iops-total': 100 })).toBe('accepted')
    const limits = () => run('qom-get', { path: '/objects/g', property: 'limits' })
    expect(await limits()).toMatchObject({
      'iops-total': 100,
      'bps-read': 0,
      'bps-read-max-length': 1,
    })
    const set = (value: JsonValue) => refused('qom-set', { path: 'g', property: 'limits', value })
    expect(await set(5)).toBe("Invalid parameter type for 'limits', expected: object")
    expect(await set({})).toBe('accepted')
    expect(await set({ 'iops-total': 0 })).toBe('accepted')
    expect(await limits()).toMatchObject({ 'iops-total': 0 })
  })

  test('secrets need exactly one source and keep it', async () => {
    const add = (options: JsonObject) =>
      refused('object-add', { 'qom-type': 'secret', id: 's', ...options })
    expect(await add({})).toBe("Either 'file' or 'data' must be provided")
    expect(await add({ file: 'x', data: 'y' })).toBe("'file' and 'data' are mutually exclusive")
    expect(await add({ data: '!', format: 'base64' })).toBe(
      'Base64 data contains invalid characters',
    )
    expect(await add({ data: 'hush' })).toBe('accepted')
    expect(await refused('qom-get', { path: 's', property: 'data' })).toBe(
      "Property 'secret.data' not found",
    )
  })

  test('stop and cont are told once', async () => {
    for (const name of ['stop', 'stop', 'cont', 'cont']) await run(name)
    expect(rig.calls).toEqual(['STOP {}', 'RESUME {}'])
    expect(await run('query-status')).toEqual({
      running: true,
      singlestep: false,
      status: 'running',
    })
  })

  test('yank knows only connections', async () => {
    await run('blockdev-add', memory('a'))
    const instances = [{ type: 'block-node', 'node-name': 'a' }]
    expect(await refused('yank', { instances })).toBe('Instance not found')
    expect(await run('query-yank')).toEqual([])
  })

  test('every command has a schema for objects and a name of its own', async () => {
    const names = await run('query-commands')
    expect(Array.isArray(names) && names.every((entry) => isObject(entry))).toBe(true)
    expect(Object.keys(rig.commands).length).toBeGreaterThan(40)
  })
})
