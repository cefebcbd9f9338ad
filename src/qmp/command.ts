/**
 * What a monitor command is, and how its checked arguments are read.
 *
 * Invariants:
 * - A command runs only with arguments that its schema accepted.
 * - A command fails by throwing a `BlockError`; the error's code decides the class the client sees.
 */
import type { MaybePromise } from '../coroutine/coroutine.ts'
import { assert, BlockError, type ErrorCode } from '../util/errors.ts'
import type { JsonObject, JsonValue } from './json.ts'
import { type Members, type StructSchema, struct } from './schema.ts'

/** What a command may know of the connection it came by. */
export interface CommandSession {
  /** Accepts the capability negotiation, with these extra capabilities. */
  negotiate(capabilities: readonly string[]): void
  /** Takes no further request of this connection once the running one has its reply. */
  finish(): void
}

/** One monitor command. */
export interface Command {
  /** Its arguments. */
  readonly schema: StructSchema
  /** Whether it may run out of band, beside an in-band command that does not end. */
  readonly oob: boolean
  /** Runs it. Undefined answers `{}`. Errors: `BlockError`. */
  run(args: JsonObject, session: CommandSession): MaybePromise<JsonValue | undefined>
}

/** Commands by name. */
export type CommandTable = Readonly<Record<string, Command>>

/** Makes a command from its members and its deed. */
export function command(
  members: Members | StructSchema,
  run: (args: JsonObject, session: CommandSession) => MaybePromise<JsonValue | undefined | void>,
  oob = false,
): Command {
  const schema = isStruct(members) ? members : struct(members)
  const settle = (
    args: JsonObject,
    session: CommandSession,
  ): MaybePromise<JsonValue | undefined> => {
    const result = run(args, session)
    return result instanceof Promise ? result.then(asValue) : asValue(result)
  }
  return { schema, oob, run: settle }
}

function asValue(value: JsonValue | undefined | void): JsonValue | undefined {
  return value === undefined ? undefined : value
}

function isStruct(members: Members | StructSchema): members is StructSchema {
  return members.kind === 'struct'
}

/** A text argument that the schema demands. */
export function textOf(args: JsonObject, name: string): string {
  const value = args[name]
  assert(typeof value === 'string', `the schema demands text for ${name}`)
  return value
}

/** A text argument that may be absent. */
export function optionalText(args: JsonObject, name: string): string | undefined {
  return args[name] === undefined ? undefined : textOf(args, name)
}

/** A flag; `fallback` when absent. */
export function flagOf(args: JsonObject, name: string, fallback = false): boolean {
  const value = args[name] ?? fallback
  assert(typeof value === 'boolean', `the schema demands a flag for ${name}`)
  return value
}

/** A number that may be absent. */
export function optionalNumber(args: JsonObject, name: string): number | undefined {
  const value = args[name]
  assert(
    value === undefined || typeof value === 'number',
    `the schema demands a number for ${name}`,
  )
  return value
}

/** A list argument that may be absent. */
export function listOf(args: JsonObject, name: string): readonly JsonValue[] {
  const value = args[name] ?? []
  assert(Array.isArray(value), `the schema demands a list for ${name}`)
  return value
}

/** The error class that clients see for a code. */
export function errorClass(code: ErrorCode): string {
  if (code === 'DEVICE_NOT_FOUND') return 'DeviceNotFound'
  if (code === 'DEVICE_NOT_ACTIVE') return 'DeviceNotActive'
  return 'GenericError'
}

/** Refuses an argument with a sentence. */
export function refuse(sentence: string): never {
  throw new BlockError('EINVAL', sentence)
}
