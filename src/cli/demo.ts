/**
 * `blockstep demo`: the main job before your eyes, with a verdict and an exit status.
 *
 * Invariants:
 * - Exit status 0 only if every block of the promoted secondary was compared and right.
 * - With `--json` the only thing on standard output is the result; progress goes to standard error.
 */
import { Command, Option } from 'commander'
import { BlockError } from '../index.ts'
import { checkOptions, type DemoArguments } from './demo/options.ts'
import { mib, ms } from './demo/progress.ts'
import { type DemoResult, runDemo } from './demo/run.ts'
import { runSide } from './demo/side.ts'

/** Exit status by signal; leaving through `exit` ends the sides and removes the files. */
const INTERRUPTS = [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const

/** The subcommand. */
export const demoCommand: Command = new Command('demo')
  .description('replicate a disk between two processes, kill the primary, verify the secondary')
  .option('--disk <file>', 'replicate a raw image instead of memory (it is copied, not changed)')
  .option('--size <bytes>', 'size of the disk in memory, such as 64M (default: 256M)')
  .option('--seconds <n>', 'the primary is killed in the second half of this time', '5')
  .option('--seed <n>', 'repeat the writes and the moment of death of an earlier run')
  .option('--json', 'print the result as JSON')
  .addOption(new Option('--break', 'spoil one block first: the verdict must fail').hideHelp())
  .addOption(new Option('--side <json>', 'be one side of the pair').hideHelp())
  .action(async (args: DemoArguments) => {
    if (args.side !== undefined) return runSide(args.side)
    const options = checkOptions(args)
    const out = options.json ? process.stderr : process.stdout
    const say = (line: string): void => {
      out.write(`${line}\n`)
    }
    for (const [signal, status] of INTERRUPTS) process.once(signal, () => process.exit(status))
    const disk = options.disk ?? 'memory'
    say(`blockstep demo: ${mib(options.size)} (${disk}), seed ${options.seed}`)
    const result = await runDemo(options, out, say).catch(plainError)
    if (options.json) console.log(JSON.stringify(result))
    else for (const line of describe(result)) say(line)
    if (!result.ok) process.exitCode = 1
  })

/** What the host refuses (a full disk, a missing right) is told in one line like everything else. */
function plainError(thrown: unknown): never {
  if (thrown instanceof BlockError || !(thrown instanceof Error) || !('code' in thrown))
    throw thrown
  throw new BlockError('EIO', thrown.message, { op: 'demo' }, thrown)
}

function describe(result: DemoResult): string[] {
  const last = result.torn
    ? 'the primary died after the secondary had acknowledged one more'
    : 'both sides acknowledged each'
  return [
    `written      ${mib(result.bytes)} in ${result.writes} writes, ${mib(result.throughput)}/s`,
    `checkpoints  ${result.checkpoints}, ${last}; guests paused ` +
      `${ms(result.pauseMedianMs)} (median), ${ms(result.pauseMaxMs)} (longest)`,
    `takeover     first accepted write ${ms(result.firstWriteMs)} after the kill, ` +
      `merge finished after ${ms(result.mergedMs)}`,
    `verified     ${result.blocks} blocks against the last checkpoint and ` +
      `${result.ownWrites} writes of the secondary's own`,
    verdictLine(result),
  ]
}

function verdictLine(result: DemoResult): string {
  if (result.ok) return 'verdict      0 blocks wrong: nothing was lost and nothing was torn'
  const where = result.firstWrong === undefined ? '' : `, the first is block ${result.firstWrong}`
  return `verdict      FAILED: ${result.wrong} of ${result.blocks} blocks wrong${where}`
}
