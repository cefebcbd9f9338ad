/** The quorum driver over real nodes, some of which fail on demand. */
import { describe, expect, test } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { BlockBackend } from '../../../src/block/backend.ts'
import type { BlockdevOptions, DriverDefinition } from '../../../src/block/driver.ts'
import { NO_LIMITS, PERM } from '../../../src/block/driver.ts'
import type { EventData } from '../../../src/block/events.ts'
import { BlockGraph } from '../../../src/block/graph.ts'
import { memoryDriver } from '../../../src/drivers/memory.ts'
import { quorumDriver } from '../../../src/drivers/quorum.ts'
import type { ErrorCode } from '../../../src/util/errors.ts'
import { BlockError, ioError } from '../../../src/util/errors.ts'

const SIZE = 64 * 1024

/** What a `faulty` node does; shared with the test through the node's options. */
interface Faults {
  read?: ErrorCode
  write?: ErrorCode
  flush?: ErrorCode
  later?: boolean
  masked?: boolean
  alignment?: number
  log: string[]
}

/** A disk of plain bytes that fails, waits or hides its failures as the test says. */
const faultyDriver: DriverDefinition = {
  name: 'faulty',
  kind: 'protocol',
  async open(_node, options) {
    const faults = options.faults as Faults
    const bytes = Buffer.alloc((options.size as number | undefined) ?? SIZE)
    const act = (op: 'read' | 'write' | 'flush', run: () => void): Promise<void> | undefined => {
      const code = faults[op]
      faults.log.push(op)
      if (faults.later !== true) {
        if (code !== undefined) throw ioError(code)
        run()
        return undefined
      }
      return Promise.resolve().then(() => {
        if (code !== undefined) throw ioError(code)
        run()
      })
    }
    return {
      limits: { ...NO_LIMITS, requestAlignment: faults.alignment ?? 1 },
      writeFlags: 0,
      zeroesFlags: 0,
      ...(faults.masked === true ? { countsAsVote: false } : {}),
      length: () => bytes.length,
      pread: (offset, buf) =>
        act('read', () => buf.set(bytes.subarray(offset, offset + buf.length))),
      pwrite: (offset, buf) => act('write', () => bytes.set(buf, offset)),
      flush: (toDisk) => (toDisk ? act('flush', () => {}) : undefined),
      close() {},
    }
  },
}

/** A graph with a quorum `q` over faulty disks `c0`, `c1` … and a backend over it. */
async function quorum(faults: Partial<Faults>[], options: object = {}) {
  const graph = new BlockGraph({
    ctx: new AioContext(),
    drivers: [faultyDriver, memoryDriver, quorumDriver],
  })
  const disks = faults.map((each): Faults => Object.assign(each, { log: [] }))
  const events: [string, EventData][] = []
  graph.events.onAny((name, data) => events.push([name, data]))
  const children = disks.map((each, i) => disk(`c${i}`, each))
  const given = { 'vote-threshold': 1, children, ...options }
  await graph.add({ driver: 'quorum', 'node-name': 'q', ...given })
  const node = graph.lookup('q')
  const perm = PERM.CONSISTENT_READ | PERM.WRITE
  const backend = await BlockBackend.create(graph, node, { perm, shared: PERM.ALL })
  /** Bytes that one child holds. */
  const held = async (name: string, offset = 0): Promise<number> => {
    const buf = Buffer.alloc(1)
    await graph.lookup(name).driver?.pread(offset, buf)
    return buf[0] as number
  }
  return { graph, node, backend, disks, events, held }
}

function disk(name: string, faults: Faults): BlockdevOptions {
  return { driver: 'faulty', 'node-name': name, faults }
}

async function read(backend: BlockBackend, offset = 0): Promise<number> {
  const buf = Buffer.alloc(512)
  await backend.pread(offset, buf)
  return buf[0] as number
}

async function refused(work: () => unknown): Promise<BlockError> {
  try {
    await work()
  } catch (error) {
    if (error instanceof BlockError) return error
  }
  throw new Error('expected a BlockError')
}

describe('quorum options', () => {
  test.each([
    [0, {}, 'Number of provided children must be 1 or more'],
    [1, { 'vote-threshold': 0 }, "Parameter 'vote-threshold' expects a value >= 1"],
    [2, { 'vote-threshold': 3 }, 'threshold may not exceed children count'],
    [
      3,
      { 'vote-threshold': 2, blkverify: true },
      'blkverify=on can only be set if there are exactly',
    ],
    [
      2,
      { 'vote-threshold': 2, blkverify: true, 'rewrite-corrupted': true },
      'rewrite-corrupted=on cannot be used with blkverify=on',
    ],
  ])('quorum / options / %i children with %j are refused', async (count, options, text) => {
    const faults = Array.from({ length: count }, () => ({}))
    const error = await refused(() => quorum(faults, options))
    expect(error.code).toBe('EINVAL')
    expect(error.message).toContain(text)
  })

  test('quorum / options / children of different sizes are refused', async () => {
    const children = [disk('a', { log: [] }), { ...disk('b', { log: [] }), size: 512 }]
    const error = await refused(() => quorum([], { children }))
    expect(error.message).toBe('Could not refresh total sector count: Input/output error')
  })
})

