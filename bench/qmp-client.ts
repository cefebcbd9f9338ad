/**
 * A small QMP client: one command at a time after another, replies matched by id.
 *
 * Invariants:
 * - Every command settles: with its reply, with the server's error, or with ECONNRESET at the end of
 *   the connection.
 * - Events are dropped; whoever needs one asks for the state instead.
 */
import { createConnection, type Socket } from 'node:net'
import { BlockError } from '../src/index.ts'

/** A reply, an event or the greeting. */
interface Message {
  readonly QMP?: unknown
  readonly id?: number
  readonly return?: unknown
  readonly error?: { readonly class: string; readonly desc: string }
}

interface Waiter {
  readonly resolve: (value: unknown) => void
  readonly reject: (error: BlockError) => void
}

/** A negotiated connection to a monitor. */
export class QmpClient {
  private readonly socket: Socket
  private readonly name: string
  private readonly waiting = new Map<number, Waiter>()
  private greeted: Waiter | undefined
  private nextId = 1
  private text = ''
  private over = false

  private constructor(socket: Socket, name: string) {
    this.socket = socket
    this.name = name
    socket.setEncoding('utf8')
    socket.on('data', (text: string) => this.receive(text))
    socket.on('error', () => {})
    socket.on('close', () => this.lost())
  }

  /** Connects to a unix socket and negotiates. `name` names the peer in errors. Errors: as the host's. */
  static async connect(path: string, name: string): Promise<QmpClient> {
    const socket = createConnection({ path })
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', reject)
    })
    const client = new QmpClient(socket, name)
    await new Promise<unknown>((resolve, reject) => {
      client.greeted = { resolve, reject }
    })
    await client.execute('qmp_capabilities')
    return client
  }

  /** Runs a command. Errors: EINVAL with the server's words, ECONNRESET when the peer is gone. */
  execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> {
    if (this.over) return Promise.reject(this.lostError())
    const id = this.nextId++
    const request = { execute: command, ...(args === undefined ? {} : { arguments: args }), id }
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject })
      this.socket.write(`${JSON.stringify(request)}\n`)
    })
  }

  /** Closes the connection. */
  close(): void {
    this.socket.destroy()
  }

  private receive(text: string): void {
    this.text += text
    const lines = this.text.split('\n')
    this.text = lines.pop() ?? ''
    for (const line of lines) if (line.trim() !== '') this.take(JSON.parse(line) as Message)
  }

  private take(message: Message): void {
    if (message.QMP !== undefined) {
      this.greeted?.resolve(undefined)
      this.greeted = undefined
    }
    if (message.id === undefined) return
    const waiter = this.waiting.get(message.id)
    this.waiting.delete(message.id)
    if (message.error === undefined) waiter?.resolve(message.return)
    else waiter?.reject(new BlockError('EINVAL', `${this.name}: ${message.error.desc}`))
  }

  private lost(): void {
    this.over = true
    for (const waiter of this.waiting.values()) waiter.reject(this.lostError())
    this.greeted?.reject(this.lostError())
    this.waiting.clear()
  }

  private lostError(): BlockError {
    return new BlockError('ECONNRESET', `the ${this.name} closed its control connection`)
  }
}
