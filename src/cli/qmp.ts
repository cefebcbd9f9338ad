/**
 * `blockstep qmp`: one command sent to a monitor, for scripts.
 *
 * Invariants:
 * - On success standard output holds what the command returned, as JSON, and nothing else.
 * - Exit status 1 for a refusal, whose words are on standard error, and for a monitor that cannot
 *   be reached or goes away before it answers.
 */
import net from 'node:net'
import { Command } from 'commander'
import { BlockError } from '../index.ts'
import { printJson } from './image-command.ts'

interface QmpArguments {
  readonly timeout?: string
}

/** The subcommand. */
export const qmpCommand: Command = new Command('qmp')
  .description('send one command to a monitor and print what it returns')
  .argument('<socket>', 'path of the monitor socket, unix:PATH or tcp:HOST:PORT')
  .argument('<command>', 'name of the command')
  .argument('[arguments]', 'its arguments as a JSON object')
  .option('-t, --timeout <seconds>', 'give up after this time (default: wait)')
  .action(async (socket: string, execute: string, json: string | undefined, args: QmpArguments) => {
    const call = { execute, ...(json === undefined ? {} : { arguments: argumentsOf(json) }) }
    const seconds = args.timeout === undefined ? undefined : Number(args.timeout)
    if (seconds !== undefined && !(seconds > 0)) {
      throw new BlockError(
        'EINVAL',
        `--timeout must be a number of seconds, but is ${args.timeout}`,
      )
    }
    printJson(await ask(socket, call, seconds))
  })

function argumentsOf(json: string): unknown {
  try {
    const value: unknown = JSON.parse(json)
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value
  } catch {
    // The refusal below says the same.
  }
  throw new BlockError('EINVAL', `The arguments must be a JSON object, but are ${json}`)
}

function connect(where: string): net.Socket {
  const tcp = /^tcp:(.*):(\d+)$/.exec(where)
  if (tcp === null) return net.connect(where.replace(/^unix:/, ''))
  const host = (tcp[1] ?? '').replace(/^\[|\]$/g, '')
  return net.connect(Number(tcp[2]), host === '' ? 'localhost' : host)
}

type Reply = Readonly<Record<string, unknown>>

/** Greets, negotiates, asks, and closes the connection. */
async function ask(where: string, call: object, seconds: number | undefined): Promise<unknown> {
  const socket = connect(where)
  if (seconds !== undefined) {
    const late = (): void => void socket.destroy(new Error(`no answer within ${seconds} s`))
    socket.setTimeout(seconds * 1000, late)
  }
  try {
    const replies = repliesOf(socket)
    await next(replies, where)
    for (const request of [{ execute: 'qmp_capabilities' }, call]) {
      socket.write(`${JSON.stringify(request)}\n`)
      const reply = await answer(replies, where)
      if (request === call) return reply
    }
    return undefined
  } catch (error) {
    if (error instanceof BlockError) throw error
    const why = error instanceof Error ? error.message : String(error)
    throw new BlockError('EIO', `Cannot talk to the monitor at ${where}: ${why}`, { path: where })
  } finally {
    socket.destroy()
  }
}

async function* repliesOf(socket: net.Socket): AsyncGenerator<Reply, void> {
  let text = ''
  for await (const chunk of socket) {
    const lines = (text + String(chunk)).split('\n')
    text = lines.pop() ?? ''
    for (const line of lines) {
      const value: unknown = line.trim() === '' ? undefined : JSON.parse(line)
      if (isReply(value)) yield value
    }
  }
}

function isReply(value: unknown): value is Reply {
  return typeof value === 'object' && value !== null
}

async function next(replies: AsyncGenerator<Reply, void>, where: string): Promise<Reply> {
  const { value } = await replies.next()
  if (value !== undefined) return value
  throw new BlockError('ECONNRESET', `The monitor at ${where} ended the connection`, {
    path: where,
  })
}

/** What the last request returned; events that come before it are passed over. */
async function answer(replies: AsyncGenerator<Reply, void>, where: string): Promise<unknown> {
  for (;;) {
    const reply = await next(replies, where)
    if ('return' in reply) return reply.return
    const { error } = reply
    if (!isReply(error)) continue
    throw new BlockError('EINVAL', `${String(error.class)}: ${String(error.desc)}`)
  }
}