describe('quorum write', () => {
  test.each([false, true])('quorum / write / reaches all children (later: %s)', async (later) => {
    const { backend, held, events } = await quorum([{ later }, { later }, {}])
    await backend.pwrite(0, Buffer.alloc(512, 7))
    expect([await held('c0'), await held('c1'), await held('c2')]).toEqual([7, 7, 7])
    expect(events).toEqual([])
  })

  test('quorum / write / inline children leave nothing to wait for', async () => {
    const { backend } = await quorum([{}, {}])
    expect(backend.pwrite(0, Buffer.alloc(512, 7))).toBeUndefined()
  })

  test('quorum / write / enough votes hide a failure but report it', async () => {
    const { backend, events } = await quorum([{}, { write: 'EIO' }])
    await backend.pwrite(1024, Buffer.alloc(1024, 7))
    const where = { 'node-name': 'c1', 'sector-num': 2, 'sectors-count': 2 }
    expect(events).toEqual([
      ['QUORUM_REPORT_BAD', { type: 'write', error: 'Input/output error', ...where }],
    ])
  })

  test('quorum / write / too few votes give the most frequent error', async () => {
    const faults: Partial<Faults>[] = [{ write: 'EIO' }, { write: 'ENOSPC' }, { write: 'ENOSPC' }]
    const { backend, events } = await quorum(faults)
    const error = await refused(() => backend.pwrite(0, Buffer.alloc(512, 7)))
    expect(error.code).toBe('ENOSPC')
    expect(events.at(-1)).toEqual([
      'QUORUM_FAILURE',
      { reference: 'q', 'sector-num': 0, 'sectors-count': 1 },
    ])
  })

  test('quorum / write / a child that hides its failures is no vote', async () => {
    const { backend, disks } = await quorum([{ write: 'EIO' }, { masked: true }])
    expect((await refused(() => backend.pwrite(0, Buffer.alloc(512, 7)))).code).toBe('EIO')
    delete disks[0]!.write
    await backend.pwrite(0, Buffer.alloc(512, 7))
  })

  test('quorum / write / a child that hides its failures is not missed either', async () => {
    const { backend } = await quorum([{}, { masked: true, write: 'EIO' }], { 'vote-threshold': 2 })
    await backend.pwrite(0, Buffer.alloc(512, 7))
  })

  test('quorum / write / partial blocks are completed from a child that can read', async () => {
    const replica = { read: 'EIO', alignment: 512 } as const
    const { backend, held } = await quorum([{}, replica], { 'read-pattern': 'fifo' })
    await backend.pwrite(0, Buffer.alloc(512, 1))
    await backend.pwrite(100, Buffer.alloc(10, 2))
    expect(await held('c0', 99)).toBe(1)
    expect(await held('c0', 100)).toBe(2)
  })

  test('quorum / flush / every child votes and a failure has no sectors', async () => {
    const { backend, events, disks } = await quorum([{ flush: 'EIO' }, {}])
    await backend.pwrite(0, Buffer.alloc(512, 7))
    await backend.flush()
    expect(disks[1]?.log).toContain('flush')
    expect(events).toMatchObject([['QUORUM_REPORT_BAD', { type: 'flush', 'sectors-count': 0 }]])
  })

  test('quorum / discard / succeeds without reaching a child', async () => {
    const { backend, disks } = await quorum([{}, {}])
    await backend.pdiscard(0, SIZE)
    expect(disks.map((each) => each.log)).toEqual([[], []])
  })

  test('quorum / write zeroes / reach all children', async () => {
    const { backend, held } = await quorum([{}, {}])
    await backend.pwrite(0, Buffer.alloc(512, 7))
    await backend.pwriteZeroes(0, 512)
    expect([await held('c0'), await held('c1')]).toEqual([0, 0])
  })
})

describe('quorum fifo read', () => {
  const fifo = { 'read-pattern': 'fifo' }

  test('quorum / fifo / the first child is asked alone', async () => {
    const { backend, disks } = await quorum([{}, {}], fifo)
    await read(backend)
    expect(disks.map((each) => each.log)).toEqual([['read'], []])
  })

  test.each([false, true])(
    'quorum / fifo / a failing child is skipped (later: %s)',
    async (later) => {
      const { backend, events } = await quorum([{ read: 'EIO', later }, { later }], fifo)
      await backend.pwrite(0, Buffer.alloc(512, 7))
      expect(await read(backend)).toBe(7)
      expect(events).toMatchObject([['QUORUM_REPORT_BAD', { type: 'read', 'node-name': 'c0' }]])
    },
  )

  test('quorum / fifo / the read fails when every child does', async () => {
    const { backend } = await quorum([{ read: 'EIO' }, { read: 'EIO' }], fifo)
    expect((await refused(() => read(backend))).code).toBe('EIO')
  })

  test('quorum / fifo / holes of the first child are holes of the quorum', async () => {
    const children = ['a', 'b'].map((name) => ({ driver: 'memory', 'node-name': name, size: SIZE }))
    const { backend } = await quorum([], { children, ...fifo })
    await backend.pwrite(4096, Buffer.alloc(4096, 7))
    expect(await backend.blockStatus(0, SIZE)).toMatchObject({ bytes: 4096, flags: 0x12 })
    expect(await backend.blockStatus(4096, SIZE - 4096)).toMatchObject({ bytes: 4096, flags: 0x11 })
  })
})

