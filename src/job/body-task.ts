/**
 * The body half of a job: what a worker thread does for it, from the first message to the last.
 *
 * Invariants:
 * - Everything it needs comes in the task: descriptions of disks, shared words, two ports.
 * - It ends when told to (`finish`), and then holds nothing: no file, no port, no timer.
 * - Errors go back as outcomes or as records, never as thrown strangers.
 */
import { type MessagePort, threadId } from 'node:worker_threads'
import * as Comlink from 'comlink'
import type { DiskDescription } from '../block/driver.ts'
import { DirtyBitmap } from '../sync/dirty-bitmap.ts'
import { JobWords } from '../sync/job-words.ts'
import { PieceClaims } from '../sync/piece-claims.ts'
import { Ring, type RingDescription } from '../sync/ring.ts'
import { HostClock } from '../util/clock.ts'
import { BlockError, type ErrorRecord } from '../util/errors.ts'
import { BodyControl } from './body-control.ts'
import { ClusterServer } from './cluster-server.ts'
import { Copier, type CopyGoal, type CopyOutcome } from './copier.ts'
import type { MoveParts } from './move.ts'
import { ProxyClient } from './proxy-view.ts'
import { ChainView, type DiskView } from './view.ts'

/** How a disk reaches a worker. */
export type ViewDescription =
  /** Attached: the layers of a chain, the top first. */
  | {
      readonly kind: 'attached'
      readonly layers: readonly DiskDescription[]
      /** Data that is written is looked through for zeroes; default false. */
      readonly findZeroes?: boolean | undefined
    }
  /** By messages to the main thread. */
  | { readonly kind: 'proxy'; readonly index: number; readonly length: number }

/** The words of a dirty bitmap, as they cross to a worker. */
export interface SharedDirty {
  readonly words: Int32Array
  /** Length of the disk in bytes. */
  readonly size: number
  /** Bytes a bit. */
  readonly granularity: number
  /** Words of the claims of a team; absent: the body is alone. */
  readonly claims?: Int32Array | undefined
}

/** The two rings between a copy-before-write filter and its worker. */
export interface SharedClusters {
  readonly commands: RingDescription
  readonly answers: RingDescription
}

/** What a pool hands to a worker. */
export interface BodyTask {
  /** Control: the worker exposes a `BodyApi` on it. */
  readonly port: MessagePort
  /** Requests of proxied disks. */
  readonly proxyPort: MessagePort
  readonly words: Int32Array
  readonly source: ViewDescription
  readonly target: ViewDescription
  /** What is to be copied; absent for a body that copies only what it is told. */
  readonly dirty: SharedDirty | undefined
  /** Rings of a body that copies clusters for a filter. */
  readonly clusters: SharedClusters | undefined
  /** Shared memory through which data passes. */
  readonly buffer: SharedArrayBuffer
  /** See `MoveParts.skipUnallocated`. */
  readonly skipUnallocated: boolean
}

/** What the control half can call; every call goes through comlink. */
export interface BodyApi {
  /** Sets the body up and answers its thread's id; rejects when a disk cannot be attached. */
  start(): number
  /** Copies dirty ranges until the goal is reached. */
  copyDirty(goal: CopyGoal): Promise<CopyOutcome>
  /** Ends the round of `copyDirty` that runs within a few pieces. */
  recall(): void
  /** Why a command of the ring failed; answers once. */
  takeError(id: number): ErrorRecord | undefined
  /** Settles when the body rests; the pause word is set before. */
  pause(): Promise<void>
  /** The pause word was cleared. */
  resume(): void
  /** The cancel word was set. */
  cancel(): void
  /** Bytes done. */
  progress(): number
  /** Ends the body. */
  finish(): void
}

/** Opens a disk in the worker from what its driver says of it. */
export type Attach = (description: DiskDescription) => DiskView

type OpenView = (description: ViewDescription) => DiskView

