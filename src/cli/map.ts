/**
 * `blockstep map`: where the data of an image lies.
 *
 * Invariants:
 * - As JSON every byte of the disk is in exactly one element, in order; for people only data shows.
 */
import type { Command } from 'commander'
import { BlockError, type ImageExtent, mapImage } from '../index.ts'
import { imageCommand, type OutputArguments, wantsJson, withStatus } from './image-command.ts'
import { asFormat } from './image-options.ts'

interface MapArguments extends OutputArguments {
  readonly format?: string
}

/** The subcommand. */
export const mapCommand: Command = imageCommand('map', 'show where the data of an image lies')
  .argument('<image>', 'path or NBD URI')
  .option('-f, --format <format>', 'raw or qcow2; found out if left out')
  .option('-U, --force-share', 'accepted; images are never locked here')
  .action((image: string, args: MapArguments) =>
    withStatus(1, undefined, async () => {
      const extents = mapImage(image, asFormat(args.format))
      await (wantsJson(args) ? printElements(extents) : printTable(extents))
      return 0
    }),
  )

async function printElements(extents: AsyncIterable<ImageExtent>): Promise<void> {
  let line = '['
  for await (const { start, length, depth, present, zero, data, offset } of extents) {
    if (line !== '[') {
      console.log(`${line},`)
      line = ''
    }
    const place = offset === undefined ? '' : `, "offset": ${offset}`
    line +=
      `{ "start": ${start}, "length": ${length}, "depth": ${depth}, "present": ${present}, ` +
      `"zero": ${zero}, "data": ${data}${place}}`
  }
  console.log(`${line}]`)
}

async function printTable(extents: AsyncIterable<ImageExtent>): Promise<void> {
  const row = (...cells: readonly string[]): void =>
    console.log(cells.map((cell, at) => (at < 3 ? cell.padEnd(16) : cell)).join(''))
  let headed = false
  for await (const { start, length, zero, data, offset, file } of extents) {
    if (!headed) row('Offset', 'Length', 'Mapped to', 'File')
    headed = true
    if (!data || zero) continue
    if (offset === undefined || file === undefined)
      throw new BlockError('EINVAL', 'File contains external, encrypted or compressed clusters.')
    row(hex(start), hex(length), hex(offset), file)
  }
}

function hex(value: number): string {
  return value === 0 ? '0' : `0x${value.toString(16)}`
}
