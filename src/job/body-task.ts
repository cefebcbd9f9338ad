/**
 * The body half of a job: what a worker thread does for it, from the first message to the last.
 *
 * Invariants:
 * - Everything it needs comes in the task: descriptions of disks, shared words, two ports.
 * - It ends when told to (`finish`), and then holds nothing: no file, no port, no timer.
 * - Errors go back as outcomes or as records, never as thrown strangers.
 */
import type { MessagePort } from 'node:worker_threads'
import * as Comlink from 'comlink'
import type { DiskDescription } from '../block/driver.ts'
import { DirtyBitmap } from '../sync/dirty-bitmap.ts'
import { JobWords } from '../sync/job-words.ts'
import { HostClock } from '../util/clock.ts'
import { BlockError } from '../util/errors.ts'
import { BodyControl } from './body-control.ts'
import { Copier, type CopyGoal, type CopyOutcome } from './copier.ts'
import { ProxyClient } from './proxy-view.ts'
import { copyRange, type RangeOutcome } from './range-copy.ts'
import { ChainView, type DiskView } from './view.ts'

/** How a disk reaches a worker. */
export type ViewDescription =
  /** Attached: the layers of a chain, the top first. */
  | { readonly kind: 'attached'; readonly layers: readonly DiskDescription[] }
  /** By messages to the main thread. */
  | { readonly kind: 'proxy'; readonly index: number; readonly length: number }

/** The words of a dirty bitmap, as they cross to a worker. */
export interface SharedDirty {
  readonly words: Int32Array
  /** Length of the disk in bytes. */
  readonly size: number
  /** Bytes a bit. */
  readonly granularity: number
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
  /** Absent for a body that copies only what it is told. */
  readonly dirty: SharedDirty | undefined
  /** Shared memory through which data passes. */
  readonly buffer: SharedArrayBuffer
  /** See `CopierParts.skipUnallocated`. */
  readonly skipUnallocated: boolean
}

/** What the control half can call; every call goes through comlink. */
export interface BodyApi {
  /** Settles once the body is set up; rejects when a disk cannot be attached. */
  start(): Promise<void>
  /** Copies dirty ranges until the goal is reached. */
  copyDirty(goal: CopyGoal): Promise<CopyOutcome>
  /** Copies the given ranges (offset, bytes, offset, bytes …), whatever is dirty. */
  copyRanges(ranges: readonly number[]): Promise<readonly RangeOutcome[]>
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
    await new Promise<void>((resolve) => {
      Comlink.expose(new Body(task, open, resolve), task.port)
    })
  } finally {
    for (const view of views) view.close()
    task.port.close()
    task.proxyPort.close()
  }
}

function openView(
  description: ViewDescription,
  attach: Attach,
  proxies: ProxyClient,
): DiskView {
  if (description.kind === 'proxy') return proxies.view(description.index, description.length)
  const layers = description.layers.map(attach)
  const [only] = layers
  return layers.length === 1 && only !== undefined ? only : new ChainView(layers)
}

class Body implements BodyApi {
  readonly #task: BodyTask
  readonly #words: JobWords
  readonly #control: BodyControl
  readonly #open: (description: ViewDescription) => DiskView
  readonly #finished: () => void
  readonly #buffer: Uint8Array
  #disks: { readonly source: DiskView; readonly target: DiskView } | undefined
  #copier: Copier | undefined

  constructor(
    task: BodyTask,
    open: (description: ViewDescription) => DiskView,
    finished: () => void,
  ) {
    const clock = new HostClock()
    this.#task = task
    this.#open = open
    this.#finished = finished
    this.#words = new JobWords(task.words)
    this.#control = new BodyControl(this.#words, clock)
    this.#buffer = new Uint8Array(task.buffer)
  }

  async start(): Promise<void> {
    const { source, target, dirty, skipUnallocated } = this.#task
    const disks = { source: this.#open(source), target: this.#open(target) }
    this.#disks = disks
    if (dirty === undefined) return
    this.#copier = new Copier({
      ...disks,
      dirty: new DirtyBitmap(dirty.words, dirty.size, dirty.granularity),
      words: this.#words,
      control: this.#control,
      buffer: this.#buffer,
      clock: new HostClock(),
      skipUnallocated,
    })
  }

  async copyDirty(goal: CopyGoal): Promise<CopyOutcome> {
    const copier = this.#copier
    if (copier === undefined) throw new BlockError('EINVAL', 'The body has nothing to copy')
    return this.#control.work(() => copier.round(goal))
  }

  async copyRanges(ranges: readonly number[]): Promise<readonly RangeOutcome[]> {
    const disks = this.#disks
    if (disks === undefined) throw new BlockError('EINVAL', 'The body was not started')
    return this.#control.work(async () => {
      const outcomes: RangeOutcome[] = []
      for (let i = 0; i + 1 < ranges.length; i += 2) {
        const outcome = await copyRange(
          disks.source,
          disks.target,
          this.#buffer,
          ranges[i] ?? 0,
          ranges[i + 1] ?? 0,
        )
        this.#words.addDone(ranges[i + 1] ?? 0)
        outcomes.push(outcome)
      }
      return outcomes
    })
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
    // The answer to this call has to leave through the port before the port is closed.
    void this.#control.turn().then(this.#finished)
  }
}
