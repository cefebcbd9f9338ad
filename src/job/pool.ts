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
}

/** A body that runs in a thread of the pool. */
export interface PoolRun {
  /** Settles when the body ended; rejects when it failed or its thread died. */
  readonly ended: Promise<void>
}

/** A source ending in `.ts` is a test run on sources; threads always load the built worker. */
function workerFile(): string {
  const relative = import.meta.url.endsWith('.ts')
    ? '../../dist/workers/job-worker.js'
    : '../../workers/job-worker.js'
  return fileURLToPath(new URL(relative, import.meta.url))
}

/** Threads for job bodies. */
export class WorkerPool {
  readonly #size: number
  readonly #failures = new Set<(thrown: unknown) => void>()
  #piscina: Piscina | undefined

  constructor(options: WorkerPoolOptions = {}) {
    this.#size = options.size ?? 2
  }

  /** Threads that exist now. */
  get threads(): number {
    return this.#piscina?.threads.length ?? 0
  }

  /** Runs a body in a thread; the ports of the task go with it. */
  run(task: BodyTask): PoolRun {
    const ports: MessagePort[] = [task.port, task.proxyPort]
    // No abort signal: a task that has one gets a thread for itself alone.
    const run: Promise<void> = this.#open().run(task, { transferList: ports })
    // A thread that cannot even load takes no body, so its failure reaches nobody by itself.
    const ended = new Promise<void>((resolve, reject) => {
      this.#failures.add(reject)
      run.then(resolve, reject).finally(() => this.#failures.delete(reject))
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
      minThreads: 0,
      concurrentTasksPerWorker: BODIES_PER_THREAD,
      maxThreads: this.#size,
      idleTimeout: 30_000,
      atomics: 'disabled',
      name: 'run',
    })
    piscina.on('error', (thrown: unknown) => {
      for (const fail of [...this.#failures]) fail(thrown)
    })
    this.#piscina = piscina
    return piscina
  }
}
