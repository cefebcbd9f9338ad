/**
 * One monitor to drive: our daemon or the reference, in a folder of its own with images of the same
 * names, so that every text both send can be compared as it is.
 *
 * Invariants:
 * - A monitor that died or does not answer is told apart from one that refuses.
 * - Nothing outlives `end`.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** A command as it is sent. */
export interface Step {
  readonly execute: string
  readonly arguments: Readonly<Record<string, unknown>>
}

/** What came back. */
export interface Reply {
  readonly return?: unknown
  readonly error?: { readonly class: string; readonly desc: string }
}

/** The two programs. */
export type EngineName = 'reference' | 'ours'

/** A monitor that is gone, or silent for too long. */
export class Dead extends Error {}

const ANSWER_MS = 15_000
/** How often the reference may fail to begin. */
const STARTS = 3
const MAIN = fileURLToPath(new URL('../../dist/src/cli/main.js', import.meta.url))

function commandLine(name: EngineName): [string, string[]] {
  if (name === 'ours') return [process.execPath, [MAIN, 'daemon', '--qmp', 'unix:qmp.sock']]
  const machine = ['-M', 'none', '-nodefaults', '-display', 'none']
  return ['qemu-system-x86_64', [...machine, '-qmp', 'unix:qmp.sock,server=on,wait=off']]
}

/** Folders of a run: one with fresh images, copied for each engine that starts. */
export class Images {
  readonly dir: string = mkdtempSync(join(tmpdir(), 'graph-diff-'))
  #started = 0

  constructor() {
    const at = join(this.dir, 'fresh')
    mkdirSync(at)
    mkdirSync(join(at, 'folder'))
    for (const [name, bytes] of RAW_FILES) {
      writeFileSync(join(at, name), '')
      truncateSync(join(at, name), bytes)
    }
    writeFileSync(join(at, 'text.raw'), 'not an image\n')
    for (const words of QCOW2_FILES)
      execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', ...words.split(' ')], { cwd: at })
    for (const words of BITMAPS)
      execFileSync('qemu-img', ['bitmap', ...words.split(' ')], { cwd: at })
    rmSync(join(at, 'gone.raw'))
  }

  /** A folder for one engine. */
  fresh(): string {
    const at = join(this.dir, String(this.#started++))
    cpSync(join(this.dir, 'fresh'), at, { recursive: true })
    return at
  }

  end(): void {
    rmSync(this.dir, { recursive: true, force: true })
  }
}

const RAW_FILES: readonly (readonly [string, number])[] = [
  ['a.raw', 1 << 20],
  ['b.raw', 1 << 20],
  ['c.raw', 2 << 20],
  ['odd.raw', 1000],
  ['empty.raw', 0],
  ['gone.raw', 1 << 20],
]

const QCOW2_FILES = [
  'a.qcow2 1M',
  'b.qcow2 1M',
  'c.qcow2 2M',
  'base.qcow2 1M',
  'ov.qcow2 -b base.qcow2 -F qcow2',
  'ovraw.qcow2 -b a.raw -F raw',
  'orphan.qcow2 -b gone.raw -F raw',
  'old.qcow2 1M -o compat=0.10',
  'small.qcow2 1M -o cluster_size=4096',
  'split.qcow2 1M -o data_file=split.data,data_file_raw=on',
  'bits.qcow2 1M',
]

const BITMAPS = ['--add bits.qcow2 m0', '--add bits.qcow2 m1 -g 4096', '--disable bits.qcow2 m1']

/** The names that options may give as files. */
export const FILES: readonly string[] = [
  ...['a.raw', 'b.raw', 'c.raw', 'odd.raw', 'empty.raw', 'text.raw', 'gone.raw', 'folder'],
  ...['a.qcow2', 'b.qcow2', 'c.qcow2', 'base.qcow2', 'ov.qcow2', 'ovraw.qcow2', 'orphan.qcow2'],
  ...['old.qcow2', 'small.qcow2', 'split.qcow2', 'bits.qcow2', 'snap0.qcow2', 'snap1.qcow2'],
]

/** A running program and its monitor. */
export class Engine {
  readonly name: EngineName
  /** Events that are part of an answer, oldest first; taken by `take`. */
  events: unknown[] = []
  readonly #dir: string
  readonly #child: ChildProcess
  readonly #waiting: ((reply: Reply | undefined) => void)[] = []
  #socket: net.Socket | undefined
  #text = ''
  #dead = false
  #stderr = ''

  private constructor(name: EngineName, dir: string) {
    this.name = name
    this.#dir = dir
    const [program, args] = commandLine(name)
    this.#child = spawn(program, args, { cwd: dir, stdio: ['ignore', 'ignore', 'pipe'] })
    this.#child.stderr?.on('data', (chunk) => {
      this.#stderr = (this.#stderr + String(chunk)).slice(-2000)
    })
    this.#child.on('exit', () => this.#die())
  }

