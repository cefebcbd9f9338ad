/** A node of several children that counts its drains, holds its requests, and does what a test says when one ends. */
import type { BlockBackend } from '../../../src/block/backend.ts'
import type { BlockChild } from '../../../src/block/child.ts'
import {
  type BlockDriver,
  type BlockdevOptions,
  type DriverDefinition,
  NO_LIMITS,
  PERM,
} from '../../../src/block/driver.ts'
import type { BlockGraph } from '../../../src/block/graph.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { JobEdges, jobRegistry } from '../../../src/job/host.ts'
import type { Job } from '../../../src/job/job.ts'
import { guest, type Latch, latch, memoryGraph } from '../../support/graph.ts'
import type { TestDisk } from '../../support/test-disk.ts'

/** Bytes of the disks here. */
export const SIZE = 65536

/** What one `probe` node met. */
export interface Probe {
  begin: number
  end: number
  reads: number
  /** Requests wait here. */
  hold: Latch | undefined
  /** Runs when a held read has ended below. */
  afterRead: (() => void | Promise<void>) | undefined
  /** Thrown by the next request, before anything is done. */
  refuse: Error | undefined
}

/** All probes by node name; options `children` (names, none makes a disk of its own) and `via`. */
export class Probes {
  readonly #all = new Map<string, Probe>()
  readonly definition: DriverDefinition = {
    name: 'probe',
    kind: 'format',
    open: async (node, options, opener) => {
      const names = (options.children ?? []) as string[]
      for (const [index, name] of names.entries()) await opener.open(`child.${index}`, name, 'data')
      return this.#driver(node, Number(options.via ?? 0))
    },
    childPermissions: (_node, _child, above) => ({ perm: above.perm, shared: PERM.ALL }),
  }

  /** The probe of a node. */
  of(name: string): Probe {
    const found = this.#all.get(name) ?? {
      begin: 0,
      end: 0,
      reads: 0,
      hold: undefined,
      afterRead: undefined,
      refuse: undefined,
    }
    this.#all.set(name, found)
    return found
  }

  #driver(node: BlockNode, via: number): BlockDriver {
    const probe = this.of(node.name)
    const below = (): BlockChild | undefined => node.children.get(`child.${via}`)
    const start = (): void => {
      if (probe.refuse === undefined) return
      const error = probe.refuse
      probe.refuse = undefined
      throw error
    }
    const write = async (act: (edge: BlockChild) => unknown): Promise<void> => {
      await probe.hold?.promise
      const edge = below()
      if (edge !== undefined) await act(edge)
    }
    return {
      length: () => SIZE,
      limits: NO_LIMITS,
      writeFlags: 0,
      zeroesFlags: 0,
      pread: (offset, buf) => {
        start()
        probe.reads++
        return this.#read(probe, below, offset, buf)
      },
      pwrite: (offset, buf, flags) => {
        start()
        return write((edge) => edge.pwrite(offset, buf, flags))
      },
      pwriteZeroes: (offset, bytes, flags) => {
        start()
        return write((edge) => edge.pwriteZeroes(offset, bytes, flags))
      },
      pdiscard: (offset, bytes) => {
        start()
        return write((edge) => edge.pdiscard(offset, bytes))
      },
      blockStatus: async (_offset, bytes) => {
        start()
        await probe.hold?.promise
        return { flags: 0x11, bytes }
      },
      flush: async () => {
        start()
        await probe.hold?.promise
      },
      drainBegin: () => {
        probe.begin++
      },
      drainEnd: () => {
        probe.end++
      },
      reopenPrepare: () => ({ commit: () => undefined, abort: () => undefined }),
      close: () => undefined,
    }
  }

  async #read(
    probe: Probe,
    below: () => BlockChild | undefined,
    offset: number,
    buf: Uint8Array,
  ): Promise<void> {
    await probe.hold?.promise
    await below()?.pread(offset, buf)
    await probe.afterRead?.()
  }
}

