/**
 * A daemon of ours or the real QEMU as a child process, spoken to over QMP, for benchmarks.
 *
 * Invariants:
 * - Both engines get the same commands; what a job took is read off the events they send.
 * - An event counts from the moment it was asked for, so none of an earlier job is taken for it.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { createConnection, type Socket } from 'node:net'

/** A program that speaks QMP. */
export interface Engine {
  /** How rows call it. */
  readonly name: string
  readonly command: string
  /** Arguments that make it listen for QMP on that unix socket. */
  args(socket: string): string[]
}

/** The daemon of this project. */
export const blockstep: Engine = {
  name: 'blockstep',
  command: process.execPath,
  args: (socket) => [
    new URL('../src/cli/main.js', import.meta.url).pathname,
    ...['daemon', '--qmp', `unix:${socket}`],
  ],
}

/** The real one, without a machine. */
export const qemu: Engine = {
  name: 'QEMU',
  command: 'qemu-system-x86_64',
  args: (socket) => [
    ...['-M', 'none', '-nodefaults', '-display', 'none'],
    ...['-qmp', `unix:${socket},server=on,wait=off`],
  ],
}

type Message = Readonly<Record<string, unknown>>

/** A negotiated QMP connection that hears events. */
export class Qmp {
  readonly #socket: Socket
  readonly #replies: ((message: Message) => void)[] = []
  readonly #listeners = new Set<(message: Message) => void>()
  /** Rejects when the connection is lost, whoever waits for what. */
  readonly #lost: Promise<never>
  #text = ''

  private constructor(socket: Socket) {
    this.#socket = socket
    socket.setEncoding('utf8')
    socket.on('data', (text: string) => this.#receive(text))
    this.#lost = new Promise((_resolve, reject) => {
      socket.once('close', () => reject(new Error('the daemon closed its monitor')))
    })
    this.#lost.catch(() => undefined)
  }

  /** Connects as soon as somebody listens there. */
  static async connect(path: string): Promise<Qmp> {
    for (;;) {
      const socket = createConnection({ path })
      const connected = await new Promise<boolean>((resolve) => {
        socket.once('connect', () => resolve(true))
        socket.once('error', () => resolve(false))
      })
      if (connected) {
        const qmp = new Qmp(socket)
        await qmp.run('qmp_capabilities')
        return qmp
      }
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }

  /** Runs a command and answers its return value; throws the words of an error. */
  async run(command: string, args: Message = {}): Promise<unknown> {
    const replied = new Promise<Message>((resolve) => this.#replies.push(resolve))
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: args })}\n`)
    const reply = await Promise.race([replied, this.#lost])
    if (reply.error === undefined) return reply.return
    throw new Error(`${command}: ${(reply.error as { desc: string }).desc}`)
  }

  /** Settles with the first event from now on that `wanted` accepts. */
  event(wanted: (name: string, data: Message) => boolean): Promise<Message> {
    const heard = new Promise<Message>((resolve) => {
      const hear = (message: Message): void => {
        const data = (message.data ?? {}) as Message
        if (!wanted(String(message.event), data)) return
        this.#listeners.delete(hear)
        resolve(data)
      }
      this.#listeners.add(hear)
    })
    const event = Promise.race([heard, this.#lost])
    // An event that nobody came to wait for may be missed.
    event.catch(() => undefined)
    return event
  }

  /** Ends the connection. */
  close(): void {
    this.#socket.destroy()
  }

  #receive(text: string): void {
    this.#text += text
    const lines = this.#text.split('\n')
    this.#text = lines.pop() ?? ''
    for (const line of lines) {
      if (line.trim() === '') continue
      const message = JSON.parse(line) as Message
      if (message.event !== undefined) for (const hear of [...this.#listeners]) hear(message)
      else if (message.QMP === undefined) this.#replies.shift()?.(message)
    }
  }
}

/** A running daemon and the connection to it. */
export class Daemon {
  readonly engine: Engine
  readonly qmp: Qmp
  readonly #child: ChildProcess

  private constructor(engine: Engine, child: ChildProcess, qmp: Qmp) {
    this.engine = engine
    this.#child = child
    this.qmp = qmp
  }

  /** Starts one that listens on `socket`. */
  static async start(engine: Engine, socket: string): Promise<Daemon> {
    const child = spawn(engine.command, engine.args(socket), { stdio: 'ignore' })
    const failed = new Promise<never>((_resolve, reject) => child.once('error', reject))
    return new Daemon(engine, child, await Promise.race([Qmp.connect(socket), failed]))
  }

  /** Kills it. */
  async close(): Promise<void> {
    this.qmp.close()
    const gone = new Promise((resolve) => this.#child.once('exit', resolve))
    this.#child.kill('SIGKILL')
    await gone
  }
}

/** A job as commands and events show it. */
export interface JobRun {
  /** The command that starts it. */
  readonly command: string
  /** Its arguments, without the id. */
  readonly args: Message
  /** The event that says that everything was copied. */
  readonly done: 'BLOCK_JOB_COMPLETED' | 'BLOCK_JOB_READY'
}

/** A job that was started. */
export interface StartedJob {
  /** Settles when everything was copied; answers milliseconds since the command was sent. */
  readonly copied: Promise<number>
  /** Ends it if it did not end by itself, and waits until nothing is left of it. */
  end(): Promise<void>
}

let jobs = 0

/** Starts a job over QMP. */
export function startJob(qmp: Qmp, { command, args, done }: JobRun): StartedJob {
  const id = `job${jobs++}`
  const gone = qmp.event(
    (name, data) => name === 'JOB_STATUS_CHANGE' && data.id === id && data.status === 'null',
  )
  const copied = qmp.event((name, data) => name === done && data.device === id)
  const start = performance.now()
  const started = qmp.run(command, { 'job-id': id, ...args })
  return {
    copied: started.then(() => copied).then((data) => timeOf(data, start)),
    async end() {
      await started
      // A job that is gone already has nothing to cancel.
      await qmp.run('block-job-cancel', { device: id, force: true }).catch(() => undefined)
      await gone
    },
  }
}

function timeOf(data: Message, start: number): number {
  if (data.error !== undefined) throw new Error(`the job failed: ${String(data.error)}`)
  return performance.now() - start
}

/** Runs a job until everything is copied, ends it, and answers how many milliseconds it copied. */
export async function timeJob(qmp: Qmp, run: JobRun): Promise<number> {
  const job = startJob(qmp, run)
  const ms = await job.copied
  await job.end()
  return ms
}