/** Runs a body until its control half calls `finish`. */
export async function runBodyTask(task: BodyTask, attach: Attach): Promise<void> {
  const proxies = new ProxyClient(task.proxyPort)
  const views: DiskView[] = []
  const open = (description: ViewDescription): DiskView => {
    const view = openView(description, attach, proxies)
    views.push(view)
    return view
  }
  try {
    await new Promise<void>((resolve, reject) => {
      Comlink.expose(new Body(task, open, { finished: resolve, failed: reject }), task.port)
    })
  } finally {
    for (const view of views) view.close()
    task.port.close()
    task.proxyPort.close()
  }
}

function openView(description: ViewDescription, attach: Attach, proxies: ProxyClient): DiskView {
  if (description.kind === 'proxy') return proxies.view(description.index, description.length)
  const layers = description.layers.map(attach)
  const [only] = layers
  return layers.length === 1 && only !== undefined ? only : new ChainView(layers)
}

type Disks = Pick<MoveParts, 'source' | 'target' | 'findZeroes'>

interface BodyEnd {
  readonly finished: () => void
  readonly failed: (thrown: unknown) => void
}

class Body implements BodyApi {
  readonly #task: BodyTask
  readonly #words: JobWords
  readonly #control: BodyControl
  readonly #open: OpenView
  readonly #end: BodyEnd
  readonly #buffer: Uint8Array
  #copier: Copier | undefined
  #commands: Ring | undefined
  #server: ClusterServer | undefined

  constructor(task: BodyTask, open: OpenView, end: BodyEnd) {
    this.#task = task
    this.#open = open
    this.#end = end
    this.#words = new JobWords(task.words)
    this.#control = new BodyControl(this.#words, new HostClock())
    this.#buffer = new Uint8Array(task.buffer)
  }

  start(): number {
    const { source, target, dirty, clusters } = this.#task
    const from = this.#open(source)
    const asked = target.kind === 'attached' && target.findZeroes === true
    const disks = { source: from, target: this.#open(target), findZeroes: from.blind || asked }
    if (dirty !== undefined) this.#copier = this.#makeCopier(disks, dirty)
    if (clusters !== undefined) this.#serve(disks, clusters)
    return threadId
  }

  async copyDirty(goal: CopyGoal): Promise<CopyOutcome> {
    const copier = this.#copier
    if (copier === undefined) throw new BlockError('EINVAL', 'The body has nothing to copy')
    return this.#control.work(() => copier.round(goal))
  }

  recall(): void {
    this.#copier?.recall()
  }

  takeError(id: number): ErrorRecord | undefined {
    return this.#server?.takeError(id)
  }

  pause(): Promise<void> {
    return this.#control.pause()
  }

  resume(): void {
    this.#control.wake()
  }

  cancel(): void {
    this.#control.wake()
  }

  progress(): number {
    return this.#words.done
  }

  finish(): void {
    this.#control.wake()
    this.#commands?.close()
    // The answer to this call has to leave through the port before the port is closed.
    void this.#control.turn().then(this.#end.finished)
  }

  #makeCopier(disks: Disks, dirty: SharedDirty): Copier {
    return new Copier({
      ...disks,
      dirty: new DirtyBitmap(dirty.words, dirty.size, dirty.granularity),
      claims: dirty.claims === undefined ? undefined : new PieceClaims(dirty.claims),
      words: this.#words,
      control: this.#control,
      buffer: this.#buffer,
      clock: new HostClock(),
      skipUnallocated: this.#task.skipUnallocated,
    })
  }

  #serve(disks: Disks, clusters: SharedClusters): void {
    this.#commands = new Ring(clusters.commands)
    this.#server = new ClusterServer({
      ...disks,
      commands: this.#commands,
      answers: new Ring(clusters.answers),
      buffer: this.#buffer,
      skipUnallocated: this.#task.skipUnallocated,
      done: (bytes) => this.#words.addDone(bytes),
      turn: () => this.#control.turn(),
    })
    this.#server.run().catch(this.#end.failed)
  }
}
