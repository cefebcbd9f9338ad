/**
 * The workers that copy ranges on request, for a filter that has to have them copied.
 *
 * Invariants:
 * - A copy goes to the worker that has least to do; each answers in its own order.
 * - The death of one worker fails its copies and every later one; those of the others settle first.
 */
import type { ClusterCopier } from '../block/cluster-copier.ts'
import type { BlockNode } from '../block/node.ts'
import { Ring } from '../sync/ring.ts'
import { assert, type BlockError } from '../util/errors.ts'
import type { WorkerBody, WorkerBodyOptions } from './body.ts'
import type { ViewDescription } from './body-task.ts'
import { ClusterClient } from './cluster-client.ts'
import { ANSWER_SLOTS, COMMAND_SLOTS } from './cluster-server.ts'
import type { WorkerPool } from './pool.ts'
import { startBodies, teamSize } from './team.ts'

/** Commands that may wait for a worker; more writes than this wait for room. */
const RING_RECORDS = 1024

/** What a crew works on; both disks are attached. */
export interface CrewPlan {
  readonly source: ViewDescription
  readonly target: ViewDescription
  /** The node that the workers write behind the back of the block layer. */
  readonly targetNode: BlockNode
  /** Bytes to go through at best speed; 0 = only what a guest asks for. */
  readonly bytes: number
  /** See `MoveParts.skipUnallocated`; default false. */
  readonly skipUnallocated?: boolean | undefined
}

interface Member {
  readonly body: WorkerBody
  readonly client: ClusterClient
}

/** Copies ranges in one or several threads. */
export class ClusterCrew implements ClusterCopier {
  readonly #members: readonly Member[]

  private constructor(members: readonly Member[]) {
    this.#members = members
    for (const { body, client: dead } of members) {
      body.onDeath((cause) => {
        dead.fail(cause)
        // What the others are copying settles when it is done: its ranges are still being written.
        for (const { client } of members) if (client !== dead) client.refuse(cause)
      })
    }
  }

  /** Starts as many workers as the disks are worth. Errors: those of attaching a disk. */
  static async start(pool: WorkerPool, plan: CrewPlan): Promise<ClusterCrew> {
    const { bytes, targetNode: target } = plan
    const targetCluster = target.driver?.limits.clusterSize ?? 0
    const size = teamSize(pool, { bytes, targetCluster, options: optionsOf(plan) })
    const bodies = await startBodies(
      pool,
      Array.from({ length: size }, () => optionsOf(plan)),
    )
    return new ClusterCrew(bodies.map((body) => memberOf(body, target)))
  }

  /** The threads' handles; the first is always there. */
  get bodies(): readonly WorkerBody[] {
    return this.#members.map((member) => member.body)
  }

  /** Why the copies fail, when a thread died. */
  get death(): BlockError | undefined {
    return this.#members.find(({ body }) => body.death !== undefined)?.body.death
  }

  copy(offset: number, bytes: number): Promise<void> {
    let least = this.#members[0]
    for (const member of this.#members) {
      if (member.client.waiting < (least?.client.waiting ?? 0)) least = member
    }
    return least?.client.copy(offset, bytes) ?? Promise.resolve()
  }

  /** Calls `fn` when a thread dies without being told to; every later copy fails. */
  onDeath(fn: (cause: BlockError) => void): void {
    for (const { body } of this.#members) body.onDeath(fn)
  }

  /** Ends the workers and waits until their threads let go of everything. */
  async finish(): Promise<void> {
    for (const { client } of this.#members) client.close()
    await Promise.all(this.#members.map(({ body }) => body.finish()))
  }
}

function optionsOf({ source, target, skipUnallocated = false }: CrewPlan): WorkerBodyOptions {
  const commands = Ring.create(RING_RECORDS, COMMAND_SLOTS).description
  const answers = Ring.create(RING_RECORDS, ANSWER_SLOTS).description
  const clusters = { commands, answers }
  return { source, target, proxies: [], clusters, skipUnallocated, speed: 0 }
}

function memberOf(body: WorkerBody, target: BlockNode): Member {
  const { clusters } = body
  assert(clusters !== undefined, 'a body of a crew has rings')
  const client = new ClusterClient({
    commands: new Ring(clusters.commands),
    answers: new Ring(clusters.answers),
    target,
    takeError: (id) => body.call((api) => api.takeError(id)),
  })
  return { body, client }
}
