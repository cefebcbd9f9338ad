/**
 * One monitor connection: greeting, negotiation, and commands one after the other.
 *
 * Invariants:
 * - In-band commands run one at a time; replies leave in the order of the requests.
 * - Out-of-band commands, once negotiated, run at once and answer when they are done.
 * - A command that waits is a coroutine of the context, which can tell what it is.
 * - A request answers exactly once, unless the connection ended first.
 */
import type { AioContext } from '../aio/aio-context.ts'
import type { Coroutine } from '../coroutine/coroutine.ts'
import { asBlockError, type BlockError } from '../util/errors.ts'
import { type CommandSession, type CommandTable, errorClass } from './command.ts'
import {
  isObject,
  type JsonObject,
  JsonStreamParser,
  type JsonValue,
  stringifyJson,
} from './json.ts'
import { validate } from './schema.ts'
import { VERSION } from './version.ts'

/** The wire below a session. */
export interface SessionWire {
  /** Sends one line, its end included. */
  send(line: string): void
  /** Asks for no more (true) or for more (false) input. */
  pauseInput(paused: boolean): void
}

/** Requests that may wait in a session before it stops reading. */
const MAX_QUEUED = 64

/** A request, checked as far as its envelope goes, or what is wrong with it. */
type Request =
  | {
      readonly kind: 'error'
      readonly class: string
      readonly desc: string
      readonly id: JsonValue | undefined
    }
  | {
      readonly kind: 'call'
      readonly name: string
      readonly args: JsonObject
      readonly id: JsonValue | undefined
      readonly oob: boolean
    }

/** The server's half of one connection. */
export class MonitorSession implements CommandSession {
  readonly #commands: CommandTable
  readonly #wire: SessionWire
  readonly #ctx: AioContext
  readonly #parser: JsonStreamParser
  #queue: Request[] = []
  #busy = false
  #working: Promise<void> | undefined
  #paused = false
  #negotiated = false
  #oob = false
  #ended = false
  #finished = false

