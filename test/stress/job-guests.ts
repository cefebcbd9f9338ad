/** Guests at full speed with a model of what they wrote, and a hand that disturbs jobs. */
import type { BlockBackend } from '../../src/block/backend.ts'
import type { BlockGraph } from '../../src/block/graph.ts'
import type { BlockNode } from '../../src/block/node.ts'
import type { WorkerBody } from '../../src/job/body.ts'
import type { Job } from '../../src/job/job.ts'
import { BlockError } from '../../src/util/errors.ts'
import type { Random } from '../../src/util/random.ts'
import { turn } from '../unit/job/fixture.ts'

const SECTOR = 512
const MIB = 1024 * 1024

/** Throws with the first byte that differs, and with how to run it again. */
export function equal(a: Uint8Array, b: Uint8Array, what: string): void {
  if (Buffer.compare(a, b) === 0) return
  const at = a.findIndex((byte, i) => byte !== b[i])
  throw new Error(`${what}: byte ${at} is ${a[at]}, not ${b[at]}`)
}

/** Writers that own interleaved sectors: they meet in every cluster, never in a sector. */
export class Guests {
  /** What every acknowledged write left. */
  readonly model: Uint8Array
  /** Acknowledged writes. */
  writes = 0
  readonly #random: Random
  readonly #count: number
  #over = false
  #running: Promise<void>[] = []

  constructor(random: Random, size: number, count: number) {
    this.#random = random
    this.model = new Uint8Array(size)
    this.#count = count
  }

  /** Lets them write to a disk, some of them a sector at a time, some in runs of one value. */
  start(disk: BlockBackend): void {
    this.#over = false
    this.#running = Array.from({ length: this.#count }, (_, index) => this.#write(disk, index))
  }

  /** Ends them after their last writes. */
  async stop(): Promise<void> {
    this.#over = true
    await Promise.all(this.#running)
  }

  async #write(disk: BlockBackend, index: number): Promise<void> {
    const random = this.#random
    while (!this.#over) {
      const sector = random.int(this.model.length / SECTOR / this.#count) * this.#count + index
      const value = random.int(256)
      const buf = new Uint8Array(SECTOR).fill(value)
      try {
        await disk.pwrite(sector * SECTOR, buf)
        this.model.fill(value, sector * SECTOR, (sector + 1) * SECTOR)
        this.writes += 1
      } catch (thrown) {
        // A refused write must not have reached the disk, so the model does not know of it either.
        if (!isLoss(thrown)) throw thrown
      }
      if (random.int(3) === 0) await turn()
    }
  }
}

/** The errors of a write whose protection died. */
function isLoss(thrown: unknown): boolean {
  return thrown instanceof BlockError && /is lost|worker thread/.test(thrown.message)
}

/** What may be done to a job. */
export interface Disturbance {
  readonly graph: BlockGraph
  readonly random: Random
  readonly job: Job
  /** What may be drained. */
  readonly nodes: readonly BlockNode[]
  /** The threads to terminate. */
  readonly bodies: () => readonly WorkerBody[]
  /** Whether the job may be ended too. */
  readonly lethal: boolean
}

/** Pauses, drains, slows, and if it may, cancels or kills; leaves the job free to run. */
export async function disturb(d: Disturbance): Promise<void> {
  const { graph, random, job, nodes, bodies, lethal } = d
  for (let i = 5 + random.int(30); i > 0 && !job.completed; i--) {
    await turn()
    if (job.completed) return
    const what = random.int(lethal ? 24 : 18)
    const alive = isAlive(job)
    if (what === 0 && alive && !job.userPaused) job.userPause()
    else if (what === 1 && alive && job.userPaused) job.userResume()
    else if (what === 2 && alive) job.userSetSpeed(random.int(2) * 64 * MIB)
    else if (what < 6) {
      const node = nodes[random.int(nodes.length)]
      if (node !== undefined) await graph.withDrained(node, turn)
    } else if (what === 18) job.cancel(true)
    else if (what === 19) bodies()[random.int(2)]?.terminate()
  }
  if (job.completed) return
  if (job.userPaused) job.userResume()
  // A limited mirror need not catch up with a guest.
  if (isAlive(job)) job.userSetSpeed(0)
}

function isAlive(job: Job): boolean {
  return ['running', 'paused', 'ready', 'standby'].includes(job.status)
}
