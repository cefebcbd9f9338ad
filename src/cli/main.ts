#!/usr/bin/env node
/**
 * The command `blockstep`: arguments in, exit status out.
 *
 * Invariants:
 * - Bad input costs one line on standard error, `blockstep: …`, and a status other than 0.
 */
import { Command, CommanderError } from 'commander'
import { BlockError, PROGRAM_VERSION } from '../index.ts'
import { daemonCommand } from './daemon.ts'
import { demoCommand } from './demo.ts'

const program = new Command('blockstep')
  .description('A hot-standby disk that cannot be torn')
  .version(PROGRAM_VERSION)
  .addCommand(demoCommand)
  .addCommand(daemonCommand)

for (const command of [program, ...program.commands]) {
  command.exitOverride().configureOutput({
    outputError: (text, write) => write(`blockstep: ${text.replace(/^error: /, '')}`),
  })
}

try {
  await program.parseAsync()
} catch (error) {
  process.exitCode = report(error)
}

function report(error: unknown): number {
  // The parser has printed its line itself.
  if (error instanceof CommanderError) return error.exitCode
  if (error instanceof BlockError) console.error(`blockstep: ${error.message}`)
  else console.error(error)
  return 1
}
