/**
 * `blockstep info`: what an image says of itself.
 *
 * Invariants:
 * - As JSON, members have the names that monitors and other image tools use.
 */
import type { Command } from 'commander'
import { type ImageDescription, inspectImage } from '../index.ts'
import {
  humanBytes,
  imageCommand,
  type OutputArguments,
  printJson,
  wantsJson,
  withStatus,
} from './image-command.ts'
import { asFormat } from './image-options.ts'

interface InfoArguments extends OutputArguments {
  readonly format?: string
  readonly backingChain?: true
}

/** The subcommand. */
export const infoCommand: Command = imageCommand('info', 'show what an image says of itself')
  .argument('<image>', 'path or NBD URI')
  .option('-f, --format <format>', 'raw or qcow2; found out if left out')
  .option('--backing-chain', 'show the images below it too')
  .option('-U, --force-share', 'accepted; images are never locked here')
  .action((image: string, args: InfoArguments) =>
    withStatus(1, undefined, async () => {
      const chain = [await inspectImage(image, asFormat(args.format))]
      while (args.backingChain === true) {
        const last = chain.at(-1)
        if (last?.backingFile === undefined) break
        const format = last.members['backing-filename-format']
        chain.push(
          await inspectImage(
            last.backingFile,
            format === 'raw' || format === 'qcow2' ? { format } : {},
          ),
        )
      }
      if (!wantsJson(args)) console.log(chain.map((one) => describe(one).join('\n')).join('\n\n'))
      else if (args.backingChain === true) printJson(chain.map(({ members }) => members))
      else printJson(chain[0]?.members)
      return 0
    }),
  )

function describe({ filename, format, virtualSize, members }: ImageDescription): string[] {
  const lines = [
    `image: ${filename}`,
    `file format: ${format}`,
    `virtual size: ${humanBytes(virtualSize)} (${virtualSize} bytes)`,
  ]
  const { snapshots } = members
  const actual = members['actual-size']
  const size = typeof actual === 'number' ? humanBytes(actual) : 'unavailable'
  lines.push(`disk size: ${size}`)
  if (members['cluster-size'] !== undefined)
    lines.push(`cluster_size: ${text(members, 'cluster-size')}`)
  if (members['dirty-flag'] === true) lines.push('cleanly shut down: no')
  const backing = members['backing-filename']
  if (typeof backing === 'string') {
    const full = text(members, 'full-backing-filename')
    lines.push(`backing file: ${backing}${full === backing ? '' : ` (actual path: ${full})`}`)
    if (members['backing-filename-format'] !== undefined)
      lines.push(`backing file format: ${text(members, 'backing-filename-format')}`)
  }
  if (Array.isArray(snapshots)) lines.push(...snapshotLines(snapshots))
  const specific = members['format-specific']
  if (isMembers(specific) && isMembers(specific.data))
    lines.push('Format specific information:', ...nested(specific.data, 4))
  return lines
}

type MemberMap = Readonly<Record<string, unknown>>

function isMembers(value: unknown): value is MemberMap {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function text(members: MemberMap, key: string): string {
  return String(members[key])
}

function snapshotLines(snapshots: readonly unknown[]): string[] {
  const row = (...cells: readonly string[]): string => {
    const [id = '', tag = '', size = '', date = '', clock = '', count = ''] = cells
    return (
      `${id.padEnd(10)}${tag.padEnd(17)} ${size.padStart(7)}${date.padStart(20)}` +
      `${clock.padStart(13)}${count.padStart(11)}`
    )
  }
  const rows = snapshots.filter(isMembers).map((snapshot) => {
    const when = new Date(Number(snapshot['date-sec']) * 1000)
    return row(
      text(snapshot, 'id'),
      text(snapshot, 'name'),
      humanBytes(Number(snapshot['vm-state-size'])),
      localTime(when),
      clockText(Number(snapshot['vm-clock-sec']), Number(snapshot['vm-clock-nsec'])),
      snapshot.icount === undefined ? '' : text(snapshot, 'icount'),
    )
  })
  const head = row('ID', 'TAG', 'VM SIZE', 'DATE', 'VM CLOCK', 'ICOUNT')
  return ['Snapshot list:', head, ...rows]
}

function two(value: number): string {
  return String(value).padStart(2, '0')
}

function localTime(when: Date): string {
  const day = [when.getFullYear(), two(when.getMonth() + 1), two(when.getDate())].join('-')
  return `${day} ${[when.getHours(), when.getMinutes(), when.getSeconds()].map(two).join(':')}`
}

function clockText(seconds: number, nanoseconds: number): string {
  const parts = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map(Math.floor)
  const millis = String(Math.floor(nanoseconds / 1e6)).padStart(3, '0')
  return `${parts.map(two).join(':')}.${millis}`
}

/** Members in the order in which people know them; what is not here follows. */
const ORDER = [
  ...['compat', 'compression-type', 'lazy-refcounts', 'bitmaps'],
  ...['flags', 'name', 'granularity', 'refcount-bits', 'data-file', 'data-file-raw', 'corrupt'],
]

function place([key]: readonly [string, unknown]): number {
  const at = ORDER.indexOf(key)
  return at < 0 ? ORDER.length : at
}

// Lists are shown by index, members by name; nothing else is known of them here.
function nested(value: unknown, indent: number): string[] {
  const entries = Array.isArray(value)
    ? value.map((item, at): [string, unknown] => [`[${at}]`, item])
    : Object.entries(isMembers(value) ? value : {})
        .sort((one, other) => place(one) - place(other))
        .map(([key, item]): [string, unknown] => [key.replaceAll('-', ' '), item])
  return entries.flatMap(([key, item]) => {
    const start = `${' '.repeat(indent)}${key}:`
    if (typeof item === 'object' && item !== null) return [start, ...nested(item, indent + 4)]
    return [`${start} ${String(item)}`]
  })
}
