#!/usr/bin/env node
/**
 * The command `blockstep`: arguments in, exit status out.
 *
 * Invariants:
 * - Nothing is decided here.
 */
import { runProgram } from './program.ts'

await runProgram(process.argv.slice(2))
