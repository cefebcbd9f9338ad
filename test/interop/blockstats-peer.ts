/**
 * A daemon of ours or the reference, in one folder, driven over QMP.
 *
 * Invariants:
 * - Both see the same files under the same names, one after the other.
 * - `end` waits until the program is gone.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import net from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** What a command answered. */
export type Answer = { readonly return?: unknown; readonly error?: unknown }

const MAIN = fileURLToPath(new URL('../../dist/src/cli/main.js', import.meta.url))

/** A running program. */
export class Peer {
  readonly #child: ChildProcess
  readonly #socket: net.Socket
  readonly #waiting: ((answer: Answer) => void)[] = []
  #text = ''

  private constructor(child: ChildProcess, socket: net.Socket) {
    this.#child = child
    this.#socket = socket
    socket.on('data', (chunk) => this.#read(String(chunk)))
    socket.on('close', () => {
      for (const waiting of this.#waiting.splice(0)) waiting({ error: 'gone' })
    })
  }

  /** Ours. */
  static ours(dir: string): Promise<Peer> {
    return Peer.#start(dir, process.execPath, [MAIN, 'daemon', '--qmp', 'unix:qmp.sock'])
  }

  /** The reference; `machine` is what to emulate. */
  static reference(dir: string, machine: readonly string[] = ['-M', 'none']): Promise<Peer> {
    const monitor = ['-qmp', 'unix:qmp.sock,server=on,wait=off']
    const args = [...machine, '-nodefaults', '-display', 'none', ...monitor]
    return Peer.#start(dir, 'qemu-system-x86_64', args)
  }

  static async #start(cwd: string, program: string, args: string[]): Promise<Peer> {
    const child = spawn(program, args, { cwd, stdio: 'ignore' })
    const peer = new Peer(child, await dial(child, join(cwd, 'qmp.sock')))
    await peer.ask('qmp_capabilities')
    return peer
  }

  /** Sends a command; its whole answer. */
  ask(execute: string, args: object = {}): Promise<Answer> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve)
      this.#socket.write(`${JSON.stringify({ execute, arguments: args })}\n`)
    })
  }

  /** What a command that must succeed returned. */
  async must(execute: string, args: object = {}): Promise<unknown> {
    const answer = await this.ask(execute, args)
    if (answer.error === undefined) return answer.return
    throw new Error(`${execute} ${JSON.stringify(args)}: ${JSON.stringify(answer.error)}`)
  }

  /** Ends the program. */
  async end(): Promise<void> {
    const gone = new Promise((resolve) => this.#child.once('exit', resolve))
    if (this.#child.exitCode !== null) return
    await this.ask('quit')
    await gone
  }

  #read(chunk: string): void {
    const lines = (this.#text + chunk).split('\n')
    this.#text = lines.pop() ?? ''
    for (const line of lines) {
      const message = JSON.parse(line)
      if ('return' in message || 'error' in message) this.#waiting.shift()?.(message)
    }
  }
}

async function dial(child: ChildProcess, path: string): Promise<net.Socket> {
  for (;;) {
    const socket = net.connect(path)
    const up = await new Promise<boolean>((resolve) => {
      socket.once('connect', () => resolve(true))
      socket.once('error', () => resolve(false))
    })
    if (up) return socket
    if (child.exitCode !== null) throw new Error(`${child.spawnfile} ended with ${child.exitCode}`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}
