/**
 * The frame of a subcommand about images: its exit status, and the options that all of them take.
 *
 * Invariants:
 * - An error of an image costs one line on standard error and the status that the subcommand names.
 */
import { Command, Option } from 'commander'
import { BlockError } from '../index.ts'
import { outputOf } from './image-options.ts'

/** How results are printed. */
export interface OutputArguments {
  /** The same as `output` json. */
  readonly json?: true
  /** For people or for programs. */
  readonly output: 'human' | 'json'
}

/** A subcommand that prints for people or, with `--json` or `--output=json`, for programs. */
export function imageCommand(name: string, description: string): Command {
  return new Command(name)
    .description(description)
    .option('--json', 'the same as --output json')
    .addOption(new Option('--output <kind>', 'human or json').default('human').argParser(outputOf))
}

/** Whether a program reads the output. */
export function wantsJson(args: OutputArguments): boolean {
  return args.json === true || args.output === 'json'
}

/** Prints a value as other image tools do. */
export function printJson(value: unknown): void {
  console.log(JSON.stringify(value, undefined, 4))
}

/**
 * Runs `body`; an error costs its line, with the name of the image when that is given, and `status`,
 * or `unsupported` for what a format cannot do.
 */
export async function withStatus(
  status: number,
  image: string | undefined,
  body: () => Promise<number>,
  unsupported: number = status,
): Promise<void> {
  try {
    process.exitCode = await body()
  } catch (error) {
    if (!(error instanceof BlockError)) throw error
    const start = image === undefined ? 'blockstep:' : `blockstep: ${image}:`
    console.error(`${start} ${error.message}`)
    process.exitCode = error.code === 'ENOTSUP' ? unsupported : status
  }
}

/** Bytes as people read them: `10 MiB`, `344 KiB`, `1.5 GiB`. */
export function humanBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB']
  let power = 0
  while (power < units.length - 1 && bytes / 1024 ** power >= 1000) power++
  const text = (bytes / 1024 ** power).toPrecision(3)
  return `${text.includes('.') ? text.replace(/\.?0+$/, '') : text} ${units[power]}`
}
