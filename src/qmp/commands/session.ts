/**
 * Commands about the connection and the program: negotiation, version, names, end.
 *
 * Invariants:
 * - `quit` answers before anything is taken down, and nothing is answered after it.
 */
import { type Command, type CommandTable, command, listOf } from '../command.ts'
import type { JsonValue } from '../json.ts'
import { list, oneOf } from '../schema.ts'
import { VERSION } from '../version.ts'

/** What these commands need of the program. */
export interface SessionServices {
  /** Names of all commands. */
  names(): readonly string[]
  /** What the program understands and sends. */
  schema(): JsonValue
  /** Asks for an orderly end. */
  quit(): void
}

/** `qmp_capabilities`, `query-version`, `query-commands`, `query-qmp-schema`, `quit`. */
export function sessionCommands(services: SessionServices): CommandTable {
  const negotiation: Command = command({ 'enable?': list(oneOf('oob')) }, (args, session) =>
    session.negotiate(listOf(args, 'enable').map(String)),
  )
  return {
    qmp_capabilities: negotiation,
    'query-version': command({}, () => VERSION),
    'query-commands': command({}, () => services.names().map((name) => ({ name }))),
    'query-qmp-schema': command({}, () => services.schema()),
    quit: command({}, (_args, session) => {
      session.finish()
      services.quit()
    }),
  }
}