  /** Starts a program and negotiates. Throws `Dead`. */
  static async start(name: EngineName, images: Images): Promise<Engine> {
    for (let left = name === 'reference' ? STARTS : 1; ; left--) {
      const engine = new Engine(name, images.fresh())
      try {
        await engine.#connect()
        await engine.ask({ execute: 'qmp_capabilities', arguments: {} })
        return engine
      } catch (error) {
        await engine.end()
        if (left === 1) throw error
      }
    }
  }

  async #connect(): Promise<void> {
    const path = join(this.#dir, 'qmp.sock')
    for (const until = Date.now() + ANSWER_MS; ; ) {
      try {
        await this.#dial(path)
        return
      } catch (error) {
        if (this.#dead || Date.now() > until) throw new Dead(`no monitor: ${String(error)}`)
        await new Promise((resolve) => setTimeout(resolve, 10))
      }
    }
  }

  // The greeting takes the place of the first reply.
  #dial(path: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const socket = net.connect(path)
      socket.on('error', reject)
      socket.on('close', () => this.#die())
      socket.on('connect', () => {
        this.#socket = socket
        this.#waiting.push(() => resolve())
      })
      socket.on('data', (chunk) => this.#read(String(chunk)))
    })
  }

  #read(chunk: string): void {
    const lines = (this.#text + chunk).split('\n')
    this.#text = lines.pop() ?? ''
    for (const line of lines) {
      const message = JSON.parse(line)
      if (message.event === undefined) this.#waiting.shift()?.(message)
      else this.events.push({ event: message.event, data: message.data })
    }
  }

  #die(): void {
    // A failed dial closes a socket too, before there is any connection to lose.
    if (this.#socket === undefined && this.#child.exitCode === null) return
    this.#dead = true
    for (const waiting of this.#waiting.splice(0)) waiting(undefined)
  }

  /** Sends a command. Throws `Dead`. */
  async ask(step: Step): Promise<Reply> {
    if (this.#dead) throw new Dead(`${this.name} is gone: ${this.#stderr}`)
    const reply = await new Promise<Reply | undefined>((resolve) => {
      const timer = setTimeout(() => resolve(undefined), ANSWER_MS)
      this.#waiting.push((message) => {
        clearTimeout(timer)
        resolve(message)
      })
      this.#socket?.write(`${JSON.stringify(step)}\n`)
    })
    if (reply !== undefined) return reply
    throw new Dead(this.#dead ? `${this.name} died: ${this.#stderr}` : `${this.name} hangs`)
  }

  /** The events since the last call. */
  take(): unknown[] {
    return this.events.splice(0)
  }

  /** Ends the program and forgets its folder. */
  async end(): Promise<void> {
    const child = this.#child
    if (child.exitCode === null && child.signalCode === null) {
      const gone = new Promise((resolve) => child.once('exit', resolve))
      child.kill('SIGKILL')
      await gone
    }
    this.#socket?.destroy()
    rmSync(this.#dir, { recursive: true, force: true })
  }
}