  constructor(commands: CommandTable, wire: SessionWire, ctx: AioContext) {
    this.#commands = commands
    this.#ctx = ctx
    this.#wire = wire
    this.#parser = new JsonStreamParser({
      value: (value) => this.#accept(this.#envelope(value)),
      error: (error) => this.#accept(failure('GenericError', error.message, undefined)),
    })
  }

  /** Whether events may be sent here. */
  get negotiated(): boolean {
    return this.#negotiated && !this.#ended
  }

  /** Greets the client. */
  greet(): void {
    this.#send({ QMP: { version: VERSION, capabilities: ['oob'] } })
  }

  /** Takes bytes from the client. */
  push(chunk: Buffer): void {
    if (!this.#ended) this.#parser.push(chunk)
  }

  /** Settles when every request so far has its answer. */
  finished(): Promise<void> {
    return this.#working ?? Promise.resolve()
  }

  /** The client is gone, or is not served any more; requests that wait are dropped. */
  end(): void {
    this.#ended = true
    this.#queue = []
  }

  /** Sends a line made elsewhere (an event). */
  sendEvent(message: JsonObject): void {
    if (this.negotiated) this.#send(message)
  }

  negotiate(capabilities: readonly string[]): void {
    this.#negotiated = true
    this.#oob = capabilities.includes('oob')
  }

  finish(): void {
    this.#finished = true
    this.#queue = []
  }

  #envelope(value: JsonValue): Request {
    if (!isObject(value))
      return failure('GenericError', 'QMP input must be a JSON object', undefined)
    const id = value.id
    const bad = (desc: string): Request => failure('GenericError', desc, id)
    const known = ['execute', 'arguments', 'id', ...(this.#oob ? ['exec-oob'] : [])]
    const extra = Object.keys(value).find((key) => !known.includes(key))
    if (extra !== undefined) return bad(`QMP input member '${extra}' is unexpected`)
    const oob = this.#oob && value['exec-oob'] !== undefined
    if (oob && value.execute !== undefined) {
      return bad("QMP input member 'execute' clashes with 'exec-oob'")
    }
    const member = oob ? 'exec-oob' : 'execute'
    const name = value[member]
    if (name === undefined) return bad("QMP input lacks member 'execute'")
    if (typeof name !== 'string') return bad(`QMP input member '${member}' must be a string`)
    const args = value.arguments ?? (value.arguments === null ? null : {})
    if (!isObject(args)) return bad("QMP input member 'arguments' must be an object")
    return { kind: 'call', name, args, id, oob }
  }

  #accept(request: Request): void {
    if (this.#ended || this.#finished) return
    if (request.kind === 'call' && request.oob) {
      void this.#answer(request)
      return
    }
    this.#queue.push(request)
    if (this.#queue.length > MAX_QUEUED && !this.#paused) this.#flow(true)
    if (this.#busy) return
    this.#busy = true
    this.#working = this.#work()
  }

  async #work(): Promise<void> {
    for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
      const done = this.#answer(next)
      if (done !== undefined) await done
      if (this.#paused && this.#queue.length === 0) this.#flow(false)
    }
    this.#busy = false
  }

  #flow(paused: boolean): void {
    this.#paused = paused
    this.#wire.pauseInput(paused)
  }

  #answer(request: Request): Promise<void> | undefined {
    const { id } = request
    if (request.kind === 'error') {
      this.#fail(request.class, request.desc, id)
      return undefined
    }
    try {
      const result = this.#call(request)
      if (!(result instanceof Promise)) this.#succeed(result, id)
      else {
        const name = `qmp ${request.name}`
        // The command may have failed before its coroutine begins, which is when somebody listens.
        result.catch(() => undefined)
        return this.#ctx.spawn(() => this.#coAnswer(result, id), { name }).join()
      }
    } catch (error) {
      this.#failWith(error, id)
    }
    return undefined
  }

  /** Answers when the command is done. */
  async *#coAnswer(
    result: Promise<JsonValue | undefined>,
    id: JsonValue | undefined,
  ): Coroutine<void> {
    try {
      this.#succeed(await result, id)
    } catch (error) {
      this.#failWith(error, id)
    }
  }

  #call(
    request: Request & { kind: 'call' },
  ): JsonValue | undefined | Promise<JsonValue | undefined> {
    const { name } = request
    const negotiation = name === 'qmp_capabilities'
    if (!this.#negotiated && !negotiation) {
      throw new NotFound("Expecting capabilities negotiation with 'qmp_capabilities'")
    }
    if (this.#negotiated && negotiation) {
      throw new NotFound('Capabilities negotiation is already complete, command ignored')
    }
    const command = Object.hasOwn(this.#commands, name) ? this.#commands[name] : undefined
    if (command === undefined) throw new NotFound(`The command ${name} has not been found`)
    if (request.oob && !command.oob) throw new Refused(`The command ${name} does not support OOB`)
    return command.run(validate(command.schema, request.args), this)
  }

  #succeed(value: JsonValue | undefined, id: JsonValue | undefined): void {
    const reply = { return: value ?? {} }
    this.#send(id === undefined ? reply : { ...reply, id })
  }

  #failWith(error: unknown, id: JsonValue | undefined): void {
    if (error instanceof NotFound) this.#fail('CommandNotFound', error.message, id)
    else if (error instanceof Refused) this.#fail('GenericError', error.message, id)
    else {
      const known: BlockError = asBlockError(error)
      this.#fail(errorClass(known.code), known.message, id)
    }
  }

  #fail(errorClassName: string, desc: string, id: JsonValue | undefined): void {
    const error = { class: errorClassName, desc }
    this.#send(id === undefined ? { error } : { id, error })
  }

  #send(message: JsonObject): void {
    if (!this.#ended) this.#wire.send(`${stringifyJson(message)}\r\n`)
  }
}

function failure(className: string, desc: string, id: JsonValue | undefined): Request {
  return { kind: 'error', class: className, desc, id }
}

// Refusals of the session itself; they never leave this file.
class NotFound extends Error {}
class Refused extends Error {}
