/**
 * `blockstep compare`: whether two images show the same.
 *
 * Invariants:
 * - Exit status 0: the same. 1: not the same. 2: an image could not be opened or read.
 */
import { Command } from 'commander'
import { compareImages, type ImageComparison } from '../index.ts'
import { withStatus } from './image-command.ts'
import { asFormat } from './image-options.ts'

interface CompareArguments {
  readonly format?: string
  readonly otherFormat?: string
  readonly strict?: true
  readonly quiet?: true
}

/** The subcommand. */
export const compareCommand: Command = new Command('compare')
  .description('compare what two images show')
  .argument('<image>', 'path or NBD URI')
  .argument('<other>', 'path or NBD URI')
  .option('-f, --format <format>', 'format of the first; found out if left out')
  .option('-F, --other-format <format>', 'format of the second; found out if left out')
  .option('-s, --strict', 'images of different length are not the same')
  .option('-q, --quiet', 'only the exit status tells')
  .option('-U, --force-share', 'accepted; images are never locked here')
  .action((image: string, other: string, args: CompareArguments) =>
    withStatus(2, undefined, async () => {
      const found = await compareImages(image, other, {
        formats: [asFormat(args.format), asFormat(args.otherFormat)],
      })
      const strict = args.strict === true && found.sizesDiffer
      if (args.quiet !== true) for (const line of describe(found, strict)) console.log(line)
      return found.equal && !strict ? 0 : 1
    }),
  )

function describe(found: ImageComparison, strict: boolean): string[] {
  if (strict) return ['Strict mode: Image size mismatch!']
  const { mismatchOffset: at } = found
  // Of the lengths nothing is said while the common part decides.
  const told = found.sizesDiffer && (at === undefined || at >= found.commonLength)
  const verdict = at === undefined ? 'Images are identical.' : `Content mismatch at offset ${at}!`
  return [...(told ? ['Warning: Image size mismatch!'] : []), verdict]
}