describe('quorum vote', () => {
  /** Three children with the same byte, except those given. */
  async function voting(odd: Record<string, number>, options: object = {}) {
    const made = await quorum([{}, {}, {}], { 'vote-threshold': 2, ...options })
    await made.backend.pwrite(0, Buffer.alloc(512, 7))
    for (const [name, byte] of Object.entries(odd)) {
      await made.graph.lookup(name).driver?.pwrite(0, Buffer.alloc(512, byte), 0)
    }
    return made
  }

  test('quorum / vote / the majority wins and the odd child is reported but left alone', async () => {
    const { backend, events, held } = await voting({ c1: 9 })
    expect(await read(backend)).toBe(7)
    const where = { 'node-name': 'c1', 'sector-num': 0, 'sectors-count': 1 }
    expect(events).toEqual([['QUORUM_REPORT_BAD', { type: 'read', ...where }]])
    expect(await held('c1')).toBe(9)
  })

  test('quorum / vote / rewrite-corrupted repairs the odd child', async () => {
    const { backend, held } = await voting({ c1: 9 }, { 'rewrite-corrupted': true })
    expect(await read(backend)).toBe(7)
    expect(await held('c1')).toBe(7)
  })

  test('quorum / vote / without a majority the read fails', async () => {
    const { backend, events } = await voting({ c0: 8, c1: 9 })
    expect((await refused(() => read(backend))).code).toBe('EIO')
    expect(events.map(([name]) => name)).toContain('QUORUM_FAILURE')
  })

  test('quorum / vote / too many failures give their error', async () => {
    const { backend, disks } = await voting({})
    for (const each of disks.slice(1)) each.read = 'ENOSPC'
    expect((await refused(() => read(backend))).code).toBe('ENOSPC')
  })

  test('quorum / vote / blkverify names the first byte that differs', async () => {
    const { backend, graph } = await quorum([{}, {}], { 'vote-threshold': 2, blkverify: true })
    await graph.lookup('c1').driver?.pwrite(300, Buffer.alloc(1, 9), 0)
    const error = await refused(() => read(backend))
    expect(error.context.offset).toBe(300)
  })
})

describe('quorum children', () => {
  test('quorum / children / the highest name is given back, others are not', async () => {
    const { graph, node } = await quorum([{}, {}, {}])
    const names: string[][] = []
    const note = (): unknown => names.push([...node.children.keys()].map((key) => key.slice(9)))
    const remove = async (name: string): Promise<void> => {
      await node.driver?.removeChild?.(node.child(name)!)
      note()
    }
    const add = async (name: string): Promise<void> => {
      const added = graph.find(name) ?? (await graph.add(disk(name, { log: [] })))
      await node.driver?.addChild?.(added)
      note()
    }
    await remove('children.0')
    await add('n')
    await remove('children.3')
    await add('n')
    expect(names).toEqual([
      ['1', '2'],
      ['1', '2', '3'],
      ['1', '2'],
      ['1', '2', '3'],
    ])
  })

  test('quorum / children / never fewer than the threshold', async () => {
    const { node } = await quorum([{}, {}], { 'vote-threshold': 2 })
    const error = await refused(() => node.driver?.removeChild?.(node.child('children.1')!))
    expect(error.message).toBe('The number of children cannot be lower than the vote threshold 2')
  })

  test('quorum / children / none is added in blkverify mode or with another size', async () => {
    const verify = await quorum([{}, {}], { 'vote-threshold': 2, blkverify: true })
    const plain = await quorum([{}])
    const small = await plain.graph.add({ ...disk('small', { log: [] }), size: 512 })
    const other = await verify.graph.add(disk('other', { log: [] }))
    const blkverify = await refused(() => verify.node.driver?.addChild?.(other))
    expect(blkverify.message).toBe('Cannot add a child to a quorum in blkverify mode')
    expect((await refused(() => plain.node.driver?.addChild?.(small))).code).toBe('EIO')
  })

  test('quorum / children / an added child takes part in writes, a removed one does not', async () => {
    const { graph, node, backend, held } = await quorum([{}])
    await graph.add(disk('n', { log: [] }))
    await node.driver?.addChild?.(graph.lookup('n'))
    await backend.pwrite(0, Buffer.alloc(512, 3))
    await node.driver?.removeChild?.(node.child('children.1')!)
    await backend.pwrite(0, Buffer.alloc(512, 4))
    expect([await held('c0'), await held('n')]).toEqual([4, 3])
  })

  test('quorum / close / everything is given up', async () => {
    const { graph, backend } = await quorum([{}, {}])
    await backend.close()
    await graph.remove('q')
    expect(graph.nodes()).toEqual([])
  })
})
