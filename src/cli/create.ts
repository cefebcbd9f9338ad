/**
 * `blockstep create`: a new image.
 *
 * Invariants:
 * - What was decided is printed before the image is made, unless `-q`.
 */
import { Command } from 'commander'
import { createImage, type ImageCreateOptions, inspectImage } from '../index.ts'
import { withStatus } from './image-command.ts'
import { asFormat, creationOf, formatOf, gather, sizeOf } from './image-options.ts'

interface CreateArguments {
  readonly format: string
  readonly option?: readonly string[]
  readonly backing?: string
  readonly backingFormat?: string
  readonly unsafe?: true
  readonly quiet?: true
}

/** The subcommand. */
export const createCommand: Command = new Command('create')
  .description('make an image')
  .argument('<file>', 'path of the image')
  .argument('[size]', 'length of the disk, such as 10G; that of the backing image if left out')
  .option('-f, --format <format>', 'raw or qcow2', 'raw')
  .option('-o, --option <key=value,…>', 'option of the format', gather)
  .option('-b, --backing <file>', 'image that shows where this one holds nothing')
  .option('-F, --backing-format <format>', 'format of the backing image')
  .option('-u, --unsafe', 'do not look at the backing image')
  .option('-q, --quiet', 'print nothing')
  .action((file: string, size: string | undefined, args: CreateArguments) =>
    withStatus(1, file, async () => {
      const options: ImageCreateOptions = {
        ...creationOf(formatOf(args.format), args.option),
        format: formatOf(args.format),
        ...(size === undefined ? {} : { size: sizeOf(size) }),
        ...(args.backing === undefined ? {} : { backingFile: args.backing }),
        ...(args.unsafe === true ? { uncheckedBacking: true } : {}),
        ...(args.backingFormat === undefined ? {} : { backingFormat: args.backingFormat }),
      }
      const made = await createImage(file, options)
      if (args.quiet !== true) await tell(file, options, made.size)
      return 0
    }),
  )

async function tell(file: string, options: ImageCreateOptions, size: number): Promise<void> {
  const { format, preallocation, backingFile, backingFormat } = options
  const common = preallocation === undefined ? [] : [`preallocation=${preallocation}`]
  if (format === 'raw') {
    console.log([`Formatting '${file}', fmt=raw`, `size=${size}`, ...common].join(' '))
    return
  }
  const { members } = await inspectImage(file, asFormat(format))
  const compat = options.version === undefined ? [] : [`compat=${compatOf(options.version)}`]
  const backing =
    backingFile === undefined
      ? []
      : [`backing_file=${backingFile}`, `backing_fmt=${backingFormat ?? ''}`]
  const words = [
    `Formatting '${file}', fmt=qcow2 cluster_size=${String(members['cluster-size'])}`,
    `extended_l2=${onOff(options.extendedL2)}`,
    ...common,
    `compression_type=${options.compressionType ?? 'zlib'} size=${options.size ?? size}`,
    ...compat,
    ...backing,
    ...(options.dataFile === undefined ? [] : [`data_file=${options.dataFile}`]),
    ...(options.dataFileRaw === undefined ? [] : [`data_file_raw=${onOff(options.dataFileRaw)}`]),
    `lazy_refcounts=${onOff(options.lazyRefcounts)} refcount_bits=${options.refcountBits ?? 16}`,
  ]
  console.log(words.join(' '))
}

function compatOf(version: 2 | 3): string {
  return version === 2 ? '0.10' : '1.1'
}

function onOff(flag: boolean | undefined): string {
  return flag === true ? 'on' : 'off'
}
