/**
 * `blockstep convert`: a copy of an image in another format.
 *
 * Invariants:
 * - A target that is the source is refused, and so is one that is too small.
 */
import { Command } from 'commander'
import { convertImage } from '../index.ts'
import { withStatus } from './image-command.ts'
import { creationOf, formatOf, gather } from './image-options.ts'

interface ConvertArguments {
  readonly format?: string
  readonly output: string
  readonly option?: readonly string[]
  readonly compress?: true
  readonly existing?: true
  readonly progress?: true
}

/** The subcommand. */
export const convertCommand: Command = new Command('convert')
  .description('copy an image into another format')
  .argument('<source>', 'path or NBD URI')
  .argument('<target>', 'path, or NBD URI of an export that is long enough')
  .option('-f, --format <format>', 'format of the source; found out if left out')
  .option('-O, --output <format>', 'format of the target', 'raw')
  .option('-o, --option <key=value,…>', 'option of the new image', gather)
  .option('-c, --compress', 'write compressed clusters')
  .option('-n, --existing', 'write into an image that is there')
  .option('-p, --progress', 'say how far the copy is')
  .option('-U, --force-share', 'accepted; images are never locked here')
  .action((source: string, target: string, args: ConvertArguments) =>
    withStatus(1, undefined, async () => {
      const { size: _size, ...options } = creationOf(formatOf(args.output), args.option)
      await convertImage(source, target, {
        ...options,
        format: formatOf(args.output),
        ...(args.format === undefined ? {} : { sourceFormat: formatOf(args.format) }),
        ...(args.existing === true ? { existing: true } : {}),
        compress: args.compress === true,
        ...(args.progress === true ? { onProgress: showProgress } : {}),
      })
      if (args.progress === true) process.stdout.write('    (100.00/100%)\n')
      return 0
    }),
  )

function showProgress(done: number, total: number): void {
  process.stdout.write(`    (${((done * 100) / total).toFixed(2)}/100%)\r`)
}
