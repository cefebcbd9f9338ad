/**
 * `blockstep check`: an image checked, and repaired if asked to.
 *
 * Invariants:
 * - Exit status 0: nothing wrong (any more). 1: the check itself failed. 2: corruptions. 3: leaks
 *   only. 63: a format that has nothing to check.
 */
import type { Command } from 'commander'
import { BlockError, checkImage, type ImageCheck } from '../index.ts'
import {
  imageCommand,
  type OutputArguments,
  printJson,
  wantsJson,
  withStatus,
} from './image-command.ts'
import { asFormat } from './image-options.ts'

interface CheckArguments extends OutputArguments {
  readonly format?: string
  readonly repair?: string
  readonly quiet?: true
}

/** The subcommand. */
export const checkCommand: Command = imageCommand('check', 'check an image, and repair it')
  .argument('<image>', 'path or NBD URI')
  .option('-f, --format <format>', 'raw or qcow2; found out if left out')
  .option('-r, --repair <what>', 'leaks: if nothing else is wrong; all: whatever is wrong')
  .option('-q, --quiet', 'print nothing but errors')
  .option('-U, --force-share', 'accepted; images are never locked here')
  .action((image: string, args: CheckArguments) =>
    withStatus(1, undefined, () => check(image, args), NOTHING_TO_CHECK),
  )

const NOTHING_TO_CHECK = 63

async function check(image: string, args: CheckArguments): Promise<number> {
  const repair = repairOf(args.repair)
  const found = await checkImage(image, {
    ...asFormat(args.format),
    ...(repair === undefined ? {} : { repair }),
  })
  if (wantsJson(args)) printJson(members(image, found))
  else {
    for (const line of found.before.messages) console.error(line)
    if (args.quiet !== true) console.log(describe(found).join('\n'))
  }
  if (found.corruptions > 0) return 2
  return found.leaks > 0 ? 3 : 0
}

function repairOf(text: string | undefined): 'leaks' | 'all' | undefined {
  if (text === undefined || text === 'leaks' || text === 'all') return text
  const words = "Unknown option value for -r (expecting 'leaks' or 'all')"
  throw new BlockError('EINVAL', `${words}: ${text}`)
}

function members(filename: string, found: ImageCheck): Readonly<Record<string, unknown>> {
  const unlessZero = (name: string, count: number): Readonly<Record<string, number>> =>
    count === 0 ? {} : { [name]: count }
  return {
    'image-end-offset': found.imageEndOffset,
    ...unlessZero('total-clusters', found.totalClusters),
    ...unlessZero('corruptions', found.corruptions),
    ...unlessZero('corruptions-fixed', found.corruptionsFixed),
    'check-errors': 0,
    ...unlessZero('leaks', found.leaks),
    ...unlessZero('leaks-fixed', found.leaksFixed),
    ...unlessZero('allocated-clusters', found.allocatedClusters),
    ...unlessZero('compressed-clusters', found.compressedClusters),
    ...unlessZero('fragmented-clusters', found.fragmentedClusters),
    filename,
    format: 'qcow2',
  }
}

function describe(found: ImageCheck): string[] {
  const { corruptions, leaks, corruptionsFixed, leaksFixed } = found
  const lines: string[] = []
  if (corruptionsFixed + leaksFixed > 0) {
    lines.push('The following inconsistencies were found and repaired:', '')
    lines.push(`    ${leaksFixed} leaked clusters`, `    ${corruptionsFixed} corruptions`, '')
    lines.push('Double checking the fixed image now...')
  }
  if (corruptions > 0) {
    lines.push('', `${corruptions} errors were found on the image.`)
    lines.push('Data may be corrupted, or further writes to the image may corrupt it.')
  }
  if (leaks > 0) {
    lines.push('', `${leaks} leaked clusters were found on the image.`)
    lines.push('This means waste of disk space, but no harm to data.')
  }
  if (corruptions + leaks === 0) lines.push('No errors were found on the image.')
  const { allocatedClusters: allocated, totalClusters: total } = found
  if (total > 0 && allocated > 0) {
    const of = (part: number, all: number): string => `${twoDigits((part * 100) / all)}%`
    lines.push(
      `${allocated}/${total} = ${of(allocated, total)} allocated, ` +
        `${of(found.fragmentedClusters, allocated)} fragmented, ` +
        `${of(found.compressedClusters, allocated)} compressed clusters`,
    )
  }
  return [...lines, `Image end offset: ${found.imageEndOffset}`]
}

// A tie goes to the even digit, as in every C program.
function twoDigits(value: number): string {
  const hundredths = Math.floor(value * 100)
  const tie = value * 100 - hundredths === 0.5
  return tie ? ((hundredths + (hundredths % 2)) / 100).toFixed(2) : value.toFixed(2)
}