/** Options of a probe. */
export const probe = (name: string, ...children: string[]): BlockdevOptions => ({
  driver: 'probe',
  'node-name': name,
  children,
})

/** Options of a memory disk. */
export const memory = (name: string, backing?: string): BlockdevOptions => ({
  driver: 'memory',
  'node-name': name,
  size: SIZE,
  ...(backing === undefined ? {} : { backing }),
})

/** Quiesce count of every node. */
export const counts = (graph: BlockGraph): Record<string, number> =>
  Object.fromEntries(graph.nodes().map((n) => [n.name, n.gate.quiesceCount]))

/** A read of one sector, as a promise. */
export const readOne = async (user: BlockBackend): Promise<void> => {
  await user.pread(0, new Uint8Array(512))
}

/** A few turns of the loop. */
export async function turns(): Promise<void> {
  for (let n = 0; n < 5; n++) await new Promise((resolve) => setImmediate(resolve))
}

/** Whether a promise has settled within a few turns of the loop; it must not depend on anything else. */
export async function settles(what: Promise<unknown>): Promise<boolean> {
  let done = false
  const mark = (): void => {
    done = true
  }
  what.then(mark, mark)
  await turns()
  return done
}

/** A job that works in small steps until it is told to finish. */
export interface StepJob {
  readonly job: Job
  readonly edges: JobEdges
  /** Ends the work at its next step. */
  finish(): void
}

/** How a job of steps ends. */
export interface StepJobOptions {
  /** The work fails when it is told to finish. */
  readonly failRun?: Error
  /** The preparation fails. */
  readonly failPrepare?: Error
  /** Runs when the job commits. */
  readonly commit?: () => void | Promise<void>
  /** One step of work. */
  readonly step?: () => Promise<void>
}

/** Starts a job on nodes; each gets an edge. */
export async function stepJob(
  graph: BlockGraph,
  nodes: readonly BlockNode[],
  { failRun, failPrepare, commit, step }: StepJobOptions = {},
): Promise<StepJob> {
  let finished = false
  const job = jobRegistry(graph).create({
    id: `job${Math.max(0, graph.nodes().length)}`,
    driver: {
      type: 'backup',
      run: async (self) => {
        while (!finished) {
          await (step ?? (() => new Promise<void>((resolve) => setImmediate(resolve))))()
          await self.pausePoint()
        }
        if (failRun !== undefined) throw failRun
      },
      prepare: () => {
        if (failPrepare !== undefined) throw failPrepare
      },
      commit: async () => {
        await commit?.()
      },
      clean: () => edges.detachAll(),
    },
  })
  const edges = new JobEdges(graph, job)
  for (const [index, node] of nodes.entries())
    await edges.add(node, index === 0 ? 'main node' : `node ${index}`)
  job.start()
  return {
    job,
    edges,
    finish: () => {
      finished = true
    },
  }
}

/** A test disk as node `t`, and a guest of it. */
export async function openDisk(
  disk: TestDisk,
  options: Record<string, unknown> = {},
): Promise<{ graph: BlockGraph; user: BlockBackend }> {
  const graph = memoryGraph(disk.definition)
  const node = await graph.add({ driver: 'test', 'node-name': 't', ...options })
  return { graph, user: await guest(graph, node) }
}

/** A read of `pa` over `a` that is held, and whose end puts `to` in the place of `b` below `pb`. */
export async function readThatSwaps(
  graph: BlockGraph,
  probes: Probes,
  to: BlockNode,
): Promise<{ pb: BlockNode; held: Latch; read: Promise<void> }> {
  const pa = await graph.add(probe('pa', 'a'))
  const pb = await graph.add(probe('pb', 'a', 'b'))
  const user = await guest(graph, pa)
  const held = latch()
  probes.of('pa').hold = held
  probes.of('pa').afterRead = async () => {
    const edge = pb.child('child.1')
    if (edge !== undefined) graph.detach(edge)
    to.refs++
    await graph.attach(pb, to, 'child.1', 'data')
  }
  return { pb, held, read: readOne(user) }
}
