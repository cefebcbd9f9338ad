/**
 * The control connection of a COLO pair: orders from the primary, answers from the secondary.
 *
 * Invariants:
 * - One JSON object a line: `{"id": N, "order": WORD}` asks, `{"id": N}` or `{"id": N, "error": TEXT}`
 *   answers. Orders are answered in the order in which they came.
 * - Every question settles: by its answer, or by the end of the connection.
 */
import type net from 'node:net'
import { asBlockError, BlockError } from '../util/errors.ts'

/** What the primary may order. */
export type ColoOrder = 'start' | 'checkpoint' | 'stop'

/** What the owner of a link is told. */
export interface ColoLinkOwner {
  /** Carries out an order of the peer; an error goes back as its text. */
  order(order: ColoOrder): Promise<void>
  /** The connection ended; not told after `close`. */
  ended(error: BlockError): void
}

interface Question {
  readonly resolve: () => void
  readonly reject: (error: BlockError) => void
}

interface Message {
  readonly id: number
  readonly order: ColoOrder | undefined
  readonly error: string | undefined
}

/** Longest line; a peer that sends more is no peer. */
const MAX_LINE_CHARS = 64 * 1024

/** One control connection. */
export class ColoLink {
  readonly #socket: net.Socket
  readonly #owner: ColoLinkOwner
  readonly #questions = new Map<number, Question>()
  #nextId = 1
  #rest = ''
  #line: Promise<void> = Promise.resolve()
  #closed = false

  constructor(socket: net.Socket, owner: ColoLinkOwner) {
    this.#socket = socket
    this.#owner = owner
    socket.setNoDelay(true)
    socket.setEncoding('utf8')
    socket.on('data', (text: string) => this.#received(text))
    socket.on('error', (error) => this.#end(asBlockError(error)))
    socket.on('close', () => this.#end(lost()))
  }

  /** Sends an order and waits for its answer. Errors: the peer's (EIO), ESHUTDOWN. */
  ask(order: ColoOrder): Promise<void> {
    if (this.#closed) return Promise.reject(lost())
    const id = this.#nextId++
    return new Promise((resolve, reject) => {
      this.#questions.set(id, { resolve, reject })
      this.#send({ id, order })
    })
  }

  /** Ends the connection; open questions fail with ESHUTDOWN. */
  close(): void {
    this.#finish(lost())
  }

  #received(text: string): void {
    const lines = (this.#rest + text).split('\n')
    this.#rest = lines.pop() ?? ''
    const messages = lines.map(parseMessage)
    if (this.#rest.length > MAX_LINE_CHARS || messages.includes(undefined)) this.#end(strange())
    else for (const message of messages) if (message !== undefined) this.#take(message)
  }

  #take({ id, order, error }: Message): void {
    if (order !== undefined) {
      this.#line = this.#line.then(() => this.#carryOut(id, order))
      return
    }
    const question = this.#questions.get(id)
    this.#questions.delete(id)
    if (error === undefined) question?.resolve()
    else question?.reject(new BlockError('EIO', error))
  }

  async #carryOut(id: number, order: ColoOrder): Promise<void> {
    try {
      await this.#owner.order(order)
      this.#send({ id })
    } catch (error) {
      this.#send({ id, error: asBlockError(error).message })
    }
  }

  #send(message: Readonly<Record<string, unknown>>): void {
    if (!this.#closed) this.#socket.write(`${JSON.stringify(message)}\n`)
  }

  #end(error: BlockError): void {
    if (this.#closed) return
    this.#finish(error)
    this.#owner.ended(error)
  }

  #finish(error: BlockError): void {
    this.#closed = true
    this.#socket.destroy()
    for (const question of this.#questions.values()) question.reject(error)
    this.#questions.clear()
  }
}

function lost(): BlockError {
  return new BlockError('ESHUTDOWN', 'The control connection ended')
}

function strange(): BlockError {
  return new BlockError('EINVAL', 'The peer of the control connection speaks another protocol')
}

function parseMessage(line: string): Message | undefined {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    return undefined
  }
  if (typeof value !== 'object' || value === null || !('id' in value)) return undefined
  const { id } = value
  if (typeof id !== 'number') return undefined
  const order = 'order' in value ? value.order : undefined
  const error = 'error' in value ? value.error : undefined
  if (error !== undefined && typeof error !== 'string') return undefined
  if (order === undefined || order === 'start' || order === 'checkpoint' || order === 'stop')
    return { id, order, error }
  return undefined
}
