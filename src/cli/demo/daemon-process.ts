/**
 * One daemon of ours as a child process, with its control connection.
 *
 * Invariants:
 * - A started daemon is ended by `quit` or `kill`, at the latest when this process ends.
 * - `exited` settles exactly once, whatever ends the daemon.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { BlockError } from '../../index.ts'
import { QmpClient } from './qmp-client.ts'

/** How long a daemon may take to open its control socket. */
const START_LIMIT_MS = 10_000

/** Pause between two attempts to connect. */
const RETRY_MS = 10

/** How a daemon ended. */
export interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  /** Time of the end, in milliseconds of `performance.now()`. */
  readonly atMs: number
}

/** The entry point of the command line, next to this folder or compiled from it. */
function entryPoint(): string {
  const compiled = import.meta.url.endsWith('.ts') ? '../../../dist/src/cli/main.js' : '../main.js'
  return fileURLToPath(new URL(compiled, import.meta.url))
}

/** A running daemon. */
export class DaemonProcess {
  /** What it is to the demo: `primary` or `secondary`. */
  readonly name: string
  /** Settles when the process is gone. */
  readonly exited: Promise<Exit>
  /** How it ended; undefined while it runs. */
  exit: Exit | undefined
  private readonly child: ChildProcess
  private readonly socket: string
  private readonly orphaned = (): void => {
    this.child.kill('SIGKILL')
  }
  private said = ''
  private client: QmpClient | undefined

  private constructor(name: string, socket: string) {
    this.name = name
    this.socket = socket
    this.child = spawn(process.execPath, [entryPoint(), 'daemon', '--qmp', `unix:${socket}`], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.said = (this.said + text).slice(-2000)
    })
    process.once('exit', this.orphaned)
    this.exited = new Promise((resolve) => {
      const ended = (code: number | null, signal: NodeJS.Signals | null): void => {
        this.exit = { code, signal, atMs: performance.now() }
        process.off('exit', this.orphaned)
        resolve(this.exit)
      }
      this.child.once('exit', ended)
      this.child.once('error', () => ended(null, null))
    })
  }

  /** Starts a daemon and connects to it. Errors: EIO with what it said when it ended instead. */
  static async start(name: string, socket: string): Promise<DaemonProcess> {
    const daemon = new DaemonProcess(name, socket)
    const limit = performance.now() + START_LIMIT_MS
    while (daemon.client === undefined) {
      if (daemon.exit !== undefined) throw daemon.failure('did not start')
      if (performance.now() > limit) {
        await daemon.kill()
        throw daemon.failure('did not open its control socket in time')
      }
      daemon.client = await QmpClient.connect(socket, name).catch(() => undefined)
      if (daemon.client === undefined) {
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS))
      }
    }
    return daemon
  }

  /** Runs a QMP command. Errors: as `QmpClient.execute`. */
  execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    if (this.client === undefined) return Promise.reject(this.failure('is not running'))
    return this.client.execute(command, args)
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
    await this.execute('quit')
    const exit = await this.exited
    if (exit.code !== 0) throw this.failure(`ended with status ${exit.code ?? exit.signal}`)
  }

  /** An error that names the daemon and carries the last line it printed. */
  failure(what: string): BlockError {
    const last = this.said.trim().split('\n').at(-1) ?? ''
    const words = last === '' ? '' : `: ${last}`
    return new BlockError('EIO', `the ${this.name} ${what}${words}`, { path: this.socket })
  }
}
