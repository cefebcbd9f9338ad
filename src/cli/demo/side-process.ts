/**
 * One side of the pair as a child process, with the line over which it takes orders.
 *
 * Invariants:
 * - A started side is ended by `quit` or `kill`, at the latest when this process ends.
 * - `exited` settles exactly once, whatever ends the side; no order is left without an end.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { BlockError, type PairStatus } from '../../index.ts'
import type { OrderMessage, SideMessage, SideOrder, SideSpec } from './side.ts'

/** How long a side may take until it is ready. */
const START_LIMIT_MS = 10_000

/** How a side ended. */
export interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  /** Time of the end, in milliseconds of `performance.now()`. */
  readonly atMs: number
}

interface Waiter {
  readonly resolve: (value: unknown) => void
  readonly reject: (error: BlockError) => void
}

/** The entry point of the command line, next to this folder or compiled from it. */
function entryPoint(): string {
  const compiled = import.meta.url.endsWith('.ts') ? '../../../dist/src/cli/main.js' : '../main.js'
  return fileURLToPath(new URL(compiled, import.meta.url))
}

/** A running side. */
export class SideProcess {
  /** What it is to the demo: `primary` or `secondary`. */
  readonly name: string
  /** Settles when the process is gone. */
  readonly exited: Promise<Exit>
  /** How it ended; undefined while it runs. */
  exit: Exit | undefined
  private readonly child: ChildProcess
  private readonly waiting = new Map<number, Waiter>()
  private readonly stages = new Map<string, () => void>()
  private readonly orphaned = (): void => {
    this.child.kill('SIGKILL')
  }
  private ready: () => void = () => undefined
  private said = ''
  private nextId = 1

  private constructor(spec: SideSpec) {
    this.name = spec.role
    const args = [entryPoint(), 'demo', '--side', JSON.stringify(spec)]
    this.child = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] })
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.said = (this.said + text).slice(-2000)
    })
    this.child.on('message', (message) => this.hear(message as SideMessage))
    process.once('exit', this.orphaned)
    this.exited = new Promise((resolve) => {
      const ended = (code: number | null, signal: NodeJS.Signals | null): void => {
        this.exit = { code, signal, atMs: performance.now() }
        process.off('exit', this.orphaned)
        this.lost()
        resolve(this.exit)
      }
      this.child.once('exit', ended)
      this.child.once('error', () => ended(null, null))
    })
  }

  /** Starts a side and waits until it is ready. Errors: EIO with what it said when it ended. */
  static async start(spec: SideSpec): Promise<SideProcess> {
    const side = new SideProcess(spec)
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<'late'>((resolve) => {
      timer = setTimeout(() => resolve('late'), START_LIMIT_MS)
    })
    const ready = new Promise<'ready'>((resolve) => {
      side.ready = () => resolve('ready')
    })
    const first = await Promise.race([ready, late, side.exited])
    clearTimeout(timer)
    if (first === 'ready') return side
    if (first === 'late') await side.kill()
    throw side.failure(first === 'late' ? 'was not ready in time' : 'did not start')
  }

  /** Takes a checkpoint. Errors: those of the side, ECONNRESET when it is gone. */
  async checkpoint(): Promise<void> {
    await this.order('checkpoint')
  }

  /** How replication is there. Errors: ECONNRESET when it is gone. */
  async status(): Promise<PairStatus> {
    return (await this.order('status')) as PairStatus
  }

  /**
   * Promotes a secondary. Resolves once it has taken over; what it resolves to settles when
   * everything is merged. Errors: those of the side, of both steps.
   */
  async failover(): Promise<{ readonly merged: Promise<void> }> {
    const takenOver = this.entered('failover')
    const merged = this.order('failover').then(() => undefined)
    // Whoever waits for the merge hears of its failure; until then it is nobody's.
    merged.catch(() => undefined)
    await Promise.race([takenOver, merged])
    return { merged }
  }

  /** Ends it as a power cut would. */
  async kill(): Promise<Exit> {
    this.child.kill('SIGKILL')
    return this.exited
  }

  /** Sends SIGKILL without waiting. */
  killNow(): void {
    this.child.kill('SIGKILL')
  }

  /** Ends it in order. Errors: EIO when it does not end with status 0. */
  async quit(): Promise<void> {
    await this.order('quit')
    const exit = await this.exited
    if (exit.code !== 0) throw this.failure(`ended with status ${exit.code ?? exit.signal}`)
  }

  /** An error that names the side and carries the last line it printed. */
  failure(what: string): BlockError {
    const last = this.said.trim().split('\n').at(-1) ?? ''
    return new BlockError('EIO', `the ${this.name} ${what}${last === '' ? '' : `: ${last}`}`)
  }

  private order(order: SideOrder): Promise<unknown> {
    if (this.exit !== undefined) return Promise.reject(this.gone())
    const message: OrderMessage = { id: this.nextId++, order }
    return new Promise((resolve, reject) => {
      this.waiting.set(message.id, { resolve, reject })
      // A side that is gone is heard of by its exit.
      this.child.send(message, () => undefined)
    })
  }

  private entered(stage: string): Promise<void> {
    return new Promise((resolve) => {
      this.stages.set(stage, resolve)
    })
  }

  private hear(message: SideMessage): void {
    if (message.kind === 'ready') this.ready()
    else if (message.kind === 'stage') this.stages.get(message.stage)?.()
    else {
      const waiter = this.waiting.get(message.id)
      this.waiting.delete(message.id)
      if (message.kind === 'done') waiter?.resolve(message.value)
      else waiter?.reject(new BlockError(message.code, `${this.name}: ${message.message}`))
    }
  }

  private lost(): void {
    for (const waiter of this.waiting.values()) waiter.reject(this.gone())
    this.waiting.clear()
  }

  private gone(): BlockError {
    return new BlockError('ECONNRESET', `the ${this.name} is gone`)
  }
}
