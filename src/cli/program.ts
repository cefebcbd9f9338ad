/**
 * The command `blockstep` with all of its subcommands.
 *
 * Invariants:
 * - Bad input costs one line on standard error, `blockstep: …`, and a status other than 0.
 */
import { Command, CommanderError } from 'commander'
import { BlockError, PROGRAM_VERSION } from '../index.ts'
import { checkCommand } from './check.ts'
import { compareCommand } from './compare.ts'
import { convertCommand } from './convert.ts'
import { createCommand } from './create.ts'
import { daemonCommand } from './daemon.ts'
import { demoCommand } from './demo.ts'
import { infoCommand } from './info.ts'
import { mapCommand } from './map.ts'
import { qmpCommand } from './qmp.ts'

/** Options of the daemon that machines spell with one dash. */
const ONE_DASH = /^-(blockdev|chardev|daemonize|drive|monitor|object|pidfile|qmp)$/

/** All of it. */
export const program: Command = new Command('blockstep')
  .description('A hot-standby disk that cannot be torn')
  .version(PROGRAM_VERSION)
  .enablePositionalOptions()
  .addCommand(demoCommand)
  .addCommand(daemonCommand)
  .addCommand(qmpCommand)
  .addCommand(createCommand)
  .addCommand(infoCommand)
  .addCommand(checkCommand)
  .addCommand(mapCommand)
  .addCommand(compareCommand)
  .addCommand(convertCommand)

for (const command of [program, ...program.commands]) {
  command.exitOverride().configureOutput({
    outputError: (text, write) => write(`blockstep: ${text.replace(/^error: /, '')}`),
  })
}

/** Does what the words say; `process.exitCode` tells how it went. */
export async function runProgram(words: readonly string[]): Promise<void> {
  const daemon = words[0] === 'daemon'
  const spelled = daemon ? words.map((word) => word.replace(ONE_DASH, '--$1')) : words
  try {
    await program.parseAsync(spelled, { from: 'user' })
  } catch (error) {
    process.exitCode = report(error)
  }
}

function report(error: unknown): number {
  // The parser has printed its line itself.
  if (error instanceof CommanderError) return error.exitCode
  if (error instanceof BlockError) console.error(`blockstep: ${error.message}`)
  else console.error(error)
  return 1
}
