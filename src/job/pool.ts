/**
 * The worker threads that run job bodies.
 *
 * Invariants:
 * - No thread exists before the first body; a thread that dies is replaced by the next body.
 * - A thread that is ended fails the bodies it ran; the others of the pool are not touched.
 */
import { fileURLToPath } from 'node:url'
import type { MessagePort } from 'node:worker_threads'
import { Piscina } from 'piscina'
import type { Holdings } from '../sync/holdings.ts'
import type { BodyTask } from './body-task.ts'

/**
 * Bodies that may share a thread. They take turns, so that a body which only waits to be told what
 * to copy keeps nobody out.
 */
const BODIES_PER_THREAD = 64

/** Options of a pool. */
export interface WorkerPoolOptions {
  /** Most threads at a time; default 2. */
  readonly size?: number
  /** Threads that begin with the first body and stay; default 0: a thread ends when it rests long. */
  readonly keep?: number
}

/** A body that runs in a thread of the pool. */
export interface PoolRun {
  /** Settles when the body ended; rejects when it failed or its thread died. */
  readonly ended: Promise<void>
}

/** A source ending in `.ts` is a test run on sources; threads always load the built worker. */
function workerFile(): string {
  const relative = import.meta.url.endsWith('.ts')
    ? '../../dist/workers/job-thread.cjs'
    : '../../workers/job-thread.cjs'
  return fileURLToPath(new URL(relative, import.meta.url))
}

/** A thread without a body, or none while another thread may be made, or the one with fewest. */
function leastBusy<T extends { readonly currentUsage: number }>(
  workers: readonly T[],
  most: number,
): T | null {
  let least: T | null = null
  for (const worker of workers) {
    const usage = least?.currentUsage ?? BODIES_PER_THREAD
    if (worker.currentUsage < usage) least = worker
  }
  return least !== null && least.currentUsage > 0 && workers.length < most ? null : least
}

/** Threads for job bodies. */
export class WorkerPool {
  readonly #size: number
  readonly #keep: number
  readonly #failures = new Set<(thrown: unknown) => void>()
  #piscina: Piscina | undefined

  constructor(options: WorkerPoolOptions = {}) {
    this.#size = options.size ?? 2
    this.#keep = Math.min(options.keep ?? 0, this.#size)
  }

  /** Most threads at a time. */
  get size(): number {
    return this.#size
  }

  /** Threads that a body finds without waiting for their start, or with others that wait for it. */
  get ready(): number {
    return Math.max(this.threads, this.#keep)
  }

  /** Threads that exist now. */
  get threads(): number {
    return this.#piscina?.threads.length ?? 0
  }

  /**
   * Runs a body in a thread; the ports of the task go with it. What its thread may hold of shared
   * words is given back when it dies, before anybody hears of the death.
   */
  run(task: BodyTask, holdings?: Holdings): PoolRun {
    const ports: MessagePort[] = [task.port, task.proxyPort]
    // No abort signal: a task that has one gets a thread for itself alone.
    const run: Promise<void> = this.#open().run(task, { transferList: ports })
    // A thread that cannot even load takes no body, so its failure reaches nobody by itself.
    const ended = new Promise<void>((resolve, reject) => {
      this.#failures.add(reject)
      const died = (thrown: unknown): void => {
        holdings?.release()
        reject(thrown)
      }
      run.then(resolve, died).finally(() => this.#failures.delete(reject))
    })
    return { ended }
  }

  /**
   * Ends a thread at once, whatever it does. Its bodies fail after it really stopped, so nothing
   * of theirs can happen later.
   */
  terminate(threadId: number): void {
    void this.#piscina?.threads.find((each) => each.threadId === threadId)?.terminate()
  }

  /** Ends every thread. */
  async close(): Promise<void> {
    const piscina = this.#piscina
    this.#piscina = undefined
    await piscina?.destroy()
  }

  #open(): Piscina {
    // Parked in a blocking wait between tasks, a thread would not hear the ports it was given.
    if (this.#piscina !== undefined) return this.#piscina
    const piscina = new Piscina({
      filename: workerFile(),
      minThreads: this.#keep,
      concurrentTasksPerWorker: BODIES_PER_THREAD,
      maxThreads: this.#size,
      idleTimeout: 30_000,
      atomics: 'disabled',
      loadBalancer: (_task, workers) => leastBusy(workers, this.#size),
      name: 'run',
    })
    piscina.on('error', (thrown: unknown) => {
      for (const fail of [...this.#failures]) fail(thrown)
    })
    this.#piscina = piscina
    return piscina
  }
}
